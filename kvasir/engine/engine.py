"""The loop: schedule, step, choose, append.  Token ids in, token ids out; text is somebody else's
business.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvasir.backends.base import BLOCK, Batch, Floats, Program
from kvasir.chat import FinishReason, TokenLogprob
from kvasir.engine.blocks import BlockPool
from kvasir.engine.scheduler import Part, Scheduler
from kvasir.engine.sequence import Sequence
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams, logprobs, uniform

STEP_TOKENS = 512  # rows a step at most: long enough to be limited by arithmetic, short enough to share


@dataclass(frozen=True)
class Token:
    """What a step gave a sequence: its next token, and whether that was the last."""

    sequence: Sequence
    token_id: int
    finished: FinishReason | None
    logprob: TokenLogprob | None = None


class Engine:
    """Runs sequences on one program, several in a step.  Mutable; one caller at a time."""

    def __init__(
        self,
        program: Program,
        eos_ids: Iterable[int] = (),
        max_sequences: int = 64,
        step_tokens: int = STEP_TOKENS,
    ):
        slotted = any(s.kind == "slot" for s in program.plan.states.values())
        memory = program.memory
        self.program = program
        self.eos_ids = frozenset(i for i in eos_ids if i < self.n_vocab)
        self.pool = BlockPool(memory.n_blocks)
        self.scheduler = Scheduler(self.pool, memory.n_slots if slotted else 0, max_sequences, step_tokens)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def limit(self, wanted: int | None = None) -> int:
        """Tokens a sequence may have in all: the model's context, or less if `wanted` or the cache is
        smaller.
        """
        limits = [self.pool.n_blocks * BLOCK, self.program.plan.context or None, wanted]
        return min(n for n in limits if n)

    def sequence(
        self,
        tokens: list[int],
        params: SamplingParams,
        max_context: int | None = None,
        index: int = 0,
        n_truncated: int = 0,
    ) -> Sequence:
        """A new sequence, checked and not yet added.

        Raises UsageError when the prompt is empty, leaves no room for an answer, or names tokens out of
        range.
        """
        limit, vocab = self.limit(max_context), self.n_vocab
        self._must_read(tokens)
        if bad := [t for t in (*params.logit_bias, *params.stop_token_ids) if t >= vocab]:
            raise UsageError(
                f"token id {bad[0]} in logit_bias or stop_token_ids is not in the vocabulary of {vocab}"
            )
        if len(tokens) >= limit:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens and the context holds {limit}, answer included",
                hint="shorten the prompt, raise num_ctx, or ask for truncation",
            )
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        return Sequence(list(tokens), params, limit, seed, index, n_truncated=n_truncated)

    @property
    def n_vocab(self) -> int:
        """Token ids that the model reads."""
        return self.program.plan.n_vocab

    def add(self, sequence: Sequence) -> None:
        """Queues it.  Raises CapacityError when the cache could never hold it."""
        self.scheduler.add(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends it now (a stop string, a client that left); nothing happens if it has ended already."""
        if sequence.finished is None:
            self.scheduler.finish(sequence, reason)

    def step(self) -> list[Token]:
        """Computes one step; the tokens it gave, one for each sequence whose known tokens are all
        computed.
        """
        parts = self.scheduler.schedule()
        if not parts:
            return []
        output = self.program.step(self._batch(parts))
        for part in parts:
            part.sequence.computed(part.count)
        ready = [p.sequence for p in parts if p.sequence.n_pending == 0]
        return [self._extend(s, row) for s, row in zip(ready, output, strict=True)]

    def embed(self, prompts: list[list[int]]) -> list[Floats]:
        """One embedding [D] a prompt, for plans that pool; each prompt is computed in one step.

        Raises UsageError for a prompt that is empty, over the context, or has token ids out of range.
        """
        limit, found = self.limit(), []
        for tokens in prompts:
            self._must_read(tokens)
            if len(tokens) > limit:
                raise UsageError(
                    f"the text has {len(tokens)} tokens and the context holds {limit}",
                    hint="shorten the text, or embed it in parts",
                )
            sequence = Sequence(list(tokens), SamplingParams(), limit, seed=0)
            found.append(self.program.step(self._batch([Part(sequence, len(tokens))]))[0])
        return found

    def _must_read(self, tokens: list[int]) -> None:
        """Raises UsageError unless there are tokens, all of them in the vocabulary."""
        if not tokens:
            raise UsageError("the prompt has no tokens", hint="send some text")
        if bad := [t for t in tokens if not 0 <= t < self.n_vocab]:
            raise UsageError(f"token id {bad[0]} is not in the vocabulary of {self.n_vocab}")

    def check(self) -> None:
        """Raises Bug unless every cache block is accounted for."""
        self.scheduler.check()

    def _batch(self, parts: list[Part]) -> Batch:
        counts = [p.count for p in parts]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        firsts = [p.sequence.n_computed for p in parts]
        width = max(len(p.sequence.blocks) for p in parts)
        blocks = np.full((len(parts), max(width, 1)), -1, np.int32)
        for n, part in enumerate(parts):
            blocks[n, : len(part.sequence.blocks)] = part.sequence.blocks
        tokens = [p.sequence.tokens[a : a + p.count] for p, a in zip(parts, firsts, strict=True)]
        wanted = [starts[n + 1] - 1 for n, p in enumerate(parts) if p.count == p.sequence.n_pending]
        return Batch(
            tokens=np.concatenate([np.asarray(t, np.int32) for t in tokens]),
            positions=np.concatenate(
                [np.arange(a, a + c, dtype=np.int32) for a, c in zip(firsts, counts, strict=True)]
            ),
            starts=starts,
            blocks=blocks,
            slots=np.asarray([p.sequence.slot for p in parts], np.int32),
            logit_rows=np.asarray(wanted, np.int32),
        )

    def _extend(self, sequence: Sequence, row: Floats) -> Token:
        """Chooses the sequence's next token from its logits [V] and appends it."""
        params, position = sequence.params, len(sequence.tokens)
        own = logprobs(row) if params.logprobs is not None else None
        logits = np.array(row, np.float32)
        for token, bias in params.logit_bias.items():
            logits[token] += bias
        ends = (self.eos_ids if not params.ignore_eos else frozenset()) | frozenset(params.stop_token_ids)
        if sequence.n_generated < params.min_tokens:
            logits[list(ends)] = -np.inf
        back = params.repeat_last_n
        recent = sequence.tokens if back < 0 else sequence.tokens[-back:] if back else []
        drawn = uniform(sequence.seed, sequence.index, position) if params.temperature else 0.0
        token_id = self.program.choose(logits, recent, params, drawn)
        sequence.append(token_id)
        reason: FinishReason | None = None
        if token_id in ends:
            reason = "stop"
        elif len(sequence.tokens) >= sequence.limit or sequence.n_generated == params.max_tokens:
            reason = "length"
        if reason:
            self.scheduler.finish(sequence, reason)
        logprob = _logprob(own, token_id, params.logprobs) if own is not None else None
        return Token(sequence, token_id, reason, logprob)


def _logprob(own: np.ndarray, token_id: int, count: int | None) -> TokenLogprob:
    best = np.argsort(-own, kind="stable")[: count or 0]
    return TokenLogprob(token_id, float(own[token_id]), tuple((int(t), float(own[t])) for t in best))
