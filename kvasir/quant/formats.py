"""Number formats of weights: one table, a row a format: name, GGUF type, block, bytes, decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """A way to write a row of weights as bytes: blocks of `block` weights in `block_bytes` bytes, side by side.

    `decode(raw [n, row bytes], width)` gives float32 [n, width].
    """

    name: str
    ggml_type: int
    block: int
    block_bytes: int
    decode: Callable[[Bytes, int], Floats]

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights; `width` must be a multiple of `block`."""
        assert width % self.block == 0, f"{width} is not a multiple of {self.block}"
        return width // self.block * self.block_bytes


def _decode_f32(raw: Bytes, width: int) -> Floats:
    return np.ascontiguousarray(raw).view("<f4").reshape(len(raw), width).astype(np.float32)


def _decode_f16(raw: Bytes, width: int) -> Floats:
    return np.ascontiguousarray(raw).view("<f2").reshape(len(raw), width).astype(np.float32)


def _decode_bf16(raw: Bytes, width: int) -> Floats:
    bits = np.ascontiguousarray(raw).view("<u2").reshape(len(raw), width).astype(np.uint32) << 16
    return bits.view(np.float32)


F32 = Format("F32", 0, 1, 4, _decode_f32)
F16 = Format("F16", 1, 1, 2, _decode_f16)
BF16 = Format("BF16", 30, 1, 2, _decode_bf16)

FORMATS: dict[str, Format] = {f.name: f for f in (F32, F16, BF16)}
BY_GGML_TYPE: dict[int, Format] = {f.ggml_type: f for f in FORMATS.values()}
