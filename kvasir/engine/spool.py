"""Blocks on their way from memory to disk, and the thread of the lowest priority that writes them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic

from kvasir.backends.base import Bytes
from kvasir.engine.index import Index
from kvasir.engine.radix import Tokens
from kvasir.engine.segments import Writer
from kvasir.engine.shelf import Shelf, write_about
from kvasir.engine.stats import Tally
from kvasir.records import dataclass

QUEUE_BYTES = 64 << 20  # of blocks that left memory and wait to be written; more are not kept
RETRY_S = 60.0  # after a disk that could not be written
LOOK_S = 2.0  # between two looks at what other processes did


@dataclass(frozen=True)
class Write:
    """A block to be written.  `held`: the cache block that `pieces` are the memory of, or -1 for a copy."""

    key: bytes
    parent: bytes
    tokens: Tokens
    pieces: tuple[Bytes, ...]
    held: int = -1

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.pieces))


class Spool:
    """The queue and its thread.  Mutable; the engine's thread puts, and never waits.

    `about` gives what the folder is to say of its model.
    """

    def __init__(self, shelf: Shelf, index: Index, about: Callable[[], Mapping[str, object]], tally: Tally):
        self._shelf, self._index, self._about, self._tally = shelf, index, about, tally
        self.written: deque[int] = deque()  # held blocks that may go
        self._writes: deque[Write] = deque()
        self._queued: set[bytes] = set()
        self._changed = threading.Condition()
        self._queued_bytes, self._looked_at, self._not_before = 0, 0.0, 0.0
        self._allowance, self._allowed_at = shelf.quota / 4, monotonic()
        self._closing = self._ending = self._hurry = False
        self.thread = threading.Thread(target=self._run, name="prefix writer", daemon=True)

    def __contains__(self, key: bytes) -> bool:
        """Whether this block waits to be written."""
        return key in self._queued

    @property
    def is_empty(self) -> bool:
        return not self._queued

    @property
    def is_open(self) -> bool:
        """False for a while after writing failed, and while another process writes."""
        return monotonic() >= self._not_before and self._index.may_become_mine

    def parents(self) -> set[bytes]:
        """Keys of the blocks that one which waits comes after."""
        return {write.parent for write in tuple(self._writes)}

    def may_take(self, n_bytes: int) -> bool:
        """Whether a block that leaves memory is kept: not more of them in an hour than the quota holds."""
        now, quota = monotonic(), self._shelf.quota
        self._allowance = min(quota / 4, self._allowance + (now - self._allowed_at) * quota / 3600)
        self._allowed_at = now
        if self._queued_bytes + n_bytes > QUEUE_BYTES or n_bytes > self._allowance:
            return False
        self._allowance -= n_bytes
        return True

    def put(self, writes: list[Write]) -> None:
        with self._changed:
            for write in writes:
                self._writes.append(write)
                self._queued.add(write.key)
                self._queued_bytes += write.n_bytes if write.held < 0 else 0
            self._changed.notify()

    def look(self, now: bool = False) -> None:
        """Has the thread look at the folder, every now and then."""
        if now or monotonic() - self._looked_at > LOOK_S:
            self._looked_at = monotonic()
            with self._changed:
                self._index.wants_look = True
                self._changed.notify()

    def close(self, last: Callable[[], list[Write]], wait_s: float) -> None:
        """Writes what waits and then the `last`, as far as there is time; any number of times."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
        self.put(last())
        with self._changed:
            self._ending = True
            self._changed.notify()
        self.thread.join(wait_s)
        self._hurry = True
        self.thread.join(0.1)

    # -- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        self._index.look()
        _yield_to_others()
        shelf = self._shelf
        writer = Writer(shelf.folder, shelf.model, shelf.most_segment_bytes, shelf.make_room)
        while not self._hurry:
            with self._changed:
                while not (self._writes or self._ending or self._index.wants_look):
                    self._changed.wait()
                job = self._writes.popleft() if self._writes else None
                wants_look, self._index.wants_look = self._index.wants_look, False
                over = self._ending and job is None
            if wants_look:
                self._index.look()
            if job:
                self._write(writer, job)
            elif over:
                break
        self._end(writer)

    def _write(self, writer: Writer, job: Write) -> None:
        if monotonic() >= self._not_before and job.key not in self._index:
            try:
                if self._index.may_write(writer, self._about()):
                    self._index.add(writer.append(job.key, job.parent, job.tokens, job.pieces))
                    self._tally.add("n_written")
                    self._tally.add("written_bytes", job.n_bytes)
            except Exception:  # a full disk, a folder that cannot be written: left alone for a while
                self._tally.add("n_failed")
                self._not_before = monotonic() + RETRY_S
        with self._changed:
            self._queued.discard(job.key)
            self._queued_bytes -= job.n_bytes if job.held < 0 else 0
        if job.held >= 0:
            self.written.append(job.held)

    def _end(self, writer: Writer) -> None:
        """What was measured is noted for the next start."""
        with suppress(OSError):
            if self._index.is_mine:
                write_about(self._shelf.folder, self._about())
                if not self._hurry:
                    writer.settle()
        with suppress(OSError):
            writer.close()
        self._index.close()


def _yield_to_others() -> None:
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
