"""The native sampler against the law in numpy: kvasir/sampling.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.backends.cpu import load
from kvasir.sampling import SamplingParams, choose, penalize
from tests.kernels.small import USABLE


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    share = st.sampled_from([1.0, 0.95, 0.5, 0.1, 0.0])
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.1, 0.8, 1.0, 5.0])),
        top_k=draw(st.sampled_from([0, 1, 5, 40, 9999])),
        top_p=draw(share), typical_p=draw(share), min_p=draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
    )  # fmt: skip


def native(isa: str, logits: np.ndarray, p: SamplingParams, drawn: float) -> int:
    return int(load(isa).sample(logits, p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p, drawn))


@settings(max_examples=300, deadline=None)
@given(params(), st.integers(0, 2**31), st.sampled_from([1, 2, 50, 700]), st.floats(0, 1, exclude_max=True))
def test_the_same_token_as_the_law(p: SamplingParams, seed: int, n: int, drawn: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(n) * rng.choice([0.1, 2, 10])).astype(np.float32)
    logits[rng.random(n) < 0.1] = np.round(logits[0])  # ties
    logits[rng.random(n) < 0.1] = -np.inf
    logits[rng.random(n) < 0.05] = np.nan
    logits[rng.integers(n)] = 1.0
    for isa in USABLE:
        assert native(isa, logits, p, drawn) == choose(logits, p, drawn)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 1.3]), st.sampled_from([-1.5, 0.0, 0.7]))
def test_the_same_penalties_as_the_law(seed: int, repetition: float, other: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(60).astype(np.float32)
    recent = rng.integers(0, 60, 40).tolist()
    ours, theirs = logits.copy(), logits.copy()
    load(USABLE[0]).penalize(ours, np.asarray(recent, np.int32), repetition, other, other / 2)
    penalize(theirs, recent, SamplingParams(
        repetition_penalty=repetition, presence_penalty=other, frequency_penalty=other / 2))  # fmt: skip
    assert np.array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(params(), st.integers(0, 2**31), st.sampled_from([3_000, 30_000]), st.floats(0, 1, exclude_max=True))
def test_the_same_token_of_a_large_vocabulary(p: SamplingParams, seed: int, n: int, drawn: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(n) * rng.choice([0.01, 1, 4])).astype(np.float32)
    logits[rng.random(n) < 0.1] = np.round(logits[0])
    logits[rng.random(n) < rng.choice([0, 0.5, 0.999])] = rng.choice([-np.inf, np.nan])
    logits[rng.integers(n)] = 1.0
    for isa in USABLE:
        assert native(isa, logits, p, drawn) == choose(logits, p, drawn)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_every_draw_falls_on_its_token(temperature: float) -> None:
    """Draws beside the edges between the candidates of a flat distribution of 20,000."""
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal(20_000) / 4).astype(np.float32)
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    edges = np.cumsum(weights) / weights.sum()
    p = SamplingParams(temperature=temperature)
    for i in [*range(0, 600, 7), 4_000, 4_097, 19_000]:
        assert native(USABLE[0], logits, p, edges[i] - 1e-10) == order[i]
        assert native(USABLE[0], logits, p, edges[i] + 1e-10) == order[i + 1]


def test_greedy_takes_the_lowest_of_equals_and_no_nan() -> None:
    logits = np.array([np.nan, 1, 7, 7, np.nan, -np.inf], np.float32)
    for temperature in (0.0, 1e-3):
        assert native(USABLE[0], logits, SamplingParams(temperature=temperature), 0.0) == 2


def test_a_draw_at_the_very_end_is_a_candidate() -> None:
    logits = np.zeros(100_000, np.float32)
    assert native(USABLE[0], logits, SamplingParams(), 1 - 2**-53) == 99_999
    assert native(USABLE[0], logits, SamplingParams(top_k=3), 1 - 2**-53) == 2


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_candidate_is_an_error(value: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="no token"):
        native(USABLE[0], np.full(10, value, np.float32), SamplingParams(temperature=temperature), 0.5)


def test_shares_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    draws = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount([native(USABLE[0], logits, SamplingParams(), u) for u in draws])
    assert np.abs(counts - [500, 300, 200]).max() <= 1
