"""Files of cache blocks: append-only segments of records with checksums.  Nothing in a file is believed.

    segment: magic 8 | version u32 | 0 u32 | the model 32 | SHA-256 of these 16 | records, one after another
    record:  magic 8 | bytes of its head u32 | n tokens u16 | n pieces u16 | key 32 | parent 32
             | tokens u32 [n] | bytes of each piece u32 [n] | CRC-32 of each piece u32 [n]
             | SHA-256 of the head so far 16 | the pieces

A key is a SHA-256 over all that the numbers depend on, the tokens up to here included; `parent` is the key of
the block before.  A piece is what one state of the model keeps of the block.  A head that is damaged hides
its own record only: the next one is looked for by its magic.  A record that the file is too short for was
being written when its writer ended.  CRC-32 finds every change of up to 32 neighbouring bits of a piece.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvasir import faults
from kvasir.backends.base import Bytes

MAGIC, VERSION = b"KVPREFIX", 1
HEAD = struct.Struct("<8sII32s")
DIGEST = 16  # bytes of a SHA-256 that guard a head
HEAD_BYTES = HEAD.size + DIGEST
RECORD_MAGIC = b"\x93KVblock"
RECORD = struct.Struct("<8sIHH32s32s")
USUAL_HEAD, WINDOW = 1024, 1 << 20  # bytes read at a time
SUFFIX, PART = ".segment", ".part"


class Damaged(Exception):
    """A record that is not what it should be; it goes no further than a counter."""


@dataclass(frozen=True, slots=True)
class Record:
    """One block (or recurrent state) in a file: its head, which was found whole, and where its pieces are."""

    path: Path
    at: int
    head: bytes

    @property
    def key(self) -> bytes:
        return self.head[16:48]

    @property
    def parent(self) -> bytes:
        return self.head[48:80]

    @property
    def tokens(self) -> tuple[int, ...]:
        n_tokens, _ = self._counts()
        return struct.unpack_from(f"<{n_tokens}I", self.head, RECORD.size)

    @property
    def pieces(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bytes and CRC-32 of each piece."""
        n_tokens, n = self._counts()
        numbers = struct.unpack_from(f"<{2 * n}I", self.head, RECORD.size + 4 * n_tokens)
        return numbers[:n], numbers[n:]

    @property
    def n_bytes(self) -> int:
        """Of its pieces."""
        return sum(self.pieces[0])

    @property
    def end(self) -> int:
        return self.at + self.n_bytes

    def _counts(self) -> tuple[int, int]:
        n_tokens, n_pieces = struct.unpack_from("<HH", self.head, 12)
        return n_tokens, n_pieces


