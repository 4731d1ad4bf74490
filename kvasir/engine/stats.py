"""What an engine has done, and how full it is: totals that only grow, and what there is now."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import field
from time import perf_counter

from kvasir.chat import FinishReason
from kvasir.engine.sequence import Sequence
from kvasir.records import dataclass


@dataclass(frozen=True)
class DiskStats:
    """What the prefix cache's disk did: requests that began with blocks from it (hits), or looked for more
    and found none (misses), the tokens that they brought; records found damaged, tries that the disk or the
    system refused; blocks written, and those that left memory too fast to be.
    """

    n_hits: int = 0
    n_misses: int = 0
    n_tokens: int = 0
    n_corrupt: int = 0
    n_failed: int = 0
    n_written: int = 0
    n_dropped: int = 0
    n_blocks: int = 0  # there are now
    read_bytes: int = 0
    written_bytes: int = 0


class Tally:
    """Counts by name that several threads add to.  Mutable and thread-safe."""

    def __init__(self) -> None:
        self._counts, self._lock = Counter[str](), threading.Lock()

    def add(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    def read(self) -> Counter[str]:
        with self._lock:
            return Counter(self._counts)


@dataclass(frozen=True)
class Stats:
    """A snapshot.  Counts and seconds since the engine began; `n_blocks_kept` are in the prefix cache alone
    and give way when blocks are wanted.
    """

    n_running: int
    n_waiting: int
    n_blocks: int
    n_blocks_free: int
    n_blocks_kept: int
    n_steps: int
    n_rows: int  # computed: prompts, answers and guesses
    n_prompt: int  # tokens of prompts let in, of which
    n_cached: int  # were known already
    n_generated: int
    n_drafted: int
    n_accepted: int
    n_preempted: int
    n_finished: dict[FinishReason, int]
    busy_s: float  # inside steps
    age_s: float
    n_pinned: int = 0  # blocks that stay in the prefix cache
    disk: DiskStats = DiskStats()

    @property
    def occupancy(self) -> float:
        """The share of the KV cache that sequences hold now."""
        return 1 - (self.n_blocks_free + self.n_blocks_kept) / self.n_blocks

    @property
    def generation_rate(self) -> float:
        """Tokens generated for all requests together, a second of work."""
        return self.n_generated / self.busy_s if self.busy_s else 0.0


@dataclass
class Totals:
    """The counts of an engine.  Mutable; touched by the engine alone."""

    n_steps: int = 0
    n_rows: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_preempted: int = 0
    n_finished: dict[FinishReason, int] = field(default_factory=dict)
    busy_s: float = 0.0
    begun_at: float = field(default_factory=perf_counter)

    def stepped(self, n_rows: int, n_tokens: int, took_s: float) -> None:
        """One more step of so many rows, which gave so many tokens."""
        self.n_steps += 1
        self.n_rows += n_rows
        self.n_generated += n_tokens
        self.busy_s += took_s

    def ended(self, sequence: Sequence, reason: FinishReason) -> None:
        """One more sequence is done; what it was is counted now."""
        if sequence.begun_at:
            self.n_prompt += sequence.n_prompt
        self.n_cached += sequence.n_cached
        self.n_drafted += sequence.n_drafted
        self.n_accepted += sequence.n_accepted
        self.n_preempted += sequence.n_preempted
        self.n_finished[reason] = self.n_finished.get(reason, 0) + 1
