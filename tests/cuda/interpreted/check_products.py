"""Products in Triton's interpreter, against the reference: `reference.linear`, `reference.gated`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends import reference
from kvasir.backends.cuda.kernels.common import Config
from kvasir.backends.cuda.kernels.matvec import Workspace, matvec
from kvasir.backends.cuda.weights import Dense, Fp8, to_fp8
from tests.cuda.interpreted.poison import DTYPES, Poisoned, exact, strided

CUTS = (
    Config({"BO": 4, "BK": 32, "SPLIT": 1, "STAGES": 2}),
    Config({"BO": 2, "BK": 64, "SPLIT": 3, "STAGES": 1}),
)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def workspace() -> Workspace:
    work = Workspace.on("cpu", 1 << 12, 1 << 8)
    work.partial.fill_(float("nan"))
    return work


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("cut", CUTS)
def test_few_rows(dtype, rows, cut):
    x, w, bias = exact(drawn(rows, 139), dtype), exact(drawn(13, 139, seed=1), dtype), drawn(13, seed=2)
    out, work = Poisoned(rows, 13, dtype), workspace()
    matvec(strided(x, dtype), torch.from_numpy(w).to(dtype), None, torch.from_numpy(bias), out.view, work,
           config=cut).run()  # fmt: skip
    out.holds(x @ w.T + bias)
    assert not work.counter.any(), "counters are left as they were found"


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("limit", [0.0, 0.7])
def test_gate_and_up_of_few_rows(rows, cut, limit):
    x, w, bias = drawn(rows, 139), drawn(2 * 13, 139, seed=1) / 14, drawn(2 * 13, seed=2)
    out, work = Poisoned(rows, 13, torch.float32), workspace()
    matvec(torch.from_numpy(x), torch.from_numpy(w), None, torch.from_numpy(bias), out.view, work, "silu",
           limit, cut).run()  # fmt: skip
    both = x @ w.T + bias
    out.holds(reference.gated(both[:, :13], both[:, 13:], "silu", limit))


def test_a_row_does_not_depend_on_how_many_there_are():
    x, w = torch.from_numpy(drawn(4, 160)), torch.from_numpy(drawn(5, 160, seed=1))
    made = []
    for rows in (1, 3, 4):
        out = torch.full((rows, 5), float("nan"))
        matvec(x[:rows], w, None, None, out, workspace(), config=CUTS[1]).run()
        made.append(out[0])
    assert all(torch.equal(made[0], m) for m in made)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fn", ["", "gelu_tanh"])
def test_weights_of_eight_bits(cut, fn):
    x, w = drawn(3, 96), to_fp8(Dense(torch.from_numpy(drawn(2 * 21, 96, seed=1))))
    assert isinstance(w, Fp8)
    outputs = 21 if fn else 42
    out = Poisoned(3, outputs, torch.float32)
    matvec(torch.from_numpy(x), w.data, w.scales, None, out.view, workspace(), fn, config=cut).run()
    y = x @ w.floats().numpy().T
    out.holds(reference.gated(y[:, :21], y[:, 21:], fn, 0.0) if fn else y)
