"""What the blocks of each format mean: a numpy record that lays a block out, and the floats it stands for.

Each `*_floats` takes blocks [n] of its record and gives float32 [n, weights of a block].  Products are formed
in the order in which ggml forms them (scale x sub-scale first), so the floats are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Blocks = npt.NDArray[Any]
Decoder = Callable[[Bytes, int], Floats]

CHUNK_BYTES = 1 << 18  # rows are decoded in pieces of about this size, so that temporaries stay in the cache

Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("high", "<u4"), ("q", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "<u4"), ("q", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
Q2_K = np.dtype([("scales", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("m", "<f2")])
Q3_K = np.dtype([("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
Q4_K = np.dtype([("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("q", "u1", 128)])
Q5_K = np.dtype([("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)])
Q6_K = np.dtype([("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
IQ4_NL = Q4_0
IQ4_XS = np.dtype([("d", "<f2"), ("scales_high", "<u2"), ("scales", "u1", 4), ("q", "u1", 128)])
MXFP4 = np.dtype([("e", "u1"), ("q", "u1", 16)])

# The sixteen levels of the non-linear 4-bit formats, and the FP4 (E2M1) levels times two.
IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
FP4_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def plain(dtype: str) -> Decoder:
    """The decoder of rows that are an array of `dtype`."""

    def decode(raw: Bytes, width: int) -> Floats:
        return np.ascontiguousarray(raw).view(dtype).reshape(len(raw), width).astype(np.float32)

    return decode


def bf16(raw: Bytes, width: int) -> Floats:
    """Rows of bfloat16: the upper half of a float32."""
    bits = np.ascontiguousarray(raw).view("<u2").reshape(len(raw), width).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def blocks(record: np.dtype[Any], floats: Callable[[Blocks], Floats]) -> Decoder:
    """The decoder of rows that are blocks of `record`, side by side."""

    def decode(raw: Bytes, width: int) -> Floats:
        out = np.empty((len(raw), width), np.float32)
        step = max(1, CHUNK_BYTES // max(raw.shape[1], 1))
        # A damaged scale may be inf or nan: inf x 0 is then nan, without a word from numpy.
        with np.errstate(all="ignore"):
            for start in range(0, len(raw), step):
                piece = np.ascontiguousarray(raw[start : start + step])
                out[start : start + step] = floats(piece.reshape(-1).view(record)).reshape(len(piece), width)
        return out

    return decode


def _f32(half: npt.NDArray[np.float16]) -> Floats:
    return half.astype(np.float32)[:, None]


def _nibbles(q: Bytes) -> Bytes:
    """[n, groups, g] -> [n, groups, 2g]: a group's low halves, then its high halves."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def _planes(q: Bytes, bits: int, count: int) -> Bytes:
    """[n, groups, g] -> [n, groups, count, g]: the `count` fields of `bits` bits in a byte, lowest first."""
    shifts = np.arange(count, dtype=np.uint8) * np.uint8(bits)
    return (q[:, :, None, :] >> shifts[:, None]) & np.uint8((1 << bits) - 1)


