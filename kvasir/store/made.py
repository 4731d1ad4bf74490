"""Models made of others: a manifest names the weights, and what goes with them.

A manifest is a JSON file, `manifests/[HOST/][NAMESPACE/]MODEL/TAG.json` in the models folder.  Weights are
never copied: they are a built-in model or one of the folder by name, a path elsewhere, or a blob.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from kvasir.chat import ChatRequest, Message
from kvasir.errors import CheckpointError, UsageError

FORM = 1  # of the file; a later one that this program cannot read has another
MANIFESTS, BLOBS = "manifests", "blobs"


@dataclass(frozen=True)
class Turn:
    """A message that stands before every conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Made:
    """What a name stands for: weights, and what goes with them.

    `weights`: the name of a built-in model or of a file or folder in the models folder; a path that begins
    with "/"; or "blobs/..." there.  `parent`: the model that it was made from, as it was called.
    `parameters`: Ollama's options.  `template`: empty for the weights' own.  `adapter`: the path of a LoRA
    adapter that answers.
    """

    weights: str
    parent: str = ""
    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Turn, ...] = ()
    license: tuple[str, ...] = ()
    adapter: str = ""
    form: int = FORM

    def applied(self, request: ChatRequest) -> ChatRequest:
        """`request` with the system message and the messages that go before every conversation.

        A system message of the request's own wins; what continues a `context` has them already.
        """
        sent = request.messages
        if not sent or request.context or not (self.system or self.messages):
            return request
        own = sent[:1] if sent[0].role == "system" else ()
        first = own or ((Message("system", self.system),) if self.system else ())
        turns = (Message(t.role, t.content) for t in self.messages)
        return replace(request, messages=(*first, *turns, *sent[len(own) :]))


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


def manifest_digest(path: Path) -> str:
    """64 hex digits over a manifest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, raw: bytes) -> None:
    """`raw` at `path`, durably: a reader finds the old file or the new one, whatever ends this process.

    Raises UsageError for a full disk, a read-only folder.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with fresh.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise UsageError(f"{path.name} cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Makes what was renamed into `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
