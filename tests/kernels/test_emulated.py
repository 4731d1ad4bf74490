"""The kernels for VNNI and AMX, instructions emulated, give the bits of the AVX2 build: `make emulate`."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvasir.native import load, usable
from kvasir.quant.formats import FORMATS
from tests.kernels.test_linear import FLOAT_NAMES, NAMES, inputs, weights

LIBRARY = Path(__file__).resolve().parents[2] / "build" / "emulated" / "libemulated.so"
pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="the emulated kernels are not built: make emulate"),
    pytest.mark.skipif(
        "avx2" not in usable(), reason="this machine runs no AVX2, which the emulation is written with"
    ),
]
QUANTIZED = [n for n in NAMES if n not in FLOAT_NAMES]


def emulated(name: str, raw: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], part: slice | None = None):
    """x [T, width] times the rows of `raw`: float32 [T, rows], outputs outside `part` NaN."""
    rows, (T, width) = len(raw), x.shape
    y = np.full((T, rows), np.nan, np.float32)
    library = ctypes.CDLL(str(LIBRARY))
    assert all(a.flags.c_contiguous for a in (raw, x, y))
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (raw, x, y)]
    begin, end = (part.start, part.stop) if part else (0, rows)
    wide = ctypes.c_int64
    failed = library.kvasir_emulated(
        name.encode(),
        pointers[0],
        wide(rows),
        wide(width),
        pointers[1],
        wide(T),
        pointers[2],
        wide(begin),
        wide(end),
    )
    assert not failed
    return y


def same(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_any_number_of_rows_gives_the_bits_of_avx2(name: str) -> None:
    avx2, f = load("avx2"), FORMATS[name]
    for rows, width in ((29, 768), (16, 1024)):
        raw, x = weights(f, rows, width), inputs(150, width)
        want = avx2.linear(avx2.pack(name, raw, width), x)
        for T in (*range(1, 71), 128, 129, 150):
            assert same(emulated(name, raw, x[:T]), want[:T]), (rows, T)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("rows", [1, 8, 9, 70, 200])
def test_ragged_panels_give_the_bits_of_avx2(name: str, rows: int) -> None:
    avx2, f = load("avx2"), FORMATS[name]
    for width in (f.block, 3 * f.block, 5 * 256):
        raw, x = weights(f, rows, width, seed=rows), inputs(37, width)
        want = avx2.linear(avx2.pack(name, raw, width), x)
        for T in (1, 3, 7, 15, 37):
            assert same(emulated(name, raw, x[:T]), want[:T]), (width, T)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("T", [5, 33])
def test_a_part_of_the_outputs_is_written_and_no_more(name: str, T: int) -> None:
    f = FORMATS[name]
    raw, x = weights(f, 61, 256), inputs(T, 256)
    whole = emulated(name, raw, x)
    for part in (slice(0, 8), slice(8, 32), slice(24, 61)):
        y = emulated(name, raw, x, part)
        assert same(y[:, part], whole[:, part])
        y[:, part] = np.nan
        assert np.isnan(y).all()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0])
def test_the_ends_of_the_range_give_the_bits_of_avx2(name: str, fill: int) -> None:
    avx2, f = load("avx2"), FORMATS[name]
    width = 2 * f.block
    raw, x = weights(f, 9, width, fill=fill), np.ones((20, width), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    x[3:, width // 2 :: 3] = -1
    assert same(emulated(name, raw, x), avx2.linear(avx2.pack(name, raw, width), x))
    assert same(emulated(name, raw, x[:4]), avx2.linear(avx2.pack(name, raw, width), x[:4]))
