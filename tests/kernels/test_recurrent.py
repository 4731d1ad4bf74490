"""Short convolutions and the gated delta rule against the reference, over steps and with neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from kvasir.backends.base import Memory
from kvasir.plan import Plan
from tests.kernels.small import USABLE, Sequences, assert_close, backend, weights_for


def delta_net(k_heads: int, v_heads: int, k_dim: int, v_dim: int, taps: int = 4) -> Plan:
    p = Plan("delta")
    widths = k_heads * k_dim, k_heads * k_dim, v_heads * v_dim, v_heads, v_heads
    x = p.embed("table", 50, sum(widths))
    x = p.conv(x, "conv", taps)
    q, k, v, decay, beta = p.split(x, *widths)
    decay = p.decay(decay, "a", "a.bias")
    q, k = p.l2norm(q, k_heads), p.l2norm(k, k_heads)
    p.output = p.delta(q, k, v, decay, p.act(beta, "sigmoid"), k_heads, v_heads)
    return p


SHAPES = [(2, 2, 16, 16), (2, 4, 16, 8), (1, 3, 10, 5), (2, 2, 32, 48), (1, 1, 8, 40), (1, 2, 7, 9)]


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("shape", SHAPES)
def test_recurrence_equals_its_reference(shape: tuple[int, int, int, int], isa: str) -> None:
    assert_close(delta_net(*shape), [1, 40, 9, 3], isa, 1e-5, steps=4)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("taps,width", [(2, 77), (3, 77), (4, 77), (4, 601)])
def test_convolution_equals_its_reference(taps: int, width: int, isa: str) -> None:
    p = Plan("conv")
    p.output = p.conv(p.embed("table", 50, width), "conv", taps)
    assert_close(p, [1, 2, 30, 5], isa, 1e-6, steps=5)


@pytest.mark.parametrize("isa", USABLE)
def test_state_does_not_depend_on_the_steps(isa: str) -> None:
    """Bit for bit: one step or many, alone or not; and a slot used before counts as zero."""
    plan, memory = delta_net(2, 4, 16, 24), Memory(40, 3)
    weights, lengths = weights_for(plan), [30, 7]

    def outputs(steps: list[list[tuple[int, int]]], threads: int) -> np.ndarray:
        program = backend(isa, threads).compile(plan, weights, memory)
        stale = Sequences([9, 9, 9], 50, memory, seed=4)
        program.step(stale.batch([(0, 9), (1, 9), (2, 9)]))
        return Sequences(lengths, 50, memory).run(program, steps)

    whole = outputs([[(0, 30), (1, 7)]], 2)
    assert np.array_equal(whole, outputs([[(n, 1)] for n, k in enumerate(lengths) for _ in range(k)], 1))
    assert np.array_equal(whole, outputs([[(1, 3), (0, 11)], [(0, 18)], [(0, 1), (1, 4)]], 4))
