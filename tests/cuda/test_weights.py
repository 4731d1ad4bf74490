"""Every number format on the device: the bits that `quant/decode.py` gives, by rows, stacked, as experts."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pytest

from kvasir.checkpoint.tensor import Tensor
from kvasir.quant.formats import FORMATS, WEIGHT_FORMATS

torch = pytest.importorskip("torch")

from kvasir.backends.cuda import weights
from kvasir.backends.cuda.kernels import torch_ops

QUANTIZED = [f.name for f in WEIGHT_FORMATS if f.block > 1]


def random(form: str, *shape: int, seed: int = 0) -> Tensor:
    """Random bytes of a format, its float16 scales among the finite ones."""
    f, rng = FORMATS[form], np.random.default_rng(seed)
    rows = int(np.prod(shape[:-1]))
    if f.block == 1:
        return Tensor("w", f, shape, rng.standard_normal((rows, shape[-1])).astype(np.float32).view(np.uint8))
    raw = rng.integers(0, 256, (rows, f.row_bytes(shape[-1])), np.uint8)
    kinds = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": (), "Q4_1": (0, 2), "Q5_1": (0, 2),
             "Q4_K": (0, 2), "Q5_K": (0, 2)}  # fmt: skip
    blocks = raw.reshape(-1, f.block_bytes)
    for at in kinds.get(form, (0,)):
        blocks[:, at : at + 2] = rng.normal(0, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return Tensor("w", f, shape, raw)


@pytest.mark.parametrize("form", QUANTIZED)
@pytest.mark.parametrize("shape", [(3, 256), (5, 768), (2, 3, 512)])
def test_a_format_keeps_every_bit(form: str, shape: tuple[int, ...]) -> None:
    t = random(form, *shape)
    got = weights.load(t, "cpu", torch.bfloat16)
    assert got.shape == shape and np.array_equal(got.floats().numpy(), t.floats())


def test_mxfp4_keeps_every_exponent() -> None:
    raw = np.zeros((256, 17), np.uint8)
    raw[:, 0], raw[:, 1:] = np.arange(256), np.arange(16) * 17
    t = Tensor("w", FORMATS["MXFP4"], (256, 32), raw)
    assert np.array_equal(weights.load(t, "cpu", torch.float32).floats().numpy(), t.floats())


@pytest.mark.parametrize("form", ["F32", "F16", "BF16"])
def test_plain_numbers_become_what_is_asked_for(form: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    wide = {"F32": x, "F16": x.astype(np.float16), "BF16": (x.view(np.uint32) >> 16).astype(np.uint16)}[form]
    t = Tensor("w", FORMATS[form], (4, 7), wide.view(np.uint8).reshape(4, -1))
    for dtype in (torch.float32, torch.bfloat16):
        got = weights.load(t, "cpu", dtype)
        assert got.data.dtype == dtype
        assert torch.equal(got.floats(), torch.from_numpy(t.floats()).to(dtype).float())


@pytest.mark.parametrize("form", [*QUANTIZED, "F32"])
def test_like_matrices_are_stacked_and_rows_picked(form: str) -> None:
    a, b = (weights.load(random(form, n, 256, seed=n), "cpu", torch.float32) for n in (3, 2))
    assert weights.alike(a, b)
    both = weights.stack([a, b])
    assert torch.equal(both.floats(), torch.cat([a.floats(), b.floats()]))
    ids = torch.tensor([4, 0, 3])
    assert torch.equal(torch_ops.rows_of(both, ids), both.floats()[ids])


def test_unlike_matrices_are_not_stacked() -> None:
    made = {f: weights.load(random(f, 2, 256), "cpu", torch.float32) for f in QUANTIZED}
    for one, a in made.items():
        for two, b in made.items():
            assert weights.alike(a, b) == (one == two), (one, two)
    assert not weights.alike(made["Q8_0"], weights.load(random("Q8_0", 2, 512), "cpu", torch.float32))


def test_fp8_is_within_its_rounding() -> None:
    w = weights.load(random("Q8_0", 8, 256), "cpu", torch.float32)
    got, want = weights.to_fp8(w).floats(), w.floats()
    most = want.abs().amax(1, keepdim=True)
    assert ((got - want).abs() <= want.abs() / 16 + most / 448 / 2**3).all()
    assert torch.allclose(got.abs().amax(1), want.abs().amax(1), rtol=1e-6) and not torch.equal(got, want)


def test_what_takes_more_room_is_said() -> None:
    assert weights.said({"Q4_0": 9, "F16": 1}) == ""
    assert "Q6_K 6.6 -> 8.6" in weights.said({"Q4_0": 9, "Q6_K": 1})
