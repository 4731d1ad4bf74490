"""One answer in the making: its tokens, how many of them the cache holds, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

from kvasir.chat import FinishReason, Metrics
from kvasir.sampling import SamplingParams


@dataclass(eq=False)
class Sequence:
    """Mutable, and changed in this file only.

    `tokens[:n_prompt]` were given, the rest were generated; the cache holds the first `n_computed` of them in
    `blocks`.  `limit` is the most tokens the sequence may ever have.  Times are seconds of `perf_counter`.
    """

    tokens: list[int]
    params: SamplingParams
    limit: int
    seed: int
    index: int = 0
    n_prompt: int = 0
    n_truncated: int = 0
    n_computed: int = 0
    n_preempted: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    finished: FinishReason | None = None
    asked_at: float = field(default_factory=perf_counter)
    begun_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)

    @property
    def n_pending(self) -> int:
        """Tokens it has and has not computed: what a step may be given at most."""
        return len(self.tokens) - self.n_computed

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.n_prompt :]

    def begin(self, slot: int) -> None:
        """Admitted: `slot` holds its recurrent state (-1 where the plan has none)."""
        self.slot = slot
        self.begun_at = self.begun_at or perf_counter()

    def hold(self, blocks: list[int]) -> None:
        self.blocks += blocks

    def computed(self, count: int) -> None:
        self.n_computed += count

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.last_at = perf_counter()
        self.first_at = self.first_at or self.last_at

    def preempt(self) -> list[int]:
        """Forgets what the cache held; the blocks to give back.  Its tokens stay: it resumes by computing
        them again.
        """
        blocks, self.blocks = self.blocks, []
        self.n_computed, self.slot = 0, -1
        self.n_preempted += 1
        return blocks

    def finish(self, reason: FinishReason) -> list[int]:
        """Ends the sequence; the blocks to give back."""
        self.finished = reason
        blocks, self.blocks = self.blocks, []
        self.slot = -1
        self.last_at = self.last_at or perf_counter()
        return blocks

    def metrics(self, load_s: float = 0.0) -> Metrics:
        """Where the time went, as far as it has come."""
        end = self.last_at or perf_counter()
        begun, first = self.begun_at or end, self.first_at or end
        return Metrics(
            queue_s=begun - self.asked_at,
            load_s=load_s,
            prefill_s=first - begun,
            decode_s=end - first,
            ttft_s=first - self.asked_at,
            total_s=end - self.asked_at,
            n_prompt=self.n_prompt,
            n_truncated=self.n_truncated,
            n_generated=self.n_generated,
            n_preempted=self.n_preempted,
        )
