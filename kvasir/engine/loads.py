"""Blocks on their way from disk into memory, and the threads that read them."""

from __future__ import annotations

import os
import queue
import threading
from contextlib import suppress
from dataclasses import field
from time import monotonic, time

from kvasir.backends.base import Bytes
from kvasir.engine.index import Index
from kvasir.engine.radix import Node
from kvasir.engine.segments import Damaged, Record, open_safely, read
from kvasir.engine.sequence import Sequence
from kvasir.engine.stats import Tally
from kvasir.records import dataclass

READERS = 2
USED_S = 60.0  # how exact a segment's time of last use is


@dataclass(eq=False)
class Load:
    """What one request waits for.  Mutable; `done` is set by the readers, part by part.

    `path`: what memory has of the prefix already, and `blocks` come after it; `slot` takes the recurrent
    state at the end of both, or is -1.
    """

    sequence: Sequence
    root: Node
    path: list[Node]
    tokens: list[int]
    blocks: list[int]
    slot: int
    n_bytes: int
    begun_at: float = field(default_factory=monotonic)
    ended_at: float = 0.0
    done: dict[int, bool] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return len(self.done) == len(self.blocks) + (self.slot >= 0)

    @property
    def quiet_s(self) -> float:
        """Seconds since anything came."""
        return monotonic() - max(self.begun_at, self.ended_at)


@dataclass(frozen=True)
class Read:
    """A record to be read into `pieces`, as part `number` of a load."""

    load: Load
    number: int
    record: Record
    pieces: tuple[Bytes, ...]


class Readers:
    """Two threads, started when there is something to read.  Mutable; used by the engine's thread."""

    def __init__(self, index: Index, tally: Tally):
        self._index, self._tally = index, tally
        self._jobs: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
        self._landed = threading.Event()
        self._n_threads = 0

    def put(self, job: Read) -> None:
        while self._n_threads < READERS:
            threading.Thread(target=self._run, name="prefix reader", daemon=True).start()
            self._n_threads += 1
        self._jobs.put(job)

    def wait(self, wait_s: float) -> None:
        """Until something has been read."""
        self._landed.wait(wait_s)
        self._landed.clear()

    def close(self) -> None:
        for _ in range(self._n_threads):
            self._jobs.put(None)

    def _run(self) -> None:
        while job := self._jobs.get():
            right = self._read(job)
            job.load.ended_at = monotonic()
            job.load.done[job.number] = right
            self._landed.set()

    def _read(self, job: Read) -> bool:
        own = job.record
        try:
            with open_safely(own.path) as file:
                read(file, own, own.key, own.parent, own.tokens, job.pieces)
                _used_now(file.fileno())
        except Damaged:
            self._index.drop(own)
            self._tally.add("n_corrupt")
            return False
        except Exception:  # whatever ails the disk, the prefix is computed
            self._index.drop(own)
            self._tally.add("n_failed")
            return False
        self._tally.add("read_bytes", own.n_bytes)
        return True


def _used_now(fd: int) -> None:
    """A segment's time of change is that of its last use."""
    with suppress(OSError):
        if time() - os.fstat(fd).st_mtime > USED_S:
            os.utime(fd)
