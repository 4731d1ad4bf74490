"""RMS norm, layer norm and L2 norm of the heads of a row, with a sum before them where wanted.

out = norm(x + y) w + b      over each of `heads` parts of width W of a row;  total = x + y is written too

Bound by bytes where there are many rows (each is read and written once), by the latency of one load, one
reduction over the warps and one store where there is one.  So a program holds whole parts in registers: one
of 1,024 columns or more, or as many short ones as make up that.  Weights are loaded before the wait.
Tests: tests/cuda/interpreted/rows.py, against `reference.norm` and `reference.l2norm`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, cdiv, power, release, wait

TILE = 1024  # columns a program has at least, whatever the width of a part


@triton.jit(do_not_specialize=["n_parts"])
def norm_kernel(
    x, y, weight, bias, total, out, n_parts, heads, width, eps, x_stride, y_stride, total_stride, out_stride,
    KIND: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) * PARTS + tl.arange(0, PARTS)
    column = tl.arange(0, BLOCK)
    row = (part // heads).to(tl.int64)
    offset = ((part % heads) * width)[:, None] + column[None]
    inside = (part < n_parts)[:, None] & (column < width)[None]
    if weight is not None:
        w = tl.load(weight + column, mask=column < width, other=0.0)
    if bias is not None:
        b = tl.load(bias + column, mask=column < width, other=0.0)
    wait(PDL)
    h = tl.load(x + (row * x_stride)[:, None] + offset, mask=inside, other=0.0).to(tl.float32)
    if y is not None:
        h += tl.load(y + (row * y_stride)[:, None] + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + (row * total_stride)[:, None] + offset, h.to(total.dtype.element_ty), mask=inside)
    release(PDL)
    if KIND == "layer":
        mean = tl.sum(h, 1) / width
        h = tl.where(inside, h - mean[:, None], 0.0)
    squares = tl.sum(h * h, 1)
    if KIND != "l2":
        squares = squares / width
    h = h / tl.sqrt(squares + eps)[:, None]
    if weight is not None:
        h = h * w[None].to(tl.float32)
    if bias is not None:
        h = h + b[None].to(tl.float32)
    tl.store(out + (row * out_stride)[:, None] + offset, h.to(out.dtype.element_ty), mask=inside)


def config(width: int) -> Config:
    """Eight columns a thread at least, 32 at most."""
    block = power(width)
    parts = max(1, TILE // block)
    return Config({"PARTS": parts, "BLOCK": block}, n_warps=min(max(parts * block // 512, 2), 16))


def norm(
    x: torch.Tensor, y: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None,
    eps: float, heads: int, kind: str, total: torch.Tensor | None, out: torch.Tensor,
) -> Call:  # fmt: skip
    """x, y, total, out [rows, heads * W], weight, bias [W]; `kind`: rms, layer or l2.  total may be x."""
    width = x.shape[1] // heads
    cut = config(width)
    n_parts = len(x) * heads
    arguments = {
        "x": x, "y": y, "weight": weight, "bias": bias, "total": total, "out": out, "n_parts": n_parts,
        "heads": heads, "width": width, "eps": eps, "x_stride": x.stride(0),
        "y_stride": 0 if y is None else y.stride(0), "total_stride": 0 if total is None else total.stride(0),
        "out_stride": out.stride(0),
    }  # fmt: skip
    return Call(norm_kernel, (cdiv(n_parts, cut.sizes["PARTS"]),), arguments, {"KIND": kind}, cut)
