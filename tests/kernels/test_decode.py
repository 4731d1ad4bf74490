"""Rows of every number format, as an embedding reads them: the gguf package's floats, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from kvasir.backends.base import Batch, Memory
from kvasir.backends.cpu import load
from kvasir.checkpoint.tensor import Tensor
from kvasir.plan import Plan
from kvasir.quant.formats import FORMATS
from tests.kernels.small import USABLE, backend, ints

NAMES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
         "IQ4_NL", "IQ4_XS", "MXFP4"]  # fmt: skip


def random_rows(name: str, rows: int, width: int) -> np.ndarray:
    """Random bytes: all scales and all weights a file could hold, infinities and NaN among them."""
    return np.random.default_rng(5).integers(0, 256, (rows, FORMATS[name].row_bytes(width)), np.uint8)


def expected(name: str, raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(quants.dequantize(raw, GGMLQuantizationType[name]), np.float32)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("name", NAMES)
def test_decoded_as_gguf_does(name: str, isa: str) -> None:
    raw = random_rows(name, 200, 768)
    got, want = load(isa).decode(name, raw, 768), expected(name, raw)
    np.testing.assert_array_equal(got, want)
    finite = np.isfinite(want)
    assert np.array_equal(got[finite].view(np.uint32), want[finite].view(np.uint32))  # zeros keep their sign


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_reads_its_file_format(name: str) -> None:
    raw = random_rows(name, 9, 256)
    p = Plan("embed")
    p.output = p.embed("table", 9, 256)
    program = backend().compile(p, {"table": Tensor("table", FORMATS[name], (9, 256), raw)}, Memory(1))
    batch = Batch(
        ints([8, 0, 3]), ints([0, 1, 2]), ints([0, 3]), np.zeros((1, 0), np.int32), ints([-1]), ints([])
    )
    np.testing.assert_array_equal(program.step(batch), expected(name, raw)[[8, 0, 3]])


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="Q4_0 rows of 64 do not have 34 bytes"):
        load("portable").decode("Q4_0", np.zeros((1, 34), np.uint8), 64)
    with pytest.raises(ValueError, match="Q9_Z"):
        load("portable").decode("Q9_Z", np.zeros((1, 34), np.uint8), 64)
