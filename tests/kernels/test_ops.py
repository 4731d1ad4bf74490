"""Row ops against the reference: ragged batches, odd widths, an arena full of NaN."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

from kvasir.backends.base import Batch, Memory
from kvasir.plan import Plan, Value
from tests.kernels.small import USABLE, Sequences, assert_close, backend, ints, op_plan, weights_for

ACTIVATIONS = ("silu", "sigmoid", "gelu", "gelu_tanh", "relu", "tanh")
RAGGED = [1, 23, 7, 16]


def wide(p: Plan, x: Value, by: float = 4.0) -> Value:
    return p.scale(x, by)


CASES = {
    "add": lambda p, x: p.add(x, wide(p, x)),
    "mul": lambda p, x: p.mul(x, wide(p, x)),
    "scale": lambda p, x: p.scale(x, 0.3),
    "softcap": lambda p, x: p.softcap(wide(p, x), 2.0),
    "columns": lambda p, x: p.columns(x, 3, x.width - 2),
    "columns of columns": lambda p, x: p.add(*p.split(p.columns(wide(p, x), 1, 21), 10, 10)),
    "cat": lambda p, x: p.cat(p.columns(x, 5, 9), x, wide(p, x)),
    "norm": lambda p, x: p.norm(x, "n", 1e-6),
    "norm of heads": lambda p, x: p.norm(x, "n", 1e-5, heads=3) if x.width % 3 == 0 else p.norm(x, "n", 1e-5),
    "layer norm": lambda p, x: p.norm(x, "n", 1e-12, center=True),
    "l2norm": lambda p, x: p.l2norm(x, heads=3 if x.width % 3 == 0 else 1),
    "glu": lambda p, x: p.glu(wide(p, x), x, "gelu_tanh"),
    "glu limited": lambda p, x: p.glu(wide(p, x, 9), wide(p, x, 9), "silu", limit=7.0),
    "take": lambda p, x: p.take(x),
    "mean": lambda p, x: p.pool(x, "mean"),
    "first": lambda p, x: p.pool(x, "first"),
    "last": lambda p, x: p.pool(x, "last"),
    "linear": lambda p, x: p.linear(x, "w", 37, bias=True),
    "rope": lambda p, x: p.rope(x, 3 if x.width % 6 == 0 else 1, [1.0, 0.1, 0.01], 1.2),
    "decay": lambda p, x: p.decay(wide(p, x), "a", "b"),
    **{f"act {fn}": lambda p, x, fn=fn: p.act(wide(p, x), fn) for fn in ACTIVATIONS},
}


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("width", [24, 37, 96])
@pytest.mark.parametrize("case", CASES)
def test_an_op_equals_its_reference(case: str, width: int, isa: str) -> None:
    steps = 1 if case in ("mean", "first", "last") else 3
    assert_close(op_plan(CASES[case], width), RAGGED, isa, 3e-6, steps=steps)


@pytest.mark.parametrize("isa", USABLE)
def test_a_column_scales_each_head(isa: str) -> None:
    assert_close(op_plan(lambda p, x: p.mul(x, p.columns(x, 2, 6)), 96), RAGGED, isa, 1e-6)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("fn", ACTIVATIONS)
def test_an_activation_over_the_whole_range(fn: str, isa: str) -> None:
    """Beside float64, absolutely and for small arguments relatively; the ends do not overflow; NaN stays."""
    x = np.concatenate([np.linspace(-100, 100, 4001), np.geomspace(1e-30, 1, 100), [np.nan, np.inf, -np.inf]])
    x = x.astype(np.float32)
    p = Plan("act")
    p.output = p.act(p.embed("table", len(x), 1), fn)  # type: ignore[arg-type]
    weights = weights_for(p)
    weights["table"].raw[:] = x[:, None].view(np.uint8)
    n = len(x)
    batch = Batch(
        ints(range(n)), ints(range(n)), ints([0, n]), ints([[]]).reshape(1, 0), ints([-1]), ints([])
    )
    y = backend(isa).compile(p, weights, Memory(1)).step(batch)[:, 0].astype(np.float64)
    t = x.astype(np.float64)
    with np.errstate(all="ignore"):
        sigmoid = 1 / (1 + np.exp(-t))
        cdf = np.array([0.5 * (1 + erf(v / 2**0.5)) for v in t])
        want = {
            "silu": t * sigmoid, "sigmoid": sigmoid, "gelu": t * cdf, "relu": np.maximum(t, 0),
            "tanh": np.tanh(t),
            "gelu_tanh": 0.5 * t * (1 + np.tanh(0.7978845608028654 * (t + 0.044715 * t**3))),
        }[fn]  # fmt: skip
    finite = np.isfinite(t)
    assert np.isnan(y[np.isnan(t)]).all()
    t, want, y = t[finite], want[finite], y[finite]
    assert (np.abs(y - want) <= 1.2e-7 * np.maximum(np.abs(t), 2)).all()
    if fn in ("tanh", "silu"):
        small = (np.abs(t) < 1) & (np.abs(t) > 1e-29)
        assert (np.abs(y - want)[small] <= 4e-7 * np.abs(want[small])).all()


@pytest.mark.parametrize("isa", USABLE)
def test_rope_far_out(isa: str) -> None:
    """At position 130,000 the angle still has its digits."""
    p = Plan("rope")
    inverse = [500000 ** (-2 * i / 16) for i in range(8)]
    p.output = p.rope(p.embed("table", 9, 32), 2, inverse)
    weights = weights_for(p)
    batch = Batch(ints([3]), ints([130_000]), ints([0, 1]), np.zeros((1, 0), np.int32), ints([-1]), ints([]))
    got = backend(isa).compile(p, weights, Memory(1)).step(batch)[0].reshape(2, 16)
    x = weights["table"].floats()[3].reshape(2, 16).astype(np.float64)
    turn = (x[:, :8] + 1j * x[:, 8:]) * np.exp(1j * 130_000 * np.array(inverse))
    np.testing.assert_allclose(got, np.concatenate([turn.real, turn.imag], 1), atol=1e-6)


def test_no_rows_wanted() -> None:
    p = op_plan(lambda p, x: p.linear(p.take(x), "w", 40), 32)
    memory = Memory(4)
    program = backend().compile(p, weights_for(p), memory)
    batch = Sequences([5], 50, memory).batch([(0, 5)])
    none = Batch(batch.tokens, batch.positions, batch.starts, batch.blocks, batch.slots, ints([]))
    assert program.step(none).shape == (0, 40)
