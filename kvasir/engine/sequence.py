"""One answer in the making: its tokens, how many of them the cache holds, and where."""

from __future__ import annotations

from dataclasses import field
from time import perf_counter

from kvasir.backends.base import BLOCK
from kvasir.chat import FinishReason, Metrics, TokenLogprob
from kvasir.engine.radix import Node
from kvasir.grammar.guide import Guide
from kvasir.records import dataclass
from kvasir.sampling import SamplingParams


@dataclass(eq=False)
class Sequence:
    """Mutable, and changed in this file only.

    `tokens[:n_prompt]` were given, the rest were generated; the cache holds the first `n_computed` of them in
    `blocks`; the first `n_filed` blocks are those of the prefix cache's path to `node`.  `limit` is the most
    tokens the sequence may ever have.  `adapter`: the key of the adapter that it is computed with, or empty.
    Times are seconds of `perf_counter`.
    """

    tokens: list[int]
    params: SamplingParams
    limit: int
    seed: int
    index: int = 0
    n_prompt: int = 0
    n_truncated: int = 0
    n_computed: int = 0
    n_again: int = 0  # pending tokens that were computed before, beside wrong guesses
    n_preempted: int = 0
    tenant: str = ""
    adapter: str = ""
    priority: int = 0
    pin: str | None = None  # how the prompt begins, where it is to stay in the prefix cache
    n_hold: int = 0  # tokens of the prompt that are to stay in the prefix cache for hold_s, if there is room
    hold_s: float = 0.0
    n_held: int = 0  # of these, that do
    n_cached: int = 0
    n_from_disk: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_filed: int = 0
    n_kept: int = 0  # tokens before the newest recurrent state of it that is kept
    node: Node | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    snapshot: Node | None = None  # after which the newest state of its answer is kept
    guide: Guide | None = None  # what the answer is held to
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
    def is_decoding(self) -> bool:
        """Whether its next step gives a token, and has few rows."""
        return self.n_pending == 1 or self.n_again > 0

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.n_prompt :]

    @property
    def is_scored(self) -> bool:
        """Whether the log probabilities of its prompt are wanted and not all known; once for all answers."""
        return (
            self.params.prompt_logprobs is not None
            and self.index == 0
            and len(self.prompt_logprobs) < self.n_prompt
        )

    @property
    def realm(self) -> str:
        """Whose prefixes it may share: its tenant's, with the same adapter."""
        return self.realm_of(self.tenant, self.adapter)

    @staticmethod
    def realm_of(tenant: str, adapter: str = "") -> str:
        return f"{tenant}\0{adapter}"

    @property
    def most_drafts(self) -> int:
        """Guessed tokens that could still become part of it, after the one that is sure to come."""
        left = self.limit - len(self.tokens)
        if self.params.max_tokens is not None:
            left = min(left, self.params.max_tokens - self.n_generated)
        return left - 1

    def allowed(self, drafts: list[int]) -> tuple[int, ...]:
        """Guesses that may be right: what its constraint forces, else as many of `drafts` as it allows."""
        if not self.guide:
            return tuple(drafts)
        likely = self.guide.forced() or drafts
        return tuple(likely[: self.guide.valid_prefix(likely)])

    def begin(self, slot: int, path: list[Node]) -> None:
        """Admitted: `slot` holds its recurrent state (-1 where the plan has none); `path` is known
        already.
        """
        self.slot = slot
        self.blocks = [node.block for node in path]
        self.n_filed, self.n_computed = len(path), len(path) * BLOCK
        self.n_kept = self.n_computed
        self.node = path[-1] if path else None
        if not self.begun_at:
            self.begun_at, self.n_cached = perf_counter(), min(self.n_computed, self.n_prompt)

    def hold(self, blocks: list[int]) -> None:
        self.blocks += blocks

    def scored(self, position: int, logprob: TokenLogprob) -> None:
        """The log probability of its prompt's token at `position`; nothing new after a preemption."""
        if position == len(self.prompt_logprobs):
            self.prompt_logprobs.append(logprob)

    def computed(self, count: int) -> None:
        self.n_computed += count
        self.n_again = 0

    def rewind(self, slot: int, count: int) -> int:
        """Takes back the last `count` rows: its recurrent state is the one before them, in `slot`.  They are
        computed again with what comes next.  The slot to give back.
        """
        own, self.slot = self.slot, slot
        self.n_computed -= count
        self.n_again = self.n_pending
        return own

    def file(self, node: Node) -> None:
        """Its next full block is now that of `node`."""
        self.node = node
        self.n_filed += 1

    def swap(self, at: int, block: int) -> int:
        """Takes `block` for its own block `at`; the one to give back."""
        own, self.blocks[at] = self.blocks[at], block
        return own

    def loaded(self, n_tokens: int) -> None:
        """So many of its tokens came from disk."""
        self.n_from_disk = n_tokens

    def pinned(self) -> None:
        """Its prompt is pinned: once is enough."""
        self.pin = None

    def held(self, n_tokens: int) -> None:
        """So much of its prompt is held: once is enough."""
        self.n_hold, self.n_held = 0, n_tokens

    def keep(self, snapshot: Node | None) -> None:
        """The newest state of its answer is kept after this node."""
        self.snapshot = snapshot

    def keep_at(self, n_tokens: int) -> None:
        """The state after so many of its tokens is kept."""
        self.n_kept = n_tokens

    def drafted(self, n_drafts: int, n_accepted: int) -> None:
        self.n_drafted += n_drafts
        self.n_accepted += n_accepted

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        if self.guide:
            self.guide.accept(token_id)
        self.last_at = perf_counter()
        self.first_at = self.first_at or self.last_at

    def preempt(self) -> list[int]:
        """Forgets what the cache held; the blocks to give back.  Its tokens stay: it resumes by computing
        them again.
        """
        self.n_computed = self.n_again = 0
        self.n_preempted += 1
        return self._leave()

    def finish(self, reason: FinishReason) -> list[int]:
        """Ends the sequence; the blocks to give back."""
        self.finished = reason
        self.last_at = self.last_at or perf_counter()
        return self._leave()

    def _leave(self) -> list[int]:
        blocks, self.blocks = self.blocks, []
        self.slot, self.n_filed, self.node, self.snapshot = -1, 0, None, None
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
            n_cached=self.n_cached,
            n_from_disk=min(self.n_from_disk, self.n_cached),
            n_held=self.n_held,
            n_drafted=self.n_drafted,
            n_accepted=self.n_accepted,
            n_truncated=self.n_truncated,
            n_generated=self.n_generated,
            n_preempted=self.n_preempted,
        )
