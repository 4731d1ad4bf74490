"""Weights as they lie on the device: four layouts for all formats, and how each format is brought to one.

| format                            | layout  | codes | group | scale of a group                      |
|-----------------------------------|---------|-------|-------|---------------------------------------|
| F32, F16, BF16                    | Dense   |       |       |                                       |
| Q4_0, Q4_1, IQ4_NL                | Blocks  | 4 bit | 32    | one float16 (Q4_1: and a minimum)     |
| MXFP4                             | Blocks  | 4 bit | 32    | a power of two                        |
| Q4_K, IQ4_XS                      | Blocks  | 4 bit | 32    | an integer times a float16 of 256     |
| Q2_K, Q3_K                        | Blocks  | 4 bit | 16    | an integer times a float16 of 256     |
| Q8_0, Q5_0, Q5_1                  | Blocks  | 8 bit | 32    | one float16 (Q5_1: and a minimum)     |
| Q5_K                              | Blocks  | 8 bit | 32    | an integer times a float16 of 256     |
| Q6_K                              | Blocks  | 8 bit | 16    | an integer times a float16 of 256     |
| (made at load when asked for)     | Fp8     | e4m3  | a row | a float32 a row                       |

Nothing is lost on the way: `floats` gives the bits that `quant/decode.py` gives.  2, 3, 5 and 6 bits take
more room than in the file (4 or 8), which `said` states when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import Bug
from kvasir.quant import decode

SUPER = 256  # weights that share a float16 where scales are integers
FP8_MOST = 448.0  # the largest e4m3


@dataclass(frozen=True)
class Dense:
    """data [O, D] (a stack of experts [E, O, D]) in bfloat16, float16 or float32, rows contiguous."""

    data: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def n_bytes(self) -> int:
        return int(self.data.numel() * self.data.element_size())

    def floats(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.data.to(dtype)


@dataclass(frozen=True)
class Fp8:
    """data [O, D] (or [E, O, D]) float8_e4m3fn, scales [O] (or [E, O]) float32: w = scale * data."""

    data: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def n_bytes(self) -> int:
        return int(self.data.numel() + self.scales.numel() * 4)

    def floats(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (self.data.to(torch.float32) * self.scales[..., None]).to(dtype)


@dataclass(frozen=True)
class Blocks:
    """Codes of 4 or 8 bits in groups of `group` (16 or 32) weights of a row; D is a multiple of 32.

    codes    bits 4: uint8 [O, D/2]; byte 16 b + j of a row holds weight 32 b + j in its low half and
             weight 32 b + 16 + j in its high half.  bits 8: int8 [O, D], in order.
    scales   [O, D/group]: float16, or int8 where there is `super_scales`, or uint8 exponents where `is_fp4`
    mins     None, or [O, D/group] float16, or uint8 where there is `super_mins`
    super_scales, super_mins   None, or float16 [O, ceil(D/256)]
    levels   None, or float32 [16]: what a 4-bit code means

    With value = levels[code] or code - zero, and s = scale (times its super_scale, in float32):

        plain           w = s * value + min          (min 0 where there are none)
        super           w = s * value - super_min * min
        is_fp4          w = 2^(scale - 128) * value  (levels are the FP4 values times two)

    A stack of experts has [E] in front of every shape but that of `levels`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    mins: torch.Tensor | None
    super_scales: torch.Tensor | None
    super_mins: torch.Tensor | None
    levels: torch.Tensor | None
    bits: int
    group: int
    zero: int
    is_fp4: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, width = self.codes.shape
        return (*rows, width * 2 if self.bits == 4 else width)

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """All that has a row for each row of the matrix: codes, scales, mins, super_scales, super_mins."""
        return self.codes, self.scales, self.mins, self.super_scales, self.super_mins

    @property
    def n_bytes(self) -> int:
        return int(sum(t.numel() * t.element_size() for t in self.tensors if t is not None))

    def of(self, tensors: Sequence[torch.Tensor | None]) -> Blocks:
        """Others of the same kind, from what `tensors` lists."""
        codes, scales, mins, super_scales, super_mins = tensors
        assert codes is not None and scales is not None
        return replace(self, codes=codes, scales=scales, mins=mins, super_scales=super_scales,
                       super_mins=super_mins)  # fmt: skip

    def floats(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Decoded, each product in float32 and in the order of `quant/decode.py`."""
        *rows, width = self.shape
        scale = _exponents(self.scales) if self.is_fp4 else self.scales.float()
        if self.super_scales is not None:
            scale = _spread(self.super_scales, scale.shape[-1], self.group) * scale
        values = self._values().view(*rows, width // self.group, self.group)
        w = scale[..., None] * values
        if self.mins is not None:
            low = self.mins.float()
            if self.super_mins is not None:
                low = -(_spread(self.super_mins, low.shape[-1], self.group) * low)
            w = w + low[..., None]
        return w.reshape(*rows, width).to(dtype)

    def _values(self) -> torch.Tensor:
        if self.bits == 8:
            return self.codes.float() - self.zero
        *rows, n = self.codes.shape
        c = self.codes.view(*rows, n // 16, 1, 16)
        codes = torch.cat([c & 15, c >> 4], -2).reshape(*rows, 2 * n)
        return self.levels[codes.long()] if self.levels is not None else codes.float() - self.zero


Weight = Dense | Blocks | Fp8


def _spread(of_256: torch.Tensor, n_groups: int, group: int) -> torch.Tensor:
    return of_256.float().repeat_interleave(SUPER // group, -1)[..., :n_groups]


def _exponents(e: torch.Tensor) -> torch.Tensor:
    """2^(e - 128) in float32, by its bits; below e = 2 it is subnormal."""
    n = e.int()
    return torch.where(n < 2, 0x00200000 * (n + 1), (n - 1) << 23).view(torch.float32)


# -- from a file's tensor -----------------------------------------------------------------------


def load(tensor: Tensor, device: torch.device | str, dense: torch.dtype) -> Weight:
    """A tensor of a file on the device.  F32, F16 and BF16 become `dense`; others keep every bit."""
    if tensor.format.name in ("F32", "F16", "BF16"):
        return Dense(_dense(tensor).to(dense).reshape(tensor.shape).to(device))
    if tensor.format.name not in FROM:
        raise Bug(f"{tensor.name}: no layout on the device for {tensor.format.name}")
    rows = tensor.shape[:-1]
    raw = np.ascontiguousarray(tensor.raw)
    made = FROM[tensor.format.name](raw.reshape(-1), tensor.shape[-1])

    def on(a: Any) -> torch.Tensor | None:
        if a is None:
            return None
        t = torch.from_numpy(np.array(a, order="C"))
        return t.reshape(*rows, -1).to(device)

    levels = None if made.levels is None else torch.from_numpy(made.levels.copy()).to(device)
    codes, scales = on(made.codes), on(made.scales)
    assert codes is not None and scales is not None
    return Blocks(
        codes, scales, on(made.mins), on(made.super_scales), on(made.super_mins), levels,
        made.bits, made.group, made.zero, made.is_fp4,
    )  # fmt: skip


def _dense(tensor: Tensor) -> torch.Tensor:
    raw = np.array(tensor.raw).reshape(-1)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.format.name]
    return torch.from_numpy(raw).view(dtype)


@dataclass(frozen=True)
class _Made:
    """Blocks as numpy arrays, before they have the shape of the tensor."""

    codes: Any
    scales: Any
    mins: Any = None
    super_scales: Any = None
    super_mins: Any = None
    levels: Any = None
    bits: int = 4
    group: int = 32
    zero: int = 0
    is_fp4: bool = False


def _pack4(codes: Any) -> Any:
    """Codes [..., 32] of 4 bits -> bytes [..., 16], weight j low and weight 16 + j high."""
    c = codes.reshape(-1, 2, 16).astype(np.uint8)
    return c[:, 0] | c[:, 1] << np.uint8(4)


def _q4_0(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q4_0)
    return _Made(b["q"], b["d"], zero=8)


def _q4_1(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q4_1)
    return _Made(b["q"], b["d"], b["m"])


def _iq4_nl(raw: Any, width: int) -> _Made:
    b = raw.view(decode.IQ4_NL)
    return _Made(b["q"], b["d"], levels=decode.IQ4_LEVELS)


def _mxfp4(raw: Any, width: int) -> _Made:
    b = raw.view(decode.MXFP4)
    return _Made(b["q"], b["e"], levels=decode.FP4_LEVELS, is_fp4=True)


def _q8_0(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q8_0)
    return _Made(b["q"], b["d"], bits=8)


def _q5(raw: Any, record: Any) -> Any:
    b = raw.view(record)
    return b, (decode._nibbles(b["q"]) | decode._bits32(b["high"])).astype(np.int8)


def _q5_0(raw: Any, width: int) -> _Made:
    b, codes = _q5(raw, decode.Q5_0)
    return _Made(codes, b["d"], bits=8, zero=16)


def _q5_1(raw: Any, width: int) -> _Made:
    b, codes = _q5(raw, decode.Q5_1)
    return _Made(codes, b["d"], b["m"], bits=8)


def _q4_k(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q4_K)
    scale, low = (s.astype(np.uint8) for s in decode._k_scales(b["scales"]))
    codes = decode._nibbles(b["q"].reshape(-1, 4, 32))
    return _Made(_pack4(codes), scale.view(np.int8), low, b["d"], b["m"])


def _q5_k(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q5_K)
    scale, low = (s.astype(np.uint8) for s in decode._k_scales(b["scales"]))
    high = decode._planes(b["high"][:, None, :], 1, 8).reshape(-1, 8, 32)
    codes = decode._nibbles(b["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32) | high << np.uint8(4)
    return _Made(codes.astype(np.int8), scale.view(np.int8), low, b["d"], b["m"], bits=8)


def _q6_k(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q6_K)
    low = decode._nibbles(b["q"].reshape(-1, 2, 64)).reshape(-1, 256)
    high = decode._planes(b["high"].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    codes = (low | high << np.uint8(4)).astype(np.int8)
    return _Made(codes, b["scales"], super_scales=b["d"], bits=8, group=16, zero=32)


def _q2_k(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q2_K)
    codes = decode._planes(b["q"].reshape(-1, 2, 32), 2, 4)
    scale, low = (b["scales"] & 15).astype(np.int8), b["scales"] >> 4
    return _Made(_pack4(codes), scale, low, b["d"], b["m"], group=16)


def _q3_k(raw: Any, width: int) -> _Made:
    b = raw.view(decode.Q3_K)
    low = decode._nibbles(b["scales"][:, :8])
    high = decode._planes(b["scales"][:, None, 8:], 2, 4).reshape(-1, 16)
    scale = (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
    q = decode._planes(b["q"].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    top = decode._planes(b["high"][:, None, :], 1, 8).reshape(-1, 16, 16)
    return _Made(_pack4(q | top << np.uint8(2)), scale, super_scales=b["d"], group=16, zero=4)


def _iq4_xs(raw: Any, width: int) -> _Made:
    b = raw.view(decode.IQ4_XS)
    low = np.stack([b["scales"] & 15, b["scales"] >> 4], axis=-1).reshape(-1, 8)
    high = (b["scales_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    scale = (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
    return _Made(b["q"], scale, super_scales=b["d"], levels=decode.IQ4_LEVELS)


FROM: dict[str, Callable[[Any, int], _Made]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4, "Q8_0": _q8_0, "Q5_0": _q5_0,
    "Q5_1": _q5_1, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip


# -- on the device ------------------------------------------------------------------------------


def to_fp8(weight: Weight) -> Fp8:
    """A weight rounded to e4m3 with a scale a row."""
    w = weight.floats()
    scales = torch.clamp(w.abs().amax(-1), min=1e-12) / FP8_MOST
    return Fp8((w / scales[..., None]).to(torch.float8_e4m3fn), scales)


def alike(a: Weight, b: Weight) -> bool:
    """Whether `stack` may put rows of both under one another."""
    if type(a) is not type(b) or a.shape[-1] != b.shape[-1] or len(a.shape) != len(b.shape):
        return False
    if isinstance(a, Dense) and isinstance(b, Dense):
        return bool(a.data.dtype == b.data.dtype)
    if isinstance(a, Blocks) and isinstance(b, Blocks):
        kinds = [
            (w.bits, w.group, w.zero, w.is_fp4, w.levels is None, [t is None or t.dtype for t in w.tensors])
            for w in (a, b)
        ]
        same = a.levels is None or b.levels is None or bool(torch.equal(a.levels, b.levels))
        return kinds[0] == kinds[1] and same
    return True


def stack(weights: list[Weight]) -> Weight:
    """The rows of several like matrices (or stacks of matrices) under one another, in order."""
    first = weights[0]
    axis = len(first.shape) - 2
    if isinstance(first, Dense):
        return Dense(torch.cat([w.data for w in weights if isinstance(w, Dense)], axis))
    if isinstance(first, Fp8):
        own = [w for w in weights if isinstance(w, Fp8)]
        return Fp8(torch.cat([w.data for w in own], axis), torch.cat([w.scales for w in own], axis))
    parts = [w.tensors for w in weights if isinstance(w, Blocks)]
    return first.of(
        [
            None if column[0] is None else torch.cat([t for t in column if t is not None], axis)
            for column in zip(*parts, strict=True)
        ]
    )


def said(formats: dict[str, int]) -> str:
    """A sentence on formats (name -> weights) that take more room on the device than in the file, or ""."""
    wider = {"Q2_K": (2.6, 5.1), "Q3_K": (3.4, 4.6), "Q5_0": (5.5, 8.5), "Q5_1": (6.0, 9.0),
             "Q5_K": (5.5, 8.6), "Q6_K": (6.6, 8.6)}  # fmt: skip
    found = [f"{n} {wider[n][0]} -> {wider[n][1]} bits a weight" for n in sorted(formats) if n in wider]
    return "on the device these formats take more room than in the file: " + ", ".join(found) if found else ""
