"""Ops that look at one number at a time: sums, products, activations, and the product of a gate and its fn.

out[r, i] = op(x[r, i], y[r, i])      y may have a column for each of x's heads

Bound by bytes: two reads and a write of a row.  A program has 1,024 columns of one row, eight a thread, so
that 16-bit rows move 16 bytes at once; rows are views with a stride of their own.
Tests: tests/cuda/interpreted/rows.py, against the reference's ops of the same names.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, activated, cdiv, gated, release, tanh, wait

CUT = Config({"BLOCK": 1024})


@triton.jit
def elementwise_kernel(
    x, y, out, width, number, x_stride, y_stride, out_stride, HEAD: tl.constexpr, OP: tl.constexpr,
    FN: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    wait(PDL)
    release(PDL)
    a = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if y is not None:
        at = column if HEAD == 1 else column // HEAD
        b = tl.load(y + row * y_stride + at, mask=inside, other=0.0).to(tl.float32)
    if OP == "add":
        z = a + b
    elif OP == "mul":
        z = a * b
    elif OP == "scale":
        z = a * number
    elif OP == "softcap":
        z = number * tanh(a / number)
    elif OP == "act":
        z = activated(a, FN)
    elif OP == "glu":
        z = gated(a, b, number, FN, False)
    elif OP == "limited":
        z = gated(a, b, number, FN, True)
    else:
        tl.static_assert(OP == "copy", "an op that no kernel knows")
        z = a
    tl.store(out + row * out_stride + column, z.to(out.dtype.element_ty), mask=inside)


def elementwise(
    op: str, x: torch.Tensor, y: torch.Tensor | None, out: torch.Tensor, number: float = 0.0, fn: str = ""
) -> Call:
    """op: add, mul, scale, softcap, act, glu, limited (glu with `number` as its limit) or copy.

    x, out [rows, D]; y [rows, D], or for mul [rows, heads].  out may be x.
    """
    width = x.shape[1]
    arguments = {
        "x": x, "y": y, "out": out, "width": width, "number": float(number), "x_stride": x.stride(0),
        "y_stride": 0 if y is None else y.stride(0), "out_stride": out.stride(0),
    }  # fmt: skip
    head = 1 if y is None else width // y.shape[1]
    grid = (len(x), cdiv(width, CUT.sizes["BLOCK"]))
    return Call(elementwise_kernel, grid, arguments, {"HEAD": head, "OP": op, "FN": fn}, CUT)
