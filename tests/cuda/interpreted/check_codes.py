"""Products with weights of 4 and 8 bits in Triton's interpreter, against the decoded weights.

Codes are exact in the kernels; the tolerance is that of float32 sums in another order.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends import reference
from kvasir.backends.cuda import weights
from kvasir.backends.cuda.kernels.common import Config
from kvasir.backends.cuda.kernels.matvec import Workspace
from kvasir.backends.cuda.kernels.matvec_codes import matvec_codes
from kvasir.backends.cuda.weights import Blocks
from kvasir.checkpoint.tensor import Tensor
from tests.cuda.interpreted.poison import Poisoned, exact
from tests.cuda.test_weights import QUANTIZED, random

CUTS = (Config({"BO": 4, "NB": 8, "SPLIT": 1}), Config({"BO": 2, "NB": 2, "SPLIT": 3}))
WIDTH = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}


def made(form: str, rows: int, seed: int = 0) -> tuple[Tensor, np.ndarray, Blocks]:
    """A tensor of random blocks: as in the file, decoded, on the device.  Widths that tiles do not divide."""
    tensor = random(form, rows, 768 if form in WIDTH else 352, seed=seed)
    if form == "MXFP4":  # exponents of real weights: not those at which float32 ends
        blocks = tensor.raw.reshape(-1, 17)
        blocks[:, 0] = 110 + blocks[:, 0] % 20
    on_device = weights.load(tensor, "cpu", torch.float32)
    assert isinstance(on_device, Blocks)
    return tensor, tensor.floats(), on_device


def scaled(w: np.ndarray) -> np.ndarray:
    """Rows of x such that no sum overflows: random scales go up to 65504 and MXFP4's to 2^127."""
    x = np.random.default_rng(5).standard_normal((4, w.shape[1])).astype(np.float32)
    return x / np.float32(max(1.0, np.abs(w).max()))


@pytest.mark.parametrize("form", QUANTIZED)
def test_every_format(form):
    _, w, device = made(form, 5)
    x = scaled(w)[:2]
    out, work = Poisoned(2, 5, torch.float32), Workspace.on("cpu", 256, 16)
    matvec_codes(torch.from_numpy(x), device, None, out.view, work, config=CUTS[0]).run()
    out.holds(x @ w.T)


@pytest.mark.parametrize("form", ["Q4_0", "Q6_K"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fn", ["", "silu"])
def test_rows_halves_and_splits(form, cut, fn):
    _, w, device = made(form, 10, seed=1)
    x = exact(scaled(w), torch.float16)
    bias = np.random.default_rng(2).standard_normal(10).astype(np.float32)
    outputs = 5 if fn else 10
    out, work = Poisoned(4, outputs, torch.float16), Workspace.on("cpu", 1024, 16)
    given = torch.from_numpy(x).half(), device, torch.from_numpy(bias)
    matvec_codes(*given, out.view, work, fn, config=cut).run()
    y = x @ w.T + bias
    out.holds(reference.gated(y[:, :5], y[:, 5:], fn, 0.0) if fn else y)
    assert not work.counter.any()
