"""Runs programs in tests: any tokens in any steps, in scattered cache blocks; compares with golden logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kvasir.backends.base import BLOCK, Backend, Batch, Memory, Program
from kvasir.backends.reference import Reference
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from tests.parity.cases import CASES, GOLDEN

Array = np.ndarray
Step = Sequence[tuple[int, int]]  # (sequence, how many of its next tokens) each


def golden(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [T] and Transformers' logits [T, V] (for an encoder [1, D])."""
    with np.load(GOLDEN / name / "golden.npz") as file:
        return file["tokens"], file["logits"]


def program(
    name: str,
    backend: Backend | None = None,
    path: Path | None = None,
    kv_format: str = "f32",
) -> Program:
    """A tiny model of tests/golden, compiled."""
    plan, weights = build(open_checkpoint(path or GOLDEN / name), CASES[name].context)
    return (backend or Reference()).compile(plan, weights, Memory(32, 8, kv_format))


def run(p: Program, sequences: Sequence[Array], steps: Iterable[Step], seed: int = 0) -> list[np.ndarray]:
    """The logits of every token of every sequence, [len, V] each, computed in these steps.

    Cache blocks and slots are dealt out in random order.
    """
    rng = np.random.default_rng(seed)
    need = [-(-len(s) // BLOCK) for s in sequences]
    dealt = rng.permutation(p.memory.n_blocks)[: sum(need)].astype(np.int32)
    blocks = np.full((len(sequences), max(need)), -1, np.int32)
    for n, own in enumerate(np.split(dealt, np.cumsum(need)[:-1])):
        blocks[n, : len(own)] = own
    slots = rng.permutation(p.memory.n_slots)[: len(sequences)].astype(np.int32)
    done, out = [0] * len(sequences), [list[np.ndarray]() for _ in sequences]
    for step in steps:
        rows = [np.arange(done[n], done[n] + count) for n, count in step]
        starts = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        tokens = np.concatenate([sequences[n][r] for (n, _), r in zip(step, rows, strict=True)])
        which = [n for n, _ in step]
        batch = Batch(tokens.astype(np.int32), np.concatenate(rows).astype(np.int32), starts, blocks[which],
                      slots[which], np.arange(starts[-1], dtype=np.int32))  # fmt: skip
        y = p.step(batch)
        for i, (n, count) in enumerate(step):
            own = (
                slice(starts[i], starts[i + 1]) if p.plan.states else slice(i, i + 1)
            )  # encoders: one a text
            out[n].append(y[own].copy())
            done[n] += count
    assert done == [len(s) for s in sequences]
    return [np.concatenate(o) for o in out]


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference over the largest value wanted."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def compare(name: str, backend: Backend | None = None, path: Path | None = None) -> float:
    """How far a whole prefill is from the golden logits."""
    tokens, want = golden(name)
    return error(run(program(name, backend, path), [tokens], [[(0, len(tokens))]])[0], want)


def chopped(rng: np.random.Generator, lengths: Sequence[int], most: int = 7) -> list[Step]:
    """Random steps that compute all tokens of all sequences: 1 to `most` at a time, some sequences a step."""
    left, steps = list(lengths), list[Step]()
    while any(left):
        chosen = [n for n, k in enumerate(left) if k and rng.random() < 0.7]
        step = [(n, int(rng.integers(1, min(most, left[n]) + 1))) for n in chosen]
        for n, count in step:
            left[n] -= count
        if step:
            order = rng.permutation(len(step))
            steps.append([step[i] for i in order])
    return steps
