"""A file of repacked weights: written once beside others in a folder with a quota, mapped at later starts.

    magic 8 | version u32 | bytes of the index u32 | SHA-256 of the index 32 | index: JSON | ... | stacks

Each stack of panels begins on a page.  Nothing in the file is believed: the index is read only if its
digest is right, and each stack is held against the size of the file before it is mapped, and by its user
against what its shape needs.  The panels' own checksums are compared on demand (`verify`): to read every
byte at every start would take as long as packing, and a model's own file is not checked for flipped bits.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvasir.records import dataclass

try:
    import fcntl
except ImportError:  # Windows: no cache
    fcntl = None  # type: ignore[assignment]

Bytes = npt.NDArray[np.uint8]

MAGIC, VERSION = b"KVPACKED", 1
HEAD = struct.Struct("<8sII32s")
BEGIN = 1 << 20  # of the first stack; the index lies before it
ALIGN = 4096
MAX_INDEX_BYTES = BEGIN
PIECE = 8 << 20  # bytes written, and pushed to the disk in turns, at a time
SUFFIX, PART = ".packed", ".part"
ROOM = 4  # a file is written where the disk has four times its size left


@dataclass(frozen=True)
class Stack:
    """`count` matrices of one shape: `bytes` of panels `at` the offset, with their CRC-32."""

    format: str
    rows: int
    width: int
    count: int
    at: int
    bytes: int
    crc: int


@dataclass(frozen=True)
class PackedFile:
    """An opened file: the stacks by the weight's name, and the map that they lie in."""

    stacks: Mapping[str, Stack]
    data: Bytes

    def panels(self, name: str) -> Bytes:
        s = self.stacks[name]
        return self.data[s.at : s.at + s.bytes]

    def verify(self) -> str:
        """The name of the first weight whose bytes are not those that were written, or ""."""
        return next((n for n, s in self.stacks.items() if zlib.crc32(self.panels(n).data) != s.crc), "")


class Unusable(Exception):
    """Why a file is not used; it goes no further than a line for who debugs."""


def read(path: Path, key: str) -> PackedFile:
    """The file at `path`, if it is whole and was made for `key`.  Raises Unusable, OSError."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise Unusable("not a file that only its user can write")
        stacks = _index(fd, info.st_size, key)
        data = np.frombuffer(mmap.mmap(fd, info.st_size, access=mmap.ACCESS_READ), np.uint8)
        _touch(fd)
        return PackedFile(stacks, data)
    finally:
        os.close(fd)


def _index(fd: int, size: int, key: str) -> dict[str, Stack]:
    head = os.pread(fd, HEAD.size, 0)
    if len(head) < HEAD.size:
        raise Unusable("cut short")
    magic, version, n_bytes, digest = HEAD.unpack(head)
    if magic != MAGIC or version != VERSION:
        raise Unusable("of another kind or version")
    if n_bytes > min(MAX_INDEX_BYTES, size - HEAD.size):
        raise Unusable("its index is larger than it is")
    body = os.pread(fd, n_bytes, HEAD.size)
    if len(body) != n_bytes or hashlib.sha256(body).digest() != digest:
        raise Unusable("its index is damaged")
    try:
        index = json.loads(body)
        if index["key"] != key:
            raise Unusable("made for another file or other kernels")
        if index["size"] != size:
            raise Unusable("cut short")
        stacks = {str(n): Stack(str(s[0]), *map(_whole, s[1:])) for n, s in index["stacks"].items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unusable(f"its index says nothing: {error!r}") from None
    for s in stacks.values():
        if s.at % 64 or s.at < HEAD.size + n_bytes or s.bytes < 1 or s.at + s.bytes > size:
            raise Unusable("a stack lies outside of it")
    return stacks


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _touch(fd: int) -> None:
    """The time of change is the time of last use: the oldest goes first when the quota is full."""
    try:
        os.utime(fd)
    except OSError:
        return


def write(
    path: Path,
    key: str,
    source: str,
    stacks: Mapping[str, tuple[Stack, Sequence[Any]]],
    stop: Callable[[], bool],
) -> None:
    """Writes `path` whole or not at all: a temporary file, pushed to the disk, takes the name at the end.

    `stacks`: what is known of each (place and checksum aside), and its native matrices.  One process writes;
    others that come meanwhile leave it to that one.  Raises Unusable, OSError.
    """
    at, placed = BEGIN, dict[str, Stack]()
    for name, (s, _) in stacks.items():
        placed[name] = Stack(s.format, s.rows, s.width, s.count, at, s.bytes, 0)
        at += -(-s.bytes // ALIGN) * ALIGN
    part = path.with_suffix(PART)
    fd = os.open(
        part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o600
    )
    try:
        _lock(fd, part)
        try:
            os.ftruncate(fd, 0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, at)  # a full disk says so now
            os.ftruncate(fd, at)
            for name, (_, matrices) in stacks.items():
                s = placed[name]
                placed[name] = Stack(
                    s.format, s.rows, s.width, s.count, s.at, s.bytes, _pour(fd, s.at, matrices, stop)
                )
            body = json.dumps(
                {
                    "key": key,
                    "source": source,
                    "size": at,
                    "stacks": {n: list(vars(s).values()) for n, s in placed.items()},
                }
            ).encode()
            if HEAD.size + len(body) > BEGIN:
                raise Unusable("its index is too large")
            _all(fd, HEAD.pack(MAGIC, VERSION, len(body), hashlib.sha256(body).digest()) + body, 0)
            os.fsync(fd)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    finally:
        os.close(fd)
    _settle(path.parent)


def _lock(fd: int, part: Path) -> None:
    """Raises Unusable when another process writes this file, or has just ended doing so."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Unusable("another process writes it") from None
    try:
        same = part.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        same = False
    if not same:  # it was given its name between our opening and locking it
        raise Unusable("another process wrote it")