def _bits32(high: npt.NDArray[np.uint32]) -> Bytes:
    """[n] -> [n, 32]: bit i, worth 16."""
    return ((high[:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << np.uint8(4)


def q4_0_floats(b: Blocks) -> Floats:
    """d * (q - 8)."""
    return _f32(b["d"]) * (_nibbles(b["q"]).astype(np.float32) - 8)


def q4_1_floats(b: Blocks) -> Floats:
    """d * q + m."""
    return _f32(b["d"]) * _nibbles(b["q"]).astype(np.float32) + _f32(b["m"])


def q5_0_floats(b: Blocks) -> Floats:
    """d * (q - 16), the fifth bits in one word."""
    return _f32(b["d"]) * ((_nibbles(b["q"]) | _bits32(b["high"])).astype(np.float32) - 16)


def q5_1_floats(b: Blocks) -> Floats:
    """d * q + m, the fifth bits in one word."""
    return _f32(b["d"]) * (_nibbles(b["q"]) | _bits32(b["high"])).astype(np.float32) + _f32(b["m"])


def q8_0_floats(b: Blocks) -> Floats:
    """d * q."""
    return _f32(b["d"]) * b["q"].astype(np.float32)


def q2_k_floats(b: Blocks) -> Floats:
    """16 groups of 16: (d * scale) * q - (m * min); a scale byte is scale | min << 4."""
    scale = _f32(b["d"]) * (b["scales"] & 15).astype(np.float32)
    low = _f32(b["m"]) * (b["scales"] >> 4).astype(np.float32)
    q = _planes(b["q"].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16).astype(np.float32)
    return (scale[..., None] * q - low[..., None]).reshape(-1, 256)


def q3_k_floats(b: Blocks) -> Floats:
    """16 groups of 16: (d * (scale - 32)) * (q - 4 where the high bit is clear); 6-bit scales in 12 bytes."""
    low = _nibbles(b["scales"][:, :8])
    high = _planes(b["scales"][:, None, 8:], 2, 4).reshape(-1, 16)
    scale = _f32(b["d"]) * ((low | high << np.uint8(4)).astype(np.float32) - 32)
    q = _planes(b["q"].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    top = _planes(b["high"][:, None, :], 1, 8).reshape(-1, 16, 16)
    values = (q | top << np.uint8(2)).astype(np.float32) - 4
    return (scale[..., None] * values).reshape(-1, 256)


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """The 8 scales and 8 minima of 6 bits that Q4_K and Q5_K keep in 12 bytes: [n, 12] -> 2 x [n, 8].

    Bytes 0-3 and 4-7 hold the first four scales and minima; their top two bits, with the nibbles of
    bytes 8-11, are the last four.
    """
    scale, low, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    late_scale = (rest & 15) | (scale >> 6) << np.uint8(4)
    late_low = (rest >> 4) | (low >> 6) << np.uint8(4)
    return (
        np.concatenate([scale & 63, late_scale], axis=1).astype(np.float32),
        np.concatenate([low & 63, late_low], axis=1).astype(np.float32),
    )


def q4_k_floats(b: Blocks) -> Floats:
    """8 groups of 32: (d * scale) * q - (m * min)."""
    scale, low = _k_scales(b["scales"])
    q = _nibbles(b["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    return ((_f32(b["d"]) * scale)[..., None] * q - (_f32(b["m"]) * low)[..., None]).reshape(-1, 256)


def q5_k_floats(b: Blocks) -> Floats:
    """8 groups of 32: (d * scale) * q - (m * min); bit g of `high` is the fifth bit of group g."""
    scale, low = _k_scales(b["scales"])
    high = _planes(b["high"][:, None, :], 1, 8).reshape(-1, 8, 32)
    q = (_nibbles(b["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32) | high << np.uint8(4)).astype(np.float32)
    return ((_f32(b["d"]) * scale)[..., None] * q - (_f32(b["m"]) * low)[..., None]).reshape(-1, 256)


def q6_k_floats(b: Blocks) -> Floats:
    """16 groups of 16: (d * scale) * (q - 32), four low bits in `q`, two high ones in `high`."""
    scale = _f32(b["d"]) * b["scales"].astype(np.float32)
    low = _nibbles(b["q"].reshape(-1, 2, 64)).reshape(-1, 256)
    high = _planes(b["high"].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    q = (low | high << np.uint8(4)).astype(np.float32) - 32
    return (scale[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def iq4_nl_floats(b: Blocks) -> Floats:
    """d * level[q]."""
    return _f32(b["d"]) * IQ4_LEVELS[_nibbles(b["q"])]


def iq4_xs_floats(b: Blocks) -> Floats:
    """8 groups of 32: (d * (scale - 32)) * level[q]; scales of 6 bits, the two high ones apart."""
    low = np.stack([b["scales"] & 15, b["scales"] >> 4], axis=-1).reshape(-1, 8)
    high = (b["scales_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    scale = _f32(b["d"]) * ((low | high << np.uint8(4)).astype(np.float32) - 32)
    q = _nibbles(b["q"].reshape(-1, 8, 16))
    values: Floats = scale[..., None] * IQ4_LEVELS[q]
    return values.reshape(-1, 256)


def mxfp4_floats(b: Blocks) -> Floats:
    """2^(e - 128) * (twice the FP4 value); e is a power-of-two exponent without a sign (OCP microscaling)."""
    e = b["e"].astype(np.uint32)
    # 2^(e-128) is subnormal in float32 for e < 2.
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    scale: Floats = bits.astype(np.uint32).view(np.float32)
    return scale[:, None] * FP4_LEVELS[_nibbles(b["q"])]
