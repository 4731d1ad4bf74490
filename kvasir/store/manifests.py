"""Manifests of made models as files: read whole, written whole or not at all."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import msgspec

from kvasir.errors import CheckpointError, UsageError
from kvasir.store.made import FORM, Made, write_whole


def read_manifest(path: Path) -> Made:
    """What the manifest at `path` says.  Raises CheckpointError."""
    try:
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise CheckpointError(f"{path.name}: the manifest cannot be read: {error.strerror}") from None


@lru_cache(1024)
def _read(path: Path, changed_ns: int, size: int) -> Made:
    try:
        made = msgspec.json.decode(path.read_bytes(), type=Made)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{path.parent.name}/{path.name}: not a manifest: {error}", hint="make the model again"
        ) from None
    if made.form != FORM:
        raise CheckpointError(f"{path.name}: a manifest of form {made.form}, this Kvasir reads {FORM}")
    return made


def write_manifest(path: Path, made: Made) -> str:
    """Writes `made` whole or not at all; its digest, 64 hex digits."""
    raw = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent.name} cannot be made: {error.strerror}") from None
    write_whole(path, raw)
    return hashlib.sha256(raw).hexdigest()
