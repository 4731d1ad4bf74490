"""The sampling law: which tokens may come, in which shares, and that a seed fixes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir.errors import Bug, UsageError
from kvasir.sampling import SamplingParams, choose, logprobs, penalize, uniform

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))


def reachable(**wishes: float) -> set[int]:
    params = SamplingParams(**wishes)  # type: ignore[arg-type]
    return {choose(LOGITS.copy(), params, u) for u in np.linspace(0, 1, 2001)[:-1]}


def test_greedy_takes_the_highest_and_the_lower_id_on_ties():
    assert choose(np.array([1, 3, 3, 2], np.float32), SamplingParams(temperature=0), 0.9) == 1


@pytest.mark.parametrize(
    ("wishes", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"top_k": 4, "top_p": 0.99, "min_p": 0.19}, {0, 1, 2, 3}),
        # Entropy is 1.33 nats; surprises are 0.69 1.61 1.90 2.30 3.00: nearest are 1, then 2, then 0.
        ({"typical_p": 0.3}, {1, 2}),
        ({"typical_p": 0.1}, {1}),
    ],
)
def test_which_tokens_may_come(wishes, kept):
    assert reachable(**wishes) == kept


def test_shares_are_the_probabilities():
    draws = [choose(LOGITS.copy(), SamplingParams(), u) for u in (np.arange(20000) + 0.5) / 20000]
    assert np.bincount(draws) / 20000 == pytest.approx([0.5, 0.2, 0.15, 0.1, 0.05], abs=1e-3)


def test_temperature_sharpens_and_flattens():
    share = [
        np.mean(
            [
                choose(LOGITS.copy(), SamplingParams(temperature=t), u) == 0
                for u in np.linspace(0, 0.9995, 2000)
            ]
        )
        for t in (0.5, 1.0, 2.0)
    ]
    p = np.exp(LOGITS)
    assert share == pytest.approx(
        [(p[0] ** (1 / t)) / (p ** (1 / t)).sum() for t in (0.5, 1.0, 2.0)], abs=2e-3
    )


def test_nan_is_never_chosen():
    logits = np.array([np.nan, 0.0, np.nan, -1.0], np.float32)
    assert choose(logits, SamplingParams(temperature=0), 0.0) == 1
    assert {choose(logits, SamplingParams(), u) for u in np.linspace(0, 0.999, 100)} == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinities_share_the_draw_and_nothing_at_all_is_a_bug(temperature):
    logits = np.array([1.0, np.inf, 5.0, np.inf], np.float32)
    params = SamplingParams(temperature=temperature)
    assert {choose(logits, params, u) for u in (0.1, 0.9)} == ({1, 3} if temperature else {1})
    with pytest.raises(Bug, match="no token to choose"):
        choose(np.full(3, -np.inf, np.float32), params, 0.5)


def test_penalties():
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    penalize(
        logits, [0, 0, 1], SamplingParams(repetition_penalty=2, frequency_penalty=0.25, presence_penalty=0.5)
    )
    assert logits.tolist() == [2 / 2 - 0.5 - 0.5, -4 - 0.25 - 0.5, 1.0, 0.5]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127), st.integers(0, 10**6))
def test_uniform_depends_on_its_arguments_alone(seed, index, position):
    drawn = uniform(seed, index, position)
    assert 0 <= drawn < 1
    assert drawn == uniform(seed, index, position)
    assert drawn != uniform(seed, index, position + 1)


def test_uniform_is_uniform():
    draws = np.array([uniform(s, 0, p) for s in range(40) for p in range(500)])
    counts, _ = np.histogram(draws, 20, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 45, (
        "chi-squared with 19 degrees of freedom, 0.1 % point 43.8"
    )


def test_logprobs_add_up():
    assert np.exp(logprobs(LOGITS * 3 + 100)).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"temperature": -1}, "temperature must be between 0 and 100"),
        ({"temperature": float("nan")}, "temperature must be between"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"top_k": 1.5}, "top_k must be an integer"),
        ({"max_tokens": True}, "max_tokens must be an integer"),
        ({"n": 0}, "n must be between 1 and 128"),
        ({"stop": [""]}, "stop must hold texts"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {1: 1000}}, "logit_bias"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between"),
    ],
)
def test_bad_wishes_are_refused_by_name(wish, message):
    with pytest.raises(UsageError, match=message):
        SamplingParams(**wish)
