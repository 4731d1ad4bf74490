"""Decode steps in buckets, each recorded once as a CUDA graph and then replayed.

A decode of N sequences runs as one of the next bucket's size: rows of padding are sequences of one token in
the scratch block, so an answer never depends on them.  A bucket's first steps run eagerly, over the very
memory that its graph will use; meanwhile a thread of its own records the graph.  All graphs share one memory
pool and one arena: only one runs at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from kvasir.backends.base import Batch
from kvasir.backends.cuda.frame import Frame, Inputs

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
WIDTHS = (16, 64, 256, 1024, 4096, 16384)  # blocks a sequence: 256 tokens to 262,144


@dataclass(frozen=True)
class Key:
    """A bucket: so many sequences, block tables so wide."""

    n_sequences: int
    n_blocks: int


def bucket_of(batch: Batch) -> Key | None:
    """The bucket that a batch runs in; None for what is no decode: several rows a sequence, rows without
    logits, adapters, or more than the largest bucket.
    """
    n = len(batch.slots)
    if len(batch.tokens) != n or len(batch.logit_rows) != n or len(batch.adapters):
        return None
    if n > BUCKETS[-1] or batch.blocks.shape[1] > WIDTHS[-1]:
        return None
    width = next(w for w in WIDTHS if w >= batch.blocks.shape[1])
    return Key(next(b for b in BUCKETS if b >= n), width)


class Recorder(Protocol):
    """Records what a function launches, to be launched again."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]: ...


class CudaRecorder:
    """CUDA graphs over one memory pool.  Other threads may launch work meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay  # type: ignore[no-any-return, unused-ignore]


@dataclass
class Bucket:
    """One bucket.  Mutable: `replay` is set, once, by whoever records."""

    inputs: Inputs
    frame: Frame
    work: Callable[[], None]
    replay: Callable[[], None] | None = None
    asked: bool = False
    failed: str = ""

    def run(self) -> bool:
        """Runs it; True if from the graph."""
        replay = self.replay
        (replay or self.work)()
        return replay is not None


@dataclass
class Graphs:
    """All buckets.  Mutable; used by the thread that steps, while one more records.

    `make` gives a bucket's memory and work.  Without a recorder everything stays eager.
    """

    make: Callable[[Key], Bucket]
    recorder: Recorder | None
    in_background: bool = True
    buckets: dict[Key, Bucket] = field(default_factory=dict)
    n_replayed: int = 0
    n_eager: int = 0
    _thread: threading.Thread | None = None

    def bucket(self, key: Key) -> Bucket:
        if key not in self.buckets:
            self.buckets[key] = self.make(key)
        return self.buckets[key]

    def run(self, key: Key) -> None:
        """Runs a bucket whose inputs are filled.  After its first eager step its graph is recorded."""
        own = self.bucket(key)
        if own.run():
            self.n_replayed += 1
            return
        self.n_eager += 1
        if self.recorder is None or own.asked or (self._thread and self._thread.is_alive()):
            return
        own.asked = True
        if self.in_background:
            self._thread = threading.Thread(target=self._record, args=(own,), name="graphs", daemon=True)
            self._thread.start()
        else:
            self._record(own)

    def _record(self, own: Bucket) -> None:
        assert self.recorder is not None
        try:
            own.replay = self.recorder.record(own.work)
        except Exception as error:  # the bucket stays eager, and says why
            own.failed = f"{type(error).__name__}: {error}"

    def settle(self) -> None:
        """Until nothing is being recorded."""
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        self.settle()
        self.buckets.clear()
