"""A program whose logits are chance: a function of all tokens so far, so that any batch gives the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvasir.backends.base import BLOCK, Batch, Floats, Memory
from kvasir.engine.engine import Engine
from kvasir.grammar.compile import Grammars
from kvasir.plan import Plan
from kvasir.sampling import SamplingParams, choose, penalize
from kvasir.structured import StructuredOutputsParams
from tests.grammar.words import letters

N = letters().n_vocab
CLOSING = [t for t in range(N) if letters().token_bytes(t) in (b'"', b'"}', b"}", b"]", b",", b'":', b":")]


class Chance:
    """Mutable: `cells` is the cache.  What closes a JSON text is likelier, else no text came to an end."""

    def __init__(self, n_blocks: int = 400, bias: dict[int, float] | None = None):
        self.plan = Plan("chance")
        x = self.plan.take(self.plan.embed("token_embd", N, 8))
        self.plan.output = self.plan.linear(x, "output", N)
        self.memory = Memory(n_blocks)
        self.cells = np.full(n_blocks * BLOCK, -1)
        self.bias = bias or {}

    def step(self, batch: Batch) -> Floats:
        rows = []
        for n, part in batch.sequences():
            at, blocks = batch.positions[part], batch.blocks[n]
            self.cells[blocks[at // BLOCK] * BLOCK + at % BLOCK] = batch.tokens[part]
            for row in range(part.start, part.stop):
                if row in batch.logit_rows:
                    past = np.arange(batch.positions[row] + 1)
                    rows.append(self.logits(self.cells[blocks[past // BLOCK] * BLOCK + past % BLOCK]))
        return np.array(rows, np.float32).reshape(len(rows), N)

    def logits(self, tokens: np.ndarray) -> Floats:
        made = np.random.default_rng(tokens.tolist()).normal(size=N).astype(np.float32)
        made[CLOSING] += 2
        for token, bias in self.bias.items():
            made[token] += bias
        return made

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        penalize(logits, recent, params)
        return choose(logits, params, drawn)

    def referenced(self) -> frozenset[str]:
        return frozenset()


GRAMMARS = Grammars(letters(), N, letters().eos_ids)


def answers(
    engine: Engine,
    wishes: Sequence[StructuredOutputsParams],
    prompts: Sequence[str] = (),
    think: bool | None = False,
    **params: object,
) -> list[tuple[str, str | None]]:
    """The text and the finish reason for each wish, all at once."""
    sequences = []
    for n, wish in enumerate(wishes):
        prompt = letters().encode(prompts[n % len(prompts)] if prompts else f"prompt {n}", False)
        made = SamplingParams(
            **{"max_tokens": 120, "seed": n, "structured_outputs": wish, **params}  # type: ignore[arg-type]
        )
        assert made.constraint is not None
        guide = GRAMMARS.guide(made.constraint, prompt, think)
        sequences.append(engine.sequence(prompt, made, guide=guide))
        engine.add(sequences[-1])
    while engine.has_work:
        engine.step()
        engine.check()
    ends = letters().eos_ids
    return [
        (letters().decode([t for t in s.generated if t not in ends], False), s.finished) for s in sequences
    ]


def engine(n_blocks: int = 400, step_tokens: int = 512, bias: dict[int, float] | None = None) -> Engine:
    return Engine(Chance(n_blocks, bias), letters().eos_ids, step_tokens=step_tokens)  # type: ignore[arg-type]