def _pour(fd: int, at: int, matrices: Sequence[Any], stop: Callable[[], bool]) -> int:
    """Writes the matrices' panels one after another; gives their CRC-32."""
    crc = 0
    for matrix in matrices:
        panels: Bytes = matrix.packed
        for begin in range(0, len(panels), PIECE):
            if stop():
                raise Unusable("the program ends")
            piece = panels[begin : begin + PIECE]
            crc = zlib.crc32(piece.data, crc)
            _all(fd, piece.data, at)
            at += len(piece)
            getattr(os, "fdatasync", os.fsync)(fd)  # in turns, so that the disk is never far behind
    return crc


def _all(fd: int, data: bytes | memoryview, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def _settle(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_room(folder: Path, need: int, limit: int, doomed: Callable[[str], bool]) -> None:
    """Removes what `doomed` says by name and, from the one least used lately on, what exceeds `limit` bytes
    with `need` more.  Models that run keep the maps they have.  Raises Unusable where `need` does not fit,
    OSError.
    """
    if fcntl is None:
        raise Unusable("this system has no file locks")
    if need > limit:
        raise Unusable(f"{need:,} bytes are over the quota of {limit:,}")
    kept = []
    for entry in os.scandir(folder):
        if entry.name.endswith(PART):
            _sweep(entry.path)
        elif entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
            if doomed(entry.name) or _orphan(Path(entry.path)):
                os.unlink(entry.path)
            else:
                info = entry.stat(follow_symlinks=False)
                kept.append((info.st_mtime_ns, info.st_size, entry.path))
    total = sum(size for _, size, _ in kept) + need
    for _, size, oldest in sorted(kept):
        if total <= limit:
            break
        os.unlink(oldest)
        total -= size
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < ROOM * need:
        raise Unusable(f"the disk has less than {ROOM} times its {need:,} bytes left")


def _sweep(part: str) -> None:
    """Removes what a process left that was killed while it wrote."""
    fd = os.open(part, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(part)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(fd)


def _orphan(path: Path) -> bool:
    """Whether the file is of an older version, or the model it was made from is gone."""
    try:
        with open(path, "rb") as file:
            magic, version, n_bytes, _ = HEAD.unpack(file.read(HEAD.size))
            if magic != MAGIC or version != VERSION or n_bytes > MAX_INDEX_BYTES:
                return True
            return not os.path.exists(json.loads(file.read(n_bytes))["source"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return True
