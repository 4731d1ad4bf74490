"""Experts against the reference: routes, biases, limits, quantized weights, rows apart from each other."""

from __future__ import annotations

import numpy as np
import pytest

from kvasir.backends.base import Memory
from kvasir.plan import Plan
from tests.kernels.small import USABLE, Sequences, assert_close, backend, weights_for


def mixture(
    route: str, k: int = 3, n: int = 7, width: int = 32, ffn: int = 40, bias: bool = False, limit: float = 0.0
) -> Plan:
    p = Plan("experts")
    x, scores = p.split(p.embed("table", 50, width + n), width, n)
    p.output = p.experts(p.scale(x, 3.0), p.scale(scores, 6.0), k, ffn, route, bias=bias, limit=limit)
    return p


ROUTES = ("softmax_renorm", "softmax", "topk_softmax")


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_experts_equal_their_reference(route: str, bias: bool, isa: str) -> None:
    plan = mixture(route, bias=bias, limit=7.0 if bias else 0.0)
    assert_close(plan, [1, 23, 7], isa, 1e-5)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("k,n,ffn", [(1, 2, 33), (8, 8, 16), (4, 32, 8)])
def test_other_shapes(k: int, n: int, ffn: int, isa: str) -> None:
    assert_close(mixture("softmax", k, n, 24, ffn), [19, 2], isa, 1e-5)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("form", ["F32", "Q8_0"])
def test_more_rows_and_columns_than_meet_at_once(form: str, isa: str) -> None:
    plan, memory = mixture("softmax", 1, 2, 64, 320 if form == "Q8_0" else 300), Memory(32, 2)
    if form == "F32":
        assert_close(plan, [90, 101], isa, 1e-5)
    weights, outputs = weights_for(plan, form=form), []
    for steps in ([[(0, 170)]], [[(0, 1)], [(0, 67)], [(0, 102)]]):
        program = backend(isa, len(steps)).compile(plan, weights, memory)
        outputs.append(Sequences([170], 50, memory).run(program, steps))
    assert np.array_equal(*outputs)


def test_ties_go_to_the_lower_expert() -> None:
    plan, memory = mixture("softmax", k=2), Memory(4)
    weights = weights_for(plan)
    weights["table"].raw.view(np.float32)[:, -7:] = 0.5
    x = weights["table"].floats()[:, :32] * 3
    s = Sequences([6], 50, memory)
    y = backend().compile(plan, weights, memory).step(s.batch([(0, 6)]))
    gate, up, down = (weights[f"ffn_{name}_exps"].floats() for name in ("gate", "up", "down"))
    for t, token in enumerate(s.tokens[0]):
        want = 0
        for e in (0, 1):
            g = gate[e] @ x[token]
            want = want + down[e] @ (g / (1 + np.exp(-g)) * (up[e] @ x[token])) / 7
        np.testing.assert_allclose(y[t], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("form", ["F32", "Q8_0", "Q4_0"])
def test_a_row_does_not_see_its_neighbours(form: str, isa: str) -> None:
    plan, memory = mixture("softmax_renorm", width=64, ffn=96), Memory(8)
    weights = weights_for(plan, form=form)
    outputs = []
    for steps in ([[(0, 30)]], [[(0, 1)]] * 30, [[(0, 17)], [(0, 13)]]):
        s = Sequences([30], 50, memory)
        program = backend(isa, len(steps) % 3 + 1).compile(plan, weights, memory)
        outputs.append(np.concatenate([program.step(s.batch(step)) for step in steps]))
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
