"""The matrix product: equal to numpy on the same activations, and itself for any batch and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.native import load, usable
from kvasir.quant.formats import FORMATS, WEIGHT_FORMATS, Format

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Where the float16 scales lie in a block; everything else may be any byte.
SCALES: dict[str, tuple[int, ...]] = {
    **{"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,)},
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)},
    **{"IQ4_XS": (0,), "MXFP4": ()},
}
NAMES = [f.name for f in WEIGHT_FORMATS]
FLOAT_NAMES = ("F32", "F16", "BF16")


@pytest.fixture(scope="module", params=usable())
def kernels(request: pytest.FixtureRequest) -> Any:
    return load(request.param)


def weights(f: Format, rows: int, width: int, seed: int = 0, fill: int | None = None) -> Bytes:
    """Rows of valid blocks: [rows, row bytes]. `fill` sets every byte but the scales."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, width)).astype(np.float32)
    if f.name == "F32":
        return values.view(np.uint8)
    if f.name == "F16":
        return values.astype(np.float16).view(np.uint8)
    if f.name == "BF16":
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    n = rows * width // f.block
    blocks = rng.integers(0, 256, (n, f.block_bytes), dtype=np.uint8)
    if fill is not None:
        blocks[:] = fill
    if f.name == "MXFP4":
        blocks[:, 0] = rng.integers(110, 135, n)
    for at in SCALES[f.name]:
        scales = (rng.standard_normal(n) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(n, 2)
    return blocks.reshape(rows, f.row_bytes(width))


def inputs(rows: int, width: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def widths(f: Format) -> tuple[int, ...]:
    return (1, 7, 8, 33, 1031) if f.name in FLOAT_NAMES else (f.block, 3 * f.block, 1024)


def error(y: Floats, x: Floats, w: Floats) -> float:
    """The largest distance from numpy's float64 product, in units of |x| |w|."""
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    norm = np.linalg.norm(x64, axis=1)[:, None] * np.linalg.norm(w64, axis=1)[None] + 1e-30
    return float((np.abs(y - x64 @ w64.T) / norm).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 8, 13, 40])
def test_equals_numpy_on_the_same_activations(kernels: Any, name: str, rows: int) -> None:
    f = FORMATS[name]
    for width in widths(f):
        raw, x = weights(f, rows, width), inputs(9, width)
        matrix = kernels.pack(name, raw, width)
        seen = kernels.prepared(matrix, x)
        y = kernels.linear(matrix, x)
        assert y.shape == (9, rows) and y.dtype == np.float32
        assert error(y, seen, f.decode(raw, width)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_bits_in_any_batch(kernels: Any, name: str) -> None:
    f = FORMATS[name]
    width = 517 if name in FLOAT_NAMES else 768
    matrix = kernels.pack(name, weights(f, 29, width), width)
    x = inputs(140 if name in ("F16", "Q4_0", "Q8_0", "Q6_K") else 70, width)
    alone = np.concatenate([kernels.linear(matrix, x[t : t + 1]) for t in range(len(x))])
    for T in (*range(1, 14), 33, len(x)):
        assert np.array_equal(kernels.linear(matrix, x[:T]), alone[:T]), T
    assert np.array_equal(kernels.linear(matrix, x[3:16]), alone[3:16])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 5),
    T=st.integers(1, 20),
    threads=st.integers(2, 4),
    seed=st.integers(0, 1000),
)
def test_threads_do_not_show(name: str, rows: int, blocks: int, T: int, threads: int, seed: int) -> None:
    kernels = load("auto")
    f = FORMATS[name]
    width = blocks * 37 if name in FLOAT_NAMES else blocks * f.block
    matrix = kernels.pack(name, weights(f, rows, width, seed), width)
    x = inputs(T, width, seed)
    one = kernels.linear(matrix, x)
    assert np.array_equal(kernels.linear(matrix, x, threads=threads), one)
    t = seed % T
    assert np.array_equal(kernels.linear(matrix, x[t : t + 1]), one[t : t + 1])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FLOAT_NAMES])
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0])
def test_the_largest_sums_fit_their_integers(kernels: Any, name: str, fill: int) -> None:
    """All codes at an end of their range against all activations at theirs, and against alternating ones."""
    f = FORMATS[name]
    width = 2 * f.block
    raw = weights(f, 9, width, fill=fill)
    x = np.ones((4, width), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    x[3, width // 2 :: 3] = -1
    matrix = kernels.pack(name, raw, width)
    y, seen, w = kernels.linear(matrix, x), kernels.prepared(matrix, x), f.decode(raw, width)
    assert np.allclose(seen, x, rtol=1e-6)  # each is +127 or -127 times 1 / 127
    assert error(y, seen, w) < 1e-5


def test_every_mxfp4_scale(kernels: Any) -> None:
    """2^-128 (subnormal) to 2^127, times a single activation of 127: exact."""
    f = FORMATS["MXFP4"]
    raw = weights(f, 256, 32)
    raw[:, 0] = np.arange(256)
    matrix = kernels.pack("MXFP4", raw, 32)
    x = np.zeros((1, 32), np.float32)
    x[0, 5] = 127
    with np.errstate(over="ignore"):
        want = f.decode(raw, 32)[:, 5] * np.float32(127)
    assert np.array_equal(kernels.linear(matrix, x)[0][:250], want[:250])


@pytest.mark.parametrize("name", ["F32", "Q4_0", "Q6_K"])
def test_zeros_and_what_is_not_finite(kernels: Any, name: str) -> None:
    f = FORMATS[name]
    matrix = kernels.pack(name, weights(f, 8, 512), 512)
    x = np.zeros((5, 512), np.float32)
    x[1, 40] = np.nan
    x[2, 500] = np.inf
    x[3, 40] = 1e-42
    x[4] = 1e-20
    y = kernels.linear(matrix, x)
    assert np.array_equal(y[0], np.zeros(8, np.float32)) and np.isfinite(y[3:]).all()
    assert np.isnan(y[1]).all() and not np.isfinite(y[2]).any()
    assert error(y[4:], kernels.prepared(matrix, x[4:]), f.decode(weights(f, 8, 512), 512)) < 1e-5


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FLOAT_NAMES])
def test_activations_are_int8_in_blocks_of_32(kernels: Any, name: str) -> None:
    matrix = kernels.pack(name, weights(FORMATS[name], 8, 256), 256)
    x = inputs(3, 256) * np.float32(10.0) ** np.arange(-1, 2, dtype=np.float32)[:, None]
    blocks, seen = x.reshape(3, 8, 32), kernels.prepared(matrix, x).reshape(3, 8, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    q = seen / scale
    assert np.abs(q - np.rint(q)).max() < 1e-3 and np.abs(q).max() < 127.01
    assert (np.abs(seen - blocks) <= scale * 0.5001).all()


def test_builds_prepare_the_same_bits() -> None:
    x = inputs(64, 1024) * np.float32(10.0) ** np.arange(-32, 32, dtype=np.float32)[:, None]
    x[3, 5], x[4, 40], x[5, 70] = np.nan, np.inf, -np.inf
    x[6, :64], x[7, ::2] = 0, 127.5
    seen = []
    for isa in usable():
        k = load(isa)
        seen.append(k.prepared(k.pack("Q8_0", weights(FORMATS["Q8_0"], 8, 1024), 1024), x))
    assert all(np.array_equal(s.view(np.uint32), seen[0].view(np.uint32)) for s in seen)


@pytest.mark.parametrize(("name", "width"), [("Q4_0", 48), ("Q4_K", 128), ("Q8_0", 0)])
def test_a_width_that_is_not_whole_blocks_is_refused(kernels: Any, name: str, width: int) -> None:
    with pytest.raises(ValueError):
        kernels.pack(name, np.zeros((8, 100), np.uint8), width)


@pytest.mark.parametrize("name", NAMES)
def test_packing_grows_little(kernels: Any, name: str) -> None:
    f = FORMATS[name]
    assert kernels.pack(name, weights(f, 64, 1024), 1024).n_bytes <= 1.05 * 64 * f.row_bytes(1024)
