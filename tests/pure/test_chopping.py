"""The law: any chopping of the same tokens into steps, with any neighbours, gives the same logits.

It covers prefill in chunks, mixing, prefix hits and speculation at once.  The reference keeps it to rounding
(numpy's products may sum in another order for another number of rows); the CPU backend bit for bit, on any
number of threads.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from kvasir.backends.base import Program
from kvasir.errors import UsageError
from kvasir.plan.ops import Experts
from tests.parity.cases import CASES
from tests.stepping import Array, Step, chopped, error, golden, program, run

try:
    from kvasir.backends.cpu import CpuBackend

    CpuBackend(threads=1)
    HAS_CPU = True
except (ImportError, UsageError):
    HAS_CPU = False

needs_cpu = pytest.mark.skipif(not HAS_CPU, reason="the extension is not built")
DECODERS = [n for n, c in CASES.items() if not c.model.startswith("Bert")]
ENCODERS = [n for n in CASES if n not in DECODERS]


@cache
def cpu(name: str, threads: int) -> Program:
    return program(name, CpuBackend(threads=threads, oversubscribe=True))


def sequences(name: str) -> list[Array]:
    """The golden tokens, a shorter text, and one that begins as the first."""
    tokens, _ = golden(name)
    return [tokens, tokens[::-2].copy(), np.concatenate([tokens[:9], tokens[:14]])]


def plans(name: str) -> list[list[Step]]:
    """Several ways to compute the sequences of `name`."""
    lengths = [len(s) for s in sequences(name)]
    alone: list[Step] = [[(n, length)] for n, length in enumerate(lengths)]
    at_once: list[Step] = [[(n, length) for n, length in enumerate(lengths)]]
    one_by_one: list[Step] = [[(n, 1)] for n, length in enumerate(lengths) for _ in range(length)]
    rng = np.random.default_rng(len(name))
    return [alone, at_once, one_by_one, chopped(rng, lengths, 3), chopped(rng, lengths, 12)]


@pytest.mark.parametrize("name", DECODERS)
def test_reference_keeps_the_law_to_rounding(name: str) -> None:
    p, texts = program(name), sequences(name)
    first, *others = (run(p, texts, steps, seed) for seed, steps in enumerate(plans(name)))
    for other in others:
        assert max(error(got, want) for got, want in zip(other, first, strict=True)) < 1e-5


@needs_cpu
@pytest.mark.parametrize("name", CASES)
def test_cpu_gives_the_logits_of_transformers(name: str) -> None:
    tokens, want = golden(name)
    got = run(cpu(name, 2), [tokens], [[(0, len(tokens))]])[0]
    if CASES[name].mxfp4:
        # Weights of 4 bits meet activations rounded to 8, as in ggml; then a router may choose another expert
        # and that row is another row.  Most rows are close.
        rows = np.abs(got - want).max(1) / np.abs(want).max()
        assert np.median(rows) < 0.05
        exact = program(name, CpuBackend(threads=2, as_reference=[Experts]))
        assert error(run(exact, [tokens], [[(0, len(tokens))]])[0], want) < 1e-4
    else:
        assert error(got, want) < 1e-4


@needs_cpu
@pytest.mark.parametrize("name", DECODERS)
def test_cpu_keeps_the_law_bit_for_bit(name: str) -> None:
    texts = sequences(name)
    want = run(cpu(name, 1), texts, plans(name)[0])
    for threads in (1, 2, 3, 4):
        for seed, steps in enumerate(plans(name)):
            got = run(cpu(name, threads), texts, steps, seed)
            assert all((g == w).all() for g, w in zip(got, want, strict=True)), (
                f"{threads} threads, way {seed}"
            )


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_a_text_the_same_row_in_any_company(name: str) -> None:
    texts, steps = sequences(name), plans(name)[:2]
    alone, together = (run(program(name), texts, s) for s in steps)
    assert all(error(t, a) < 1e-5 for t, a in zip(together, alone, strict=True))


@needs_cpu
@pytest.mark.parametrize("name", ENCODERS)
def test_cpu_gives_a_text_the_same_bits_in_any_company(name: str) -> None:
    texts, steps = sequences(name), plans(name)[:2]
    rows = [run(cpu(name, threads), texts, s) for s in steps for threads in (1, 3)]
    assert all((r[n] == rows[0][n]).all() for r in rows for n in range(len(texts)))