def open_safely(path: Path) -> io.FileIO:
    """A file that only its user can have written.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o022 or info.st_uid != os.geteuid():
        os.close(fd)
        raise OSError(f"{path} is not a file that only its user can write")
    return io.FileIO(fd, "rb")


def scan(path: Path, model: bytes | None, start: int = 0) -> tuple[list[Record], int, int]:
    """Records of a segment from byte `start` on: those that are whole, where the last of them ends, and how
    many heads were damaged.  A segment of another `model` has none.  Raises OSError.
    """
    found, n_damaged = list[Record](), 0
    with open_safely(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not _is_ours(_bytes(file, 0, HEAD_BYTES), model):
            return [], 0, 0
        at = good = max(start, HEAD_BYTES)
        while 0 <= at < size:
            record = _record(path, file, at)
            if record is not None and record.end <= size:
                found.append(record)
                at = good = record.end
            else:
                n_damaged += record is None
                at = _find(file, at + 1)
    return found, good, n_damaged


def _bytes(file: io.FileIO, at: int, count: int) -> bytes:
    """No map: a file may become shorter meanwhile."""
    file.seek(at)
    return file.read(count)


def _find(file: io.FileIO, at: int) -> int:
    """Where the next head may begin, from `at` on; -1 at the end."""
    while len(window := _bytes(file, at, WINDOW)) >= len(RECORD_MAGIC):
        if (place := window.find(RECORD_MAGIC)) >= 0:
            return at + place
        at += len(window) - len(RECORD_MAGIC) + 1
    return -1


def _is_ours(head: bytes, model: bytes | None) -> bool:
    if len(head) < HEAD_BYTES:
        return False
    magic, version, _, own = HEAD.unpack_from(head)
    whole = hashlib.sha256(head[: HEAD.size]).digest()[:DIGEST] == head[HEAD.size :]
    return magic == MAGIC and version == VERSION and whole and (model is None or own == model)


def _record(path: Path, file: io.FileIO, at: int) -> Record | None:
    """The record whose head begins at `at`; None if there is no whole head."""
    head = _bytes(file, at, USUAL_HEAD)
    if len(head) < RECORD.size:
        return None
    magic, n_head, n_tokens, n_pieces, _, _ = RECORD.unpack_from(head)
    if magic != RECORD_MAGIC or n_head != RECORD.size + 4 * n_tokens + 8 * n_pieces + DIGEST:
        return None
    head = head[:n_head] if n_head <= len(head) else _bytes(file, at, n_head)
    if len(head) != n_head or hashlib.sha256(head[:-DIGEST]).digest()[:DIGEST] != head[-DIGEST:]:
        return None
    return Record(path, at + n_head, head)


def read(
    file: io.FileIO,
    record: Record,
    key: bytes,
    parent: bytes,
    tokens: Sequence[int],
    pieces: Sequence[Bytes],
) -> None:
    """Fills `pieces` with the record's.  Raises Damaged unless it is of that key, parent and tokens and every
    checksum is right (`pieces` then hold anything); OSError.
    """
    if (record.key, record.parent, record.tokens) != (key, parent, tuple(tokens)):
        raise Damaged("another block")
    sizes, sums = record.pieces
    if sizes != tuple(len(p) for p in pieces):
        raise Damaged("a block of another shape")
    file.seek(record.at)
    faults.reach("cache.read")
    for piece, crc in zip(pieces, sums, strict=True):
        left = memoryview(piece.data).cast("B")
        while left:
            n_read = file.readinto(left)
            if not n_read:
                raise Damaged("cut short")
            left = left[n_read:]
        if zlib.crc32(piece.data) != crc:
            raise Damaged("its checksum is wrong")


def head_of(key: bytes, parent: bytes, tokens: Sequence[int], pieces: Sequence[Bytes]) -> bytes:
    """The head of a record with these pieces."""
    n_head = RECORD.size + 4 * len(tokens) + 8 * len(pieces) + DIGEST
    head = RECORD.pack(RECORD_MAGIC, n_head, len(tokens), len(pieces), key, parent)
    head += struct.pack(f"<{len(tokens)}I", *tokens)
    head += struct.pack(f"<{len(pieces)}I", *map(len, pieces))
    head += struct.pack(f"<{len(pieces)}I", *(zlib.crc32(p.data) for p in pieces))
    return head + hashlib.sha256(head).digest()[:DIGEST]


class Writer:
    """Appends records to the segments of a folder, a new one from `segment_bytes` on.  Mutable; used by one
    thread.  `make_room(path, n_bytes)` is asked before a segment is begun, and raises OSError to forbid it.
    """

    def __init__(
        self, folder: Path, model: bytes, segment_bytes: int, make_room: Callable[[Path, int], None]
    ):
        self._folder, self._model, self._segment_bytes = folder, model, segment_bytes
        self._make_room = make_room
        self._file: io.FileIO | None = None
        self._path, self._end, self._number = folder, 0, 0

    def resume(self, path: Path, end: int) -> None:
        """Goes on behind byte `end` of a segment; what lies after it was cut short, and goes."""
        self._close()
        if end >= self._segment_bytes or end < HEAD_BYTES:
            return
        file = io.FileIO(os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)), "r+b")
        file.truncate(end)
        self._file, self._path, self._end = file, path, end

    def append(self, key: bytes, parent: bytes, tokens: Sequence[int], pieces: Sequence[Bytes]) -> Record:
        """The record, written.  Raises OSError; then nothing of it is left."""
        head = head_of(key, parent, tokens, pieces)
        n_bytes = len(head) + sum(map(len, pieces))
        file = self._place(n_bytes)
        try:
            file.seek(self._end)
            _write(file, head)
            for n, piece in enumerate(pieces):
                if n == len(pieces) // 2:
                    faults.reach("cache.write")
                _write(file, piece.data)
        except BaseException:
            file.truncate(self._end)
            raise
        record = Record(self._path, self._end + len(head), head)
        self._end += n_bytes
        return record

    def settle(self) -> None:
        """Pushes what was written to the disk.  Raises OSError."""
        if self._file:
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())

    def close(self) -> None:
        """Ends the segment, to be resumed perhaps."""
        self._close()

    def _place(self, n_bytes: int) -> io.FileIO:
        """The segment that a record goes into.  One that somebody removed is not written any more."""
        full = self._end > HEAD_BYTES and self._end + n_bytes > self._segment_bytes
        if self._file and (full or os.fstat(self._file.fileno()).st_nlink == 0):
            if full:
                self.settle()
            self._close()
        return self._file or self._begin(n_bytes)

    def _begin(self, n_bytes: int) -> io.FileIO:
        names = [p.name for p in self._folder.iterdir() if p.suffix == SUFFIX]
        self._number = max([self._number, *(int(n[:8]) for n in names if n[:8].isdigit())]) + 1
        path = self._folder / f"{self._number:08d}-{secrets.token_hex(4)}{SUFFIX}"
        self._make_room(path, max(self._segment_bytes, HEAD_BYTES + n_bytes))
        part = path.with_suffix(PART)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        file = io.FileIO(os.open(part, flags, 0o600), "r+b")
        try:
            head = HEAD.pack(MAGIC, VERSION, 0, self._model)
            _write(file, head + hashlib.sha256(head).digest()[:DIGEST])
            os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            file.close()
            part.unlink(missing_ok=True)
            raise
        settle_folder(self._folder)
        self._file, self._path, self._end = file, path, HEAD_BYTES
        return file

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self._file, self._end = None, 0


def settle_folder(folder: Path) -> None:
    """A new name in a folder is pushed to the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def segments_of(folder: Path) -> Iterator[Path]:
    """A folder's segments, oldest first; none if there is no such folder."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix == SUFFIX)
    except OSError:
        return
    yield from (folder / name for name in names)


def _write(file: io.FileIO, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[file.write(left) :]
