"""Where prefixes are kept: a folder for each model, one quota over all, what is pinned, and who may write.

    prefix/<64 hex digits of the model>/ about.json  pins.json  lock  00000001-1a2b3c4d.segment ...

Folders are for their user alone (0700), files too (0600).  One process writes a model's folder: it holds the
lock as long as it lives; others read.  Whoever begins a segment sees to the quota: the segments used longest
ago go first, of all models, and those with pinned blocks last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from time import time
from typing import Any

from kvasir.engine.segments import PART, VERSION, scan, segments_of
from kvasir.records import dataclass

try:
    import fcntl
except ImportError:  # Windows: what is there is read, and nothing is written
    fcntl = None  # type: ignore[assignment]

ABOUT, PINS, LOCK = "about.json", "pins.json", "lock"
LEAST_FREE = 1 << 30  # bytes that are left to others on the disk
SEGMENT_BYTES = 64 << 20
STALE_S = 3600  # what a writer has not given its name by then was left by one that was killed


def cache_folder() -> Path:
    """Where the folders of all models lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kvasir" / "prefix"


def root_key(model: bytes, kv_format: str, tenant: str, adapter: str) -> bytes:
    """The key that all keys of a tenant's prefixes come from: SHA-256 over what their numbers depend on."""
    state = hashlib.sha256(struct.pack("<I", VERSION) + model)
    for part in (kv_format, tenant, adapter):
        said = part.encode("utf-8", "surrogatepass")
        state.update(struct.pack("<I", len(said)) + said)
    return state.digest()


def next_key(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    """The key of the block of `tokens` after the block `parent`."""
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}I", *tokens)).digest()


def state_key(key: bytes) -> bytes:
    """The key of the recurrent state after the block `key`."""
    return hashlib.sha256(b"state" + key).digest()


@dataclass(frozen=True)
class Pin:
    """A prefix to be kept: the keys of its blocks, the last of them its name.  `until`: seconds since 1970;
    None: until somebody ends it.
    """

    keys: tuple[str, ...]
    n_tokens: int
    until: float | None
    text: str = ""  # how it begins, for people

    @property
    def name(self) -> str:
        return self.keys[-1]


@dataclass(frozen=True)
class Shelf:
    """One model's folder.  `model`: SHA-256 over all that the numbers of its cache depend on, tokens aside.

    `quota`: bytes that the segments of all models may have; `least_free`: that the disk must have left.
    """

    root: Path
    model: bytes
    quota: int
    least_free: int = LEAST_FREE
    segment_bytes: int = SEGMENT_BYTES

    @property
    def folder(self) -> Path:
        return self.root / self.model.hex()

    @property
    def most_segment_bytes(self) -> int:
        """Of one segment: a small part of the quota, so that it goes in small parts."""
        return min(self.segment_bytes, max(self.quota // 16, 1))

    def prepare(self) -> None:
        """Makes the folder.  Raises OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> int | None:
        """A descriptor that holds the right to write until it is closed; None: another process has it.

        Raises OSError.
        """
        if fcntl is None:
            raise OSError(errno.ENOTSUP, "this system has no file locks")
        fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def make_room(self, own: Path, n_bytes: int) -> None:
        """Room for a segment `own` of so many bytes.  Raises OSError where there is none to be had."""
        if n_bytes > self.quota:
            raise OSError(errno.EDQUOT, "a block is larger than the quota")
        files, total = [], n_bytes
        for folder in folders(self.root):
            pinned = {key for pin in read_pins(folder).values() for key in pin.keys}
            for path in segments_of(folder):
                with suppress(OSError):
                    info = path.stat()
                    total += info.st_size
                    files.append((_holds(path, pinned), info.st_mtime_ns, info.st_size, path))
            _sweep(folder)
        for _, _, size, path in sorted(files):
            if total <= self.quota:
                break
            path.unlink(missing_ok=True)
            total -= size
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < self.least_free + n_bytes:
            raise OSError(errno.ENOSPC, "the disk is nearly full")
        for folder in folders(self.root):
            if folder != self.folder:
                remove_if_empty(folder)


def folders(root: Path) -> list[Path]:
    """The folders of all models."""
    try:
        return sorted(p for p in root.iterdir() if len(p.name) == 64 and p.is_dir() and not p.is_symlink())
    except OSError:
        return []


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder says of its model: name, path, and what was measured.  Empty if it says nothing."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / ABOUT).read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def write_about(folder: Path, about: Mapping[str, object]) -> None:
    """Raises OSError."""
    _replace(folder / ABOUT, about)


def read_pins(folder: Path) -> dict[str, Pin]:
    """The pins of a folder that have not run out, by name; none where the file is damaged."""
    try:
        found = [
            Pin(
                tuple(bytes.fromhex(key).hex() for key in p["keys"]),
                int(p["n_tokens"]),
                _moment(p["until"]),
                str(p["text"]),
            )
            for p in json.loads((folder / PINS).read_bytes())
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    now = time()
    return {p.name: p for p in found if p.keys and (p.until is None or p.until > now)}


def change_pins(folder: Path, change: Callable[[dict[str, Pin]], None]) -> dict[str, Pin]:
    """The pins after `change` had them to itself.  Raises OSError."""
    with _alone(folder):
        pins = read_pins(folder)
        change(pins)
        _replace(folder / PINS, [asdict(pin) for pin in pins.values()])
    return pins


def purge(folder: Path) -> int:
    """Removes all that a folder keeps; the bytes that were.  A program that runs the model sees its blocks
    gone and computes.  Raises OSError.
    """
    total = 0
    for path in segments_of(folder):
        total += path.stat().st_size
        path.unlink(missing_ok=True)
    (folder / PINS).unlink(missing_ok=True)
    remove_if_empty(folder)
    return total


def remove_if_empty(folder: Path) -> None:
    """A folder without segments that nobody writes goes."""
    if fcntl is None or any(segments_of(folder)):
        return
    with suppress(OSError):
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in list(folder.iterdir()):
                path.unlink()
            folder.rmdir()
        finally:
            os.close(fd)


def _moment(value: Any) -> float | None:
    return None if value is None else float(value)


def _holds(path: Path, keys: Iterable[str]) -> bool:
    """Whether a segment has one of these blocks."""
    wanted = {bytes.fromhex(key) for key in keys}
    return bool(wanted) and any(record.key in wanted for record in scan(path, None)[0])


def _sweep(folder: Path) -> None:
    """Removes what a process left that was killed while it began a segment."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.suffix == PART and time() - path.stat().st_mtime > STALE_S:
                path.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    fd = os.open(folder / "pins.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if fcntl:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, value: object) -> None:
    """Writes JSON whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}{PART}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(value).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
