"""Weights to blocks: what it takes to quantize a model, equal to ggml's reference bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvasir.errors import UsageError
from kvasir.quant import decode, formats
from kvasir.quant.formats import Format

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CHUNK = 1 << 18  # weights encoded at a time


def encode(values: Floats, format: Format) -> Bytes:
    """Rows [n, width] of float32 in `format`: uint8 [n, row bytes], what `format.decode` takes.

    Raises UsageError for a format without an encoder, a width that is no multiple of its block, and values
    that the format cannot hold: nan, inf, or a block whose scale exceeds float16.
    """
    encoder = ENCODERS.get(format.name)
    n, width = values.shape
    if encoder is None:
        raise UsageError(f"Kvasir does not write {format.name}", hint=f"it writes {', '.join(ENCODERS)}")
    if width % format.block:
        raise UsageError(f"rows of {width} weights cannot be {format.name}: not a multiple of {format.block}")
    out = np.empty((n, format.row_bytes(width)), np.uint8)
    step = max(1, CHUNK // max(width, 1))
    for start in range(0, n, step):
        piece = np.ascontiguousarray(values[start : start + step], np.float32)
        if not np.isfinite(piece).all():
            raise UsageError(f"nan or inf among the weights cannot be {format.name}")
        with np.errstate(all="ignore"):
            blocks = encoder(piece.reshape(-1, format.block))
        if not _finite(blocks):
            raise UsageError(f"weights as large as {np.abs(piece).max():.3g} cannot be {format.name}")
        out[start : start + step] = blocks.view(np.uint8).reshape(len(piece), -1)
    return out


def _finite(blocks: npt.NDArray[Any]) -> bool:
    scales = [blocks[s] for s in ("d", "m") if s in (blocks.dtype.names or ())]
    return all(np.isfinite(s).all() for s in scales or [blocks])


def _inverse(d: Floats) -> Floats:
    """1 / d, and 0 for 0."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _pack(q: Bytes) -> Bytes:
    """[n, 32] nibbles -> [n, 16]: weight i low, weight i + 16 high."""
    return q[:, :16] | (q[:, 16:] << np.uint8(4))


def _plain(dtype: str) -> Callable[[Floats], npt.NDArray[Any]]:
    return lambda x: x.astype(dtype)


def _bf16(x: Floats) -> npt.NDArray[np.uint16]:
    """The upper half of each float32, rounded to the nearest, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _q8_0(x: Floats) -> npt.NDArray[Any]:
    """Scale = the largest magnitude / 127; halves round away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    size = np.abs(scaled)
    # floor(size + 0.5) would round 0.49999997 up: its sum is not a float32.
    whole = np.floor(size)
    whole += size - whole >= 0.5
    b = np.empty(len(x), decode.Q8_0)
    b["d"], b["q"] = d[:, 0], np.copysign(whole, scaled)
    return b


def _by_extreme(x: Floats, levels: int) -> tuple[Floats, Bytes]:
    """Scale and q for value = d * (q - levels / 2): the weight of largest magnitude becomes q = 0."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = extreme / np.float32(-levels // 2)
    q = x * _inverse(d) + np.float32(levels / 2 + 0.5)
    return d[:, 0], np.minimum(q, levels - 1).astype(np.uint8)


def _by_range(x: Floats, levels: int) -> tuple[Floats, Floats, Bytes]:
    """Scale, minimum and q for value = d * q + m."""
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(levels - 1)
    q = (x - low) * _inverse(d) + np.float32(0.5)
    return d[:, 0], low[:, 0], np.minimum(q, levels - 1).astype(np.uint8)


def _fifth_bits(q: Bytes) -> npt.NDArray[np.uint32]:
    """[n, 32] -> [n]: bit i is the fifth bit of weight i."""
    return np.packbits(q >> 4, axis=1, bitorder="little").view("<u4")[:, 0]


def _q4_0(x: Floats) -> npt.NDArray[Any]:
    b = np.empty(len(x), decode.Q4_0)
    b["d"], q = _by_extreme(x, 16)
    b["q"] = _pack(q)
    return b


def _q4_1(x: Floats) -> npt.NDArray[Any]:
    b = np.empty(len(x), decode.Q4_1)
    b["d"], b["m"], q = _by_range(x, 16)
    b["q"] = _pack(q)
    return b


def _q5_0(x: Floats) -> npt.NDArray[Any]:
    b = np.empty(len(x), decode.Q5_0)
    b["d"], q = _by_extreme(x, 32)
    b["high"], b["q"] = _fifth_bits(q), _pack(q & np.uint8(15))
    return b


def _q5_1(x: Floats) -> npt.NDArray[Any]:
    b = np.empty(len(x), decode.Q5_1)
    b["d"], b["m"], q = _by_range(x, 32)
    b["high"], b["q"] = _fifth_bits(q), _pack(q & np.uint8(15))
    return b


ENCODERS: dict[str, Callable[[Floats], npt.NDArray[Any]]] = {
    formats.F32.name: _plain("<f4"),
    formats.F16.name: _plain("<f2"),
    formats.BF16.name: _bf16,
    formats.Q8_0.name: _q8_0,
    formats.Q4_0.name: _q4_0,
    formats.Q4_1.name: _q4_1,
    formats.Q5_0.name: _q5_0,
    formats.Q5_1.name: _q5_1,
}
