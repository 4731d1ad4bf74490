"""Every format decodes to the floats of the gguf package, bit for bit, and encodes as it does."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from kvasir.errors import UsageError
from kvasir.quant import formats
from kvasir.quant.encode import ENCODERS, encode
from kvasir.quant.formats import BY_GGML_TYPE, FORMATS, WEIGHT_FORMATS, Format

NAMES = [f.name for f in WEIGHT_FORMATS]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    nan = np.isnan(a)
    return bool(
        a.dtype == b.dtype == np.float32
        and a.shape == b.shape
        and np.array_equal(nan, np.isnan(b))
        and np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32))
    )


def other(raw: np.ndarray, f: Format) -> np.ndarray:
    # The gguf package returns views of what it was given, in whatever alignment.
    with np.errstate(all="ignore"):
        return np.array(dequantize(raw.copy(), GGMLQuantizationType(f.ggml_type)), np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_random_blocks_decode_to_the_same_bits(name: str) -> None:
    """All 256 byte values in every place: scales of any kind, nan and inf too."""
    f = FORMATS[name]
    raw = np.random.default_rng(7).integers(0, 256, (37, 24 * f.block_bytes), dtype=np.uint8)
    assert same_bits(f.decode(raw, 24 * f.block), other(raw, f))


@pytest.mark.parametrize("name", NAMES)
def test_extreme_blocks(name: str) -> None:
    f = FORMATS[name]
    fills = (0, 1, 127, 128, 255, 0x7C, 0xFC, 0xF0, 0x0F)
    raw = np.stack([np.full(2 * f.block_bytes, v, np.uint8) for v in fills])
    assert same_bits(f.decode(raw, 2 * f.block), other(raw, f))


@pytest.mark.parametrize("name", NAMES)
def test_rows_cut_from_a_file_decode_as_the_whole_does(name: str) -> None:
    """Rows may be cut, permuted, and lie at odd addresses."""
    f = FORMATS[name]
    row = 2 * f.block_bytes
    file = np.random.default_rng(1).integers(0, 256, 1 + 9 * row, dtype=np.uint8)
    raw = file[1:].reshape(9, row)
    order = [8, 0, 3]
    whole = f.decode(raw, 2 * f.block)
    assert same_bits(f.decode(raw[order], 2 * f.block), whole[order])
    assert same_bits(f.decode(raw[::2], 2 * f.block), whole[::2])
    assert f.decode(raw[:0], 2 * f.block).shape == (0, 2 * f.block)


def test_table_agrees_with_gguf() -> None:
    for f in WEIGHT_FORMATS:
        t = GGMLQuantizationType(f.ggml_type)
        assert t.name == f.name and gguf.GGML_QUANT_SIZES[t] == (f.block, f.block_bytes)
    assert BY_GGML_TYPE[8] is formats.Q8_0 and -1 not in BY_GGML_TYPE
    known = set(BY_GGML_TYPE) | set(formats.UNREAD_GGML_TYPES)
    assert {t.value for t in GGMLQuantizationType} <= known


@pytest.mark.parametrize("name", list(ENCODERS))
def test_encodes_as_gguf_does(name: str) -> None:
    f = FORMATS[name]
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((301, 256)) * np.exp(rng.normal(0, 2, (301, 1)))).astype(np.float32)
    x[3] = 0
    x[4] = 1.5
    x[5, :32] = np.arange(32) / 127  # halves and exact steps
    x[6] = np.round(x[6])
    theirs = quantize(x.copy(), GGMLQuantizationType(f.ggml_type)).view(np.uint8).reshape(301, -1)
    ours = encode(x, f)
    assert np.array_equal(ours, theirs)
    again = f.decode(ours, 256)
    assert np.abs(again - x).max() <= np.abs(x).max() / 7


def test_what_cannot_be_encoded_is_refused() -> None:
    x = np.ones((2, 64), np.float32)
    with pytest.raises(UsageError, match="Q6_K"):
        encode(x, FORMATS["Q6_K"])
    with pytest.raises(UsageError, match="multiple of 32"):
        encode(x[:, :40], FORMATS["Q8_0"])
    with pytest.raises(UsageError, match="nan or inf"):
        encode(x * np.float32("nan"), FORMATS["Q8_0"])
    for name in ("Q8_0", "Q4_1", "F16"):
        with pytest.raises(UsageError, match="as large as"):
            encode(x * np.linspace(1, 3e38, 64, dtype=np.float32), FORMATS[name])
