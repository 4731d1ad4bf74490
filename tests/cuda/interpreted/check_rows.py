"""Norms and elementwise ops in Triton's interpreter, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends import reference
from kvasir.backends.cuda.kernels.elementwise import elementwise
from kvasir.backends.cuda.kernels.norm import norm
from kvasir.plan import Value, Weight, ops
from tests.cuda.interpreted.poison import DTYPES, Poisoned, exact, strided

V = Value(0, "T", 1)
W = Weight("w", (1,))


def rows(n: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, heads, width", [(1, 1, 1030), (3, 5, 33), (5, 1, 64)])
@pytest.mark.parametrize("kind", ["rms", "layer", "l2"])
def test_norms(dtype, n, heads, width, kind):
    x = exact(rows(n, heads * width), dtype)
    weight, bias = 1 + rows(1, width, 1)[0], rows(1, width, 2)[0]
    out = Poisoned(n, heads * width, dtype)
    if kind == "l2":
        norm(strided(x, dtype), None, None, None, 1e-6, heads, kind, None, out.view).run()
        out.holds(reference.l2norm(ops.L2Norm(V, "", V, heads), None, x))
        return
    w, b = torch.from_numpy(weight), torch.from_numpy(bias) if kind == "layer" else None
    norm(strided(x, dtype), None, w, b, 1e-5, heads, kind, None, out.view).run()
    op = ops.Norm(V, "", V, W, W if kind == "layer" else None, 1e-5, heads, kind == "layer")
    out.holds(reference.norm(op, None, x, weight, *([bias] if kind == "layer" else [])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_and_its_norm(dtype):
    x, y, weight = exact(rows(3, 96), dtype), exact(rows(3, 96, 1), dtype), rows(1, 96, 2)[0]
    total, out = Poisoned(3, 96, torch.float32), Poisoned(3, 96, dtype)
    norm(strided(x, dtype), strided(y, dtype, 1), torch.from_numpy(weight), None, 1e-6, 1, "rms", total.view,
         out.view).run()  # fmt: skip
    total.holds(x + y)
    out.holds(reference.norm(ops.Norm(V, "", V, W, None, 1e-6), None, x + y, weight))


def test_the_sum_may_be_its_first_part():
    x, y = rows(2, 40), rows(2, 40, 1)
    own, out = torch.from_numpy(x.copy()), Poisoned(2, 40, torch.float32)
    norm(own, torch.from_numpy(y), None, None, 1e-6, 1, "rms", own, out.view).run()
    np.testing.assert_allclose(own.numpy(), x + y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fn", list(reference.ACTIVATIONS))
def test_activations(dtype, fn):
    x = exact(4 * rows(3, 1030), dtype)
    out = Poisoned(3, 1030, dtype)
    elementwise("act", strided(x, dtype), None, out.view, fn=fn).run()
    out.holds(reference.ACTIVATIONS[fn](x))


@pytest.mark.parametrize("limit", [0.0, 1.5])
def test_the_product_of_gate_and_up(limit):
    gate, up = 3 * rows(3, 77), 3 * rows(3, 77, 1)
    out = Poisoned(3, 77, torch.float32)
    op = "limited" if limit else "glu"
    elementwise(op, strided(gate, torch.float32), strided(up, torch.float32), out.view, limit, "silu").run()
    out.holds(reference.gated(gate, up, "silu", limit))


def test_sums_products_and_caps():
    x, y, z = rows(3, 60), rows(3, 60, 1), rows(3, 4, 2)
    wanted = {
        "add": x + y, "mul": x * y, "scale": x * np.float32(0.3), "softcap": 2 * np.tanh(x / 2), "copy": x,
    }  # fmt: skip
    for op, result in wanted.items():
        out = Poisoned(3, 60, torch.float32)
        other = torch.from_numpy(y) if op in ("add", "mul") else None
        elementwise(op, strided(x, torch.float32), other, out.view, 2.0 if op == "softcap" else 0.3).run()
        out.holds(result)
    out = Poisoned(3, 60, torch.float32)
    elementwise("mul", torch.from_numpy(x), torch.from_numpy(z), out.view).run()
    out.holds(reference.mul(ops.Mul(V, "", V, V), None, x, z))
