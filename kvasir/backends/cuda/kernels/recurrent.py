"""Gated DeltaNet and short convolutions over the rows of each sequence, with what they keep in slots.

    S <- S exp(decay) + beta (v - S k) k^T ;  y = S q / sqrt(dk)        for each value head, row after row
    y[t] = sum_i w[i] x[t - taps + 1 + i]                               rows before the step's own are in
    `past`

Delta: bound by the bytes of S in a decode (read and written once), by the latency of one row after another
in a prompt.  A program has BV rows of one head's S [dv, dk] in registers and goes through the sequence's
rows; the rows of S do not need each other.  Convolution: bound by bytes; each row of the output is a
program, and a second launch keeps the last taps - 1 inputs once all have been read.
Tests: tests/cuda/interpreted/check_recurrent.py, against `reference.delta` and `reference.conv`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, cdiv, power, release, wait
from kvasir.backends.cuda.kernels.face import Step

SLICE = 16  # rows of S a program
COLUMNS = 512


@triton.jit
def delta_kernel(
    q, k, v, decay, beta, starts, positions, slots, memory, out, k_heads, v_heads, dk, dv, scale, q_stride,
    k_stride, v_stride, decay_stride, beta_stride, out_stride, BV: tl.constexpr, DK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    n, head = tl.program_id(0), tl.program_id(1)
    r, c = tl.program_id(2) * BV + tl.arange(0, BV), tl.arange(0, DK)
    wait(PDL)
    release(PDL)
    first, end = tl.load(starts + n), tl.load(starts + n + 1)
    slot = tl.load(slots + n).to(tl.int64)
    own = memory + (slot * v_heads + head) * dv * dk + (r * dk)[:, None] + c[None]
    inside = (r < dv)[:, None] & (c < dk)[None]
    known = tl.load(positions + first) > 0
    state = tl.load(own, mask=inside & known, other=0.0)
    of = (head % k_heads) * dk + c
    for i in range(0, end - first):
        at = first.to(tl.int64) + i
        key = tl.load(k + at * k_stride + of, mask=c < dk, other=0.0).to(tl.float32)
        query = tl.load(q + at * q_stride + of, mask=c < dk, other=0.0).to(tl.float32)
        value = tl.load(v + at * v_stride + head * dv + r, mask=r < dv, other=0.0).to(tl.float32)
        state = state * tl.exp(tl.load(decay + at * decay_stride + head).to(tl.float32))
        missing = (value - tl.sum(state * key[None], 1)) * tl.load(beta + at * beta_stride + head).to(
            tl.float32
        )
        state += missing[:, None] * key[None]
        y = tl.sum(state * query[None], 1) * scale
        tl.store(out + at * out_stride + head * dv + r, y.to(out.dtype.element_ty), mask=r < dv)
    tl.store(own, state, mask=inside)


def delta(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor, step: Step,
    memory: torch.Tensor, k_heads: int, v_heads: int, out: torch.Tensor,
) -> Call:  # fmt: skip
    """As `face.Kernels.delta`; any rows of sequences."""
    dv, dk = memory.shape[-2], memory.shape[-1]
    arguments = {
        "q": q, "k": k, "v": v, "decay": decay, "beta": beta, "starts": step.starts,
        "positions": step.positions,
        "slots": step.slots, "memory": memory, "out": out, "k_heads": k_heads, "v_heads": v_heads, "dk": dk,
        "dv": dv, "scale": float(dk) ** -0.5, "q_stride": q.stride(0), "k_stride": k.stride(0),
        "v_stride": v.stride(0), "decay_stride": decay.stride(0), "beta_stride": beta.stride(0),
        "out_stride": out.stride(0),
    }  # fmt: skip
    grid = (len(step.slots), v_heads, cdiv(dv, SLICE))
    return Call(delta_kernel, grid, arguments, {"BV": SLICE, "DK": power(dk)}, Config(n_warps=2))


@triton.jit
def conv_kernel(
    x, weight, owners, starts, positions, slots, past, out, width, x_stride, out_stride, TAPS: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    wait(PDL)
    release(PDL)
    n = tl.load(owners + t)
    first = tl.load(starts + n)
    known = tl.load(positions + first) > 0
    own = past + tl.load(slots + n).to(tl.int64) * (TAPS - 1) * width
    y = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TAPS):
        row = t - (TAPS - 1) + i
        old = TAPS - 1 + row - first  # its place in `past`, where it lies before the step's rows
        here = tl.load(x + row.to(tl.int64) * x_stride + c, mask=inside & (row >= first), other=0.0)
        before = tl.load(own + old * width + c, mask=inside & (row < first) & known, other=0.0)
        y += (here.to(tl.float32) + before) * tl.load(weight + c * TAPS + i, mask=inside, other=0.0)
    tl.store(out + t.to(tl.int64) * out_stride + c, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def keep_kernel(
    x, starts, positions, slots, past, width, x_stride, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    wait(PDL)
    release(PDL)
    first, end = tl.load(starts + n), tl.load(starts + n + 1)
    known = tl.load(positions + first) > 0
    own = past + tl.load(slots + n).to(tl.int64) * (TAPS - 1) * width
    # From the oldest on: what is read lies further back than what has been written.
    for i in tl.static_range(TAPS - 1):
        row = end - (TAPS - 1) + i
        old = TAPS - 1 + row - first
        here = tl.load(x + row.to(tl.int64) * x_stride + c, mask=inside & (row >= first), other=0.0)
        before = tl.load(own + old * width + c, mask=inside & (row < first) & known, other=0.0)
        tl.store(own + i * width + c, here.to(tl.float32) + before, mask=inside)


def conv(
    x: torch.Tensor, weight: torch.Tensor, step: Step, past: torch.Tensor, out: torch.Tensor
) -> tuple[Call, Call]:
    """As `face.Kernels.conv`: the output, then what is kept."""
    rows, width = x.shape
    state = {
        "x": x, "starts": step.starts, "positions": step.positions, "slots": step.slots, "past": past,
        "width": width, "x_stride": x.stride(0),
    }  # fmt: skip
    more = {"weight": weight, "owners": step.owners, "out": out, "out_stride": out.stride(0)}
    constants = {"TAPS": weight.shape[1], "BLOCK": COLUMNS}
    tiles = cdiv(width, COLUMNS)
    return (
        Call(conv_kernel, (rows, tiles), state | more, constants),
        Call(keep_kernel, (len(step.slots), tiles), state, constants),
    )
