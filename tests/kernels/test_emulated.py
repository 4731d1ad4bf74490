"""The kernels for VNNI and AMX, with their instructions emulated, give the bits of the AVX2 build."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvasir.native import load, usable
from kvasir.quant.formats import FORMATS
from tests.kernels.test_linear import FLOAT_NAMES, NAMES, inputs, weights

Floats = npt.NDArray[np.float32]
Multiply = Callable[..., Floats]

SOURCE = Path(__file__).resolve().parents[2] / "cpp" / "emulated" / "products.cpp"
CXX = shutil.which("g++")
FLAGS = ("-std=gnu++20", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-Werror")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))
QUANTIZED = [n for n in NAMES if n not in FLOAT_NAMES]

pytestmark = [
    pytest.mark.skipif(CXX is None, reason="no g++ to compile with"),
    pytest.mark.skipif("avx2" not in usable(), reason="this machine runs no AVX2, which the emulation needs"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Multiply:
    """emulated(format, raw, x [T, width], part): float32 [T, rows], outputs outside `part` NaN."""
    path = tmp_path_factory.mktemp("emulated") / "emulated.so"
    asked = ("-DKVASIR_EMULATE", "-DKVASIR_ISA_NS=emulated", "-O0", "-shared", "-o", str(path))
    subprocess.run([str(CXX), *FLAGS, *AVX2, *asked, str(SOURCE)], check=True)
    library = ctypes.CDLL(str(path))
    address, wide = ctypes.c_void_p, ctypes.c_int64

    def multiply(name: str, raw: Any, x: Floats, part: slice | None = None) -> Floats:
        rows, (T, width) = len(raw), x.shape
        y = np.full((T, rows), np.nan, np.float32)
        assert raw.flags.c_contiguous and x.flags.c_contiguous
        begin, end = (part.start, part.stop) if part else (0, rows)
        failed = library.kvasir_emulated(
            name.encode(), address(raw.ctypes.data), wide(rows), wide(width),
            address(x.ctypes.data), wide(T), address(y.ctypes.data), wide(begin), wide(end),
        )  # fmt: skip
        assert not failed
        return y

    return multiply


def avx2(name: str, raw: Any, x: Floats) -> Floats:
    return load("avx2").linear(load("avx2").pack(name, raw, x.shape[1]), x)


def same(a: Floats, b: Floats) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("flags", [("-mavxvnni",), AVX512, (*AVX512, "-mamx-tile", "-mamx-int8")])
def test_the_sources_compile_for_each_build(flags: tuple[str, ...]) -> None:
    subprocess.run(
        [str(CXX), *FLAGS, *AVX2, *flags, "-DKVASIR_ISA_NS=build", "-fsyntax-only", str(SOURCE)], check=True
    )


@pytest.mark.parametrize("name", QUANTIZED)
def test_any_number_of_rows_gives_the_bits_of_avx2(emulated: Multiply, name: str) -> None:
    raw, x = weights(FORMATS[name], 29, 768), inputs(150, 768)
    want = avx2(name, raw, x)
    for T in (*range(1, 71), 128, 129, 150):
        assert same(emulated(name, raw, x[:T]), want[:T]), T


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("rows", [1, 8, 9, 70, 200])
def test_ragged_panels_give_the_bits_of_avx2(emulated: Multiply, name: str, rows: int) -> None:
    f = FORMATS[name]
    for width in (f.block, 3 * f.block, 5 * 256):
        raw, x = weights(f, rows, width, seed=rows), inputs(37, width)
        want = avx2(name, raw, x)
        for T in (1, 7, 37):
            assert same(emulated(name, raw, x[:T]), want[:T]), (width, T)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("T", [5, 33])
def test_a_part_of_the_outputs_is_written_and_no_more(emulated: Multiply, name: str, T: int) -> None:
    raw, x = weights(FORMATS[name], 61, 256), inputs(T, 256)
    whole = emulated(name, raw, x)
    for part in (slice(0, 8), slice(8, 32), slice(24, 61)):
        y = emulated(name, raw, x, part)
        assert same(y[:, part], whole[:, part])
        y[:, part] = np.nan
        assert np.isnan(y).all()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0])
def test_the_ends_of_the_range_give_the_bits_of_avx2(emulated: Multiply, name: str, fill: int) -> None:
    f = FORMATS[name]
    width = 2 * f.block
    raw, x = weights(f, 9, width, fill=fill), np.ones((20, width), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    x[3:, width // 2 :: 3] = -1
    assert same(emulated(name, raw, x), avx2(name, raw, x))
    assert same(emulated(name, raw, x[:4]), avx2(name, raw, x[:4]))
