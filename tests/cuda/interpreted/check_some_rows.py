"""Products of more rows, experts and decoded weights in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends import reference
from kvasir.backends.cuda.kernels.common import Config
from kvasir.backends.cuda.kernels.face import ExpertsOf
from kvasir.backends.cuda.kernels.matvec import Workspace
from kvasir.backends.cuda.kernels.rows import decoded, some_rows
from kvasir.backends.cuda.kernels.triton_ops import TritonOps
from kvasir.backends.cuda.weights import Blocks, Dense, stack, to_fp8
from kvasir.plan import Value, Weight, ops
from tests.cuda.interpreted.check_codes import made, scaled
from tests.cuda.interpreted.check_products import drawn
from tests.cuda.interpreted.poison import DTYPES, Poisoned, exact, strided
from tests.cuda.test_weights import QUANTIZED

CUTS = (
    Config({"BO": 16, "NB": 2, "SPLIT": 1, "STAGES": 1}),
    Config({"BO": 16, "NB": 1, "SPLIT": 3, "STAGES": 1}),
)


def workspace() -> Workspace:
    work = Workspace.on("cpu", 1 << 14, 1 << 8)
    work.partial.fill_(float("nan"))
    return work


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("rows", [5, 17])
def test_dense(dtype, cut, rows):
    x, w, bias = exact(drawn(rows, 139), dtype), exact(drawn(21, 139, seed=1), dtype), drawn(21, seed=2)
    out, work = Poisoned(rows, 21, dtype), workspace()
    weight = Dense(torch.from_numpy(w).to(dtype))
    some_rows(strided(x, dtype), weight, torch.from_numpy(bias), out.view, work, config=cut).run()
    out.holds(x @ w.T + bias)
    assert not work.counter.any()


def test_eight_bits():
    x, w = drawn(6, 96), to_fp8(Dense(torch.from_numpy(drawn(21, 96, seed=1))))
    out = Poisoned(6, 21, torch.float32)
    some_rows(torch.from_numpy(x), w, None, out.view, workspace(), config=CUTS[0]).run()
    out.holds(x @ w.floats().numpy().T)


@pytest.mark.parametrize("form", QUANTIZED)
def test_codes(form):
    _, w, device = made(form, 5)
    x = np.concatenate([scaled(w), scaled(w)[:1]])
    out = Poisoned(5, 5, torch.float32)
    some_rows(torch.from_numpy(x), device, None, out.view, workspace(), config=CUTS[0]).run()
    out.holds(x @ w.T)


@pytest.mark.parametrize("form", ["Q4_0", "Q4_K", "Q6_K", "MXFP4"])
def test_decoded_rows(form):
    _, w, device = made(form, 21)
    out = Poisoned(17, w.shape[1], torch.float32)
    decoded(device, 3, out.view).run()
    out.holds(w[3:20], 1e-6)


@pytest.mark.parametrize("kind", ["dense", "Q4_0"])
@pytest.mark.parametrize("rows, experts, k", [(1, 4, 2), (19, 5, 3)])
@pytest.mark.parametrize("route", ["softmax_renorm", "topk_softmax"])
def test_experts(kind, rows, experts, k, route):
    width, inner = 64, 32
    rng = np.random.default_rng(0)
    x, scores = drawn(rows, width), drawn(rows, experts, seed=1)
    if kind == "dense":
        gate_up, down = drawn(experts, 2 * inner, width, seed=2) / 8, drawn(experts, width, inner, seed=3) / 6
        given = Dense(torch.from_numpy(gate_up)), Dense(torch.from_numpy(down))
    else:
        given = code_stack(experts, 2 * inner, width, 4), code_stack(experts, width, inner, 9)
        gate_up, down = (g.floats().numpy() for g in given)
    biases = [rng.standard_normal((experts, n)).astype(np.float32) for n in (2 * inner, width)]
    of = ExpertsOf(*given, *(torch.from_numpy(b) for b in biases), k, route, "silu", 2.0)
    out = Poisoned(rows, width, torch.float32)
    TritonOps().experts(torch.from_numpy(x), torch.from_numpy(scores), of, out.view)
    v, w = Value(0, "T", width), Weight("w", (1,))
    op = ops.Experts(v, "", v, v, w, w, w, w, w, w, k, route, "silu", 2.0)
    halves = gate_up[:, :inner], gate_up[:, inner:], down
    out.holds(
        reference.experts(op, None, x, scores, *halves, biases[0][:, :inner], biases[0][:, inner:], biases[1])
    )


def code_stack(experts: int, rows: int, width: int, seed: int) -> Blocks:
    """Experts of Q4_0 with scales near 0.02."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (experts, rows, width // 2), np.uint8)
    scales = (0.02 + 0.01 * rng.random((experts, rows, width // 32))).astype(np.float16)
    parts = torch.from_numpy(codes), torch.from_numpy(scales)
    whole = stack([Blocks(*parts, None, None, None, None, 4, 32, 8)])
    assert isinstance(whole, Blocks)
    return whole
