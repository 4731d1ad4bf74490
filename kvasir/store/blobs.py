"""Blobs: files in the models folder that go by the SHA-256 of what is in them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from itertools import count
from pathlib import Path
from typing import BinaryIO

from kvasir.errors import CapacityError, UsageError
from kvasir.store.made import BLOBS, sync_folder
from kvasir.store.names import models_folder

DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
RESERVE = 1 << 30  # bytes of the disk that uploads leave to others
_numbers = count()


def blobs_folder() -> Path:
    """Where blobs lie."""
    return models_folder() / BLOBS


def blob_path(digest: str) -> Path:
    """Where the blob with this digest ("sha256:<64 hex>") lies.  Raises UsageError for what is no digest."""
    found = DIGEST.fullmatch(digest)
    if not found:
        raise UsageError(f"{digest[:80]!a} is not a digest", hint="write sha256: and 64 hex digits")
    return blobs_folder() / f"sha256-{found[1]}"


def digest_of(path: Path) -> str:
    """The digest of a file, "sha256:<64 hex>".  Reads all of it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


class Upload:
    """A blob on its way in.  Mutable; used by one thread at a time.  Nobody sees it before it is whole."""

    def __init__(self, digest: str, expected_bytes: int = 0):
        """Raises UsageError for what is no digest, CapacityError when the disk has no room."""
        self._path, self._digest = blob_path(digest), digest.replace("-", ":")
        self._state = hashlib.sha256()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            room(self._path.parent, expected_bytes)
            self._fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}.{next(_numbers)}.part")
            self._file: BinaryIO = self._fresh.open("xb")
        except OSError as error:
            raise CapacityError(f"the blob cannot be written: {error.strerror}") from None
        self._n_unchecked = 0

    def write(self, data: bytes) -> None:
        """Takes a further piece.  Raises CapacityError when the disk has no room."""
        try:
            self._n_unchecked += len(data)
            if self._n_unchecked > RESERVE // 16:
                room(self._path.parent, len(data))
                self._n_unchecked = 0
            self._file.write(data)
        except OSError as error:
            raise CapacityError(f"the blob cannot be written: {error.strerror}") from None
        self._state.update(data)

    def finish(self) -> None:
        """The blob is whole.  Raises UsageError if it is not what its digest says."""
        got = f"sha256:{self._state.hexdigest()}"
        if got != self._digest:
            self.drop()
            raise UsageError(f"digest mismatch, expected {self._digest}, got {got}")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._fresh.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            self.drop()
            raise CapacityError(f"the blob cannot be written: {error.strerror}") from None

    def drop(self) -> None:
        """Gives it up; any number of times, and without effect on a finished one."""
        self._file.close()
        self._fresh.unlink(missing_ok=True)


def room(folder: Path, n_bytes: int) -> None:
    """Raises CapacityError unless the disk holds so much more and the reserve."""
    free = shutil.disk_usage(folder).free
    if n_bytes + RESERVE > free:
        raise CapacityError(
            f"the blob needs {n_bytes / 1e9:.1f} GB and 1 GB stays free, of {free / 1e9:.1f} GB on the disk",
            hint="make room on the disk of the models folder",
        )


def link(path: Path, at: Path) -> None:
    """The file at `path` also at `at`, without a copy where the disk can.  Raises OSError."""
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.exists():
        return
    try:
        os.link(path.resolve(), at)
    except OSError:
        shutil.copy2(path, at)
