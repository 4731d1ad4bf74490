"""A program with scripted logits: the next token of a sequence is a function of all its tokens so far.

It keeps its "cache" in the blocks it is given, and with slots its memory of the past in them alone, so a
scheduler that mixes up blocks, positions or slots gives wrong tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kvasir.backends.base import BLOCK, Batch, Bytes, Floats, Memory
from kvasir.plan import Plan
from kvasir.sampling import SamplingParams, choose, penalize

VOCAB = 64
LONGEST = 4096  # tokens that a slot remembers


def next_token(tokens: Sequence[int]) -> int:
    """The scripted law: a hash of everything that came before, never below 2."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return 2 + state % (VOCAB - 2)


class FakeProgram:
    """Mutable: `cells` is the cache (token by cell), `steps` the sizes of the steps so far."""

    def __init__(
        self,
        n_blocks: int,
        context: int = 0,
        n_slots: int = 0,
        law: Callable[[Sequence[int]], int] = next_token,
    ):
        self.law = law
        self.plan = Plan("fake", context=context)
        x = self.plan.take(self.plan.embed("token_embd", VOCAB, 8))
        self.plan.output = self.plan.linear(x, "output", VOCAB)
        self.plan.state("past", "paged", 1)
        if n_slots:
            self.plan.state("memory", "slot", 1)
        self.slotted = n_slots > 0
        self.memory = Memory(n_blocks, max(n_slots, 1))
        self.cells = np.full(n_blocks * BLOCK, -1)
        self.slots = np.zeros((n_slots, 1 + LONGEST), np.int64)  # how many tokens, and the tokens
        self.steps: list[list[int]] = []
        self.fail_at = -1
        self.adapters: list[tuple[int, bool]] = []  # what came and went, by number

    def step(self, batch: Batch) -> Floats:
        if len(self.steps) == self.fail_at:
            raise RuntimeError("scripted failure")
        self.steps.append(np.diff(batch.starts).tolist())
        owners: dict[int, int] = {}
        rows = []
        for n, part in batch.sequences():
            at = batch.positions[part]
            assert (np.diff(at) == 1).all(), "positions of a sequence run without gaps"
            blocks = batch.blocks[n]
            self.cells[blocks[at // BLOCK] * BLOCK + at % BLOCK] = batch.tokens[part]
            for block in blocks[at[0] // BLOCK : at[-1] // BLOCK + 1]:
                assert owners.setdefault(int(block), n) == n, "two sequences write one block"
            for row in range(part.start, part.stop):
                past = np.arange(batch.positions[row] + 1)
                known = self.cells[blocks[past // BLOCK] * BLOCK + past % BLOCK].tolist()
                if self.slotted:
                    own = self.slots[batch.slots[n]]
                    count = own[0] if batch.positions[row] else 0
                    own[0], own[1 + count] = count + 1, batch.tokens[row]
                    known = own[1 : 2 + count].tolist()
                if row in batch.logit_rows:
                    rows.append(self.law(known))
        logits = np.zeros((len(rows), VOCAB), np.float32)
        logits[np.arange(len(rows)), rows] = 10
        return logits

    def watch(self, batch: Batch, seen: Callable[..., None]) -> Floats:
        return self.step(batch)

    def copy_slot(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]

    def block(self, number: int) -> tuple[Bytes, ...]:
        return (self.cells[number * BLOCK : (number + 1) * BLOCK].view(np.uint8),)

    def slot(self, number: int) -> tuple[Bytes, ...]:
        return (self.slots[number].view(np.uint8),)

    def adapt(self, at: int, adapter: object) -> None:
        self.adapters.append((at, adapter is not None))

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        penalize(logits, recent, params)
        return choose(logits, params, drawn)

    def referenced(self) -> frozenset[str]:
        return frozenset()


class Resting(FakeProgram):
    """One whose steps can be made in pieces: `n_pieces` calls, and all of it is read and written in the last
    one, so that whoever was given its blocks or slots meanwhile gets wrong tokens, or it does.
    """

    n_pieces = 3

    def begin_aside(self, batch: Batch) -> None:
        self.aside, self.n_left = batch, self.n_pieces

    def go_on(self, seconds: float) -> Floats | None:
        self.n_left = 0 if seconds == float("inf") else self.n_left - 1
        return self.step(self.aside) if self.n_left <= 0 else None


def expected(
    prompt: Sequence[int], count: int, law: Callable[[Sequence[int]], int] = next_token
) -> list[int]:
    """The `count` tokens that the law gives after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(law(tokens))
    return tokens[len(prompt) :]
