"""Products for up to four rows with weights in float32, bfloat16, float16 or e4m3.

out[t, o] = fn(sum_d x[t, d] w[o, d] + bias[o])       fn: nothing, or the gated product of rows o and O + o

Bound by the bytes of the weights, each read once: what counts is how many 16-byte loads are under way.  A
program has BO rows and walks its part of D in tiles of BK columns; every thread keeps its own sums, and lanes
meet once, at the end, in one order: a row's result does not depend on how many rows there are.  The first
tile is loaded before the wait, so that it comes while the kernel before ends; further ones go through
shared memory (cp.async) N stages ahead.  No tl.dot: with four rows its tiles would be three quarters empty.

Where O is small, SPLIT programs share a row's columns.  Each leaves its sums in `partial`; the one that comes
last (`counter`, left at 0 again) adds them in their order.
Tests: tests/cuda/interpreted/check_products.py, against `reference.linear` and `reference.gated`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, cdiv, gated, power, release, wait

MOST_ROWS = 4
MULTIPROCESSORS = 132  # of an H100; the defaults aim at four programs on each


@dataclass(frozen=True)
class Workspace:
    """Where programs that share an output meet: partial float32 [n], counter int32 [n], 0 between calls."""

    partial: torch.Tensor
    counter: torch.Tensor

    @staticmethod
    def on(device: torch.device | str, floats: int = 1 << 21, counters: int = 1 << 14) -> Workspace:
        return Workspace(
            torch.empty(floats, dtype=torch.float32, device=device),
            torch.zeros(counters, dtype=torch.int32, device=device),
        )


@triton.jit
def e4m3(bits):
    """e4m3 as uint8 -> float32.  Its bits, one place further left in a float16, are 2^-8 of the number."""
    wide = bits.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def finish(y, up, bias, out, o, O, limit, FN: tl.constexpr, LIMITED: tl.constexpr):
    """Bias, the gate's function, one row of the output from its sums [BO]."""
    if bias is not None:
        y += tl.load(bias + o, mask=o < O, other=0.0)
        if FN != "":
            up += tl.load(bias + O + o, mask=o < O, other=0.0)
    if FN != "":
        y = gated(y, up, limit, FN, LIMITED)
    tl.store(out + o, y.to(out.dtype.element_ty), mask=o < O)


@triton.jit
def summed(partial, o, O, WIDTH, SPLIT: tl.constexpr):
    """The SPLIT partial sums of one output row, in order: [BO]."""
    y = tl.load(partial + o, mask=o < O, other=0.0, cache_modifier=".cg")
    for s in tl.static_range(1, SPLIT):
        y += tl.load(partial + s * WIDTH + o, mask=o < O, other=0.0, cache_modifier=".cg")
    return y


@triton.jit
def deliver(
    y0, y1, y2, y3, u0, u1, u2, u3, bias, out, partial, counter, o, O, out_stride, limit,
    T: tl.constexpr, SPLIT: tl.constexpr, FN: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """Sums [BO] of T rows (u: of the `up` half) to the output, through `partial` where programs share it."""
    if SPLIT == 1:
        finish(y0, u0, bias, out, o, O, limit, FN, LIMITED)
        if T > 1:
            finish(y1, u1, bias, out + out_stride, o, O, limit, FN, LIMITED)
        if T > 2:
            finish(y2, u2, bias, out + 2 * out_stride, o, O, limit, FN, LIMITED)
        if T > 3:
            finish(y3, u3, bias, out + 3 * out_stride, o, O, limit, FN, LIMITED)
    else:
        HALVES: tl.constexpr = 1 if FN == "" else 2
        width = T * HALVES * O  # of one split
        own = partial + tl.program_id(1) * width + o
        tl.store(own, y0, mask=o < O)
        if T > 1:
            tl.store(own + O, y1, mask=o < O)
        if T > 2:
            tl.store(own + 2 * O, y2, mask=o < O)
        if T > 3:
            tl.store(own + 3 * O, y3, mask=o < O)
        if FN != "":
            tl.store(own + T * O, u0, mask=o < O)
            if T > 1:
                tl.store(own + (T + 1) * O, u1, mask=o < O)
            if T > 2:
                tl.store(own + (T + 2) * O, u2, mask=o < O)
            if T > 3:
                tl.store(own + (T + 3) * O, u3, mask=o < O)
        tl.debug_barrier()
        come = tl.atomic_add(counter + tl.program_id(0), 1, sem="acq_rel")
        if come == SPLIT - 1:
            for t in tl.static_range(T):
                y = summed(partial + t * O, o, O, width, SPLIT)
                up = y
                if FN != "":
                    up = summed(partial + (T + t) * O, o, O, width, SPLIT)
                finish(y, up, bias, out + t * out_stride, o, O, limit, FN, LIMITED)
            tl.store(counter + tl.program_id(0), 0)


@triton.jit
def weights_at(w, rows, inside, FP8: tl.constexpr):
    """A tile of weights as it lies in memory.  Weights are read once: they make no room in the cache."""
    return tl.load(w + rows, mask=inside, other=0.0 if not FP8 else 0, eviction_policy="evict_first")


@triton.jit
def widened(tile, FP8: tl.constexpr):
    return e4m3(tile) if FP8 else tile.to(tl.float32)


@triton.jit
def plus(sums, x, column, D, tile):
    """sums [BO, BK] and one row of x times a tile."""
    return sums + tl.load(x + column, mask=column < D, other=0.0).to(tl.float32)[None] * tile


@triton.jit
def matvec_kernel(
    x, w, scales, bias, out, partial, counter, D, O, x_stride, out_stride, limit,
    T: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
    FN: tl.constexpr, LIMITED: tl.constexpr, FP8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    per = tl.cdiv(tl.cdiv(D, SPLIT), BK) * BK  # columns of one split
    start = tl.program_id(1) * per
    stop = tl.minimum(start + per, D)
    column = start + tl.arange(0, BK)
    row = o.to(tl.int64)[:, None] * D
    up_row = row + O.to(tl.int64) * D
    inside = (o < O)[:, None] & (column < stop)[None]
    first = weights_at(w, row + column[None], inside, FP8)
    if FN != "":
        first_up = weights_at(w, up_row + column[None], inside, FP8)
    wait(PDL)
    release(PDL)
    y0 = tl.zeros((BO, BK), tl.float32)
    y1, y2, y3, u0, u1, u2, u3 = y0, y0, y0, y0, y0, y0, y0
    tile = widened(first, FP8)
    y0 = plus(y0, x, column, stop, tile)
    if T > 1:
        y1 = plus(y1, x + x_stride, column, stop, tile)
    if T > 2:
        y2 = plus(y2, x + 2 * x_stride, column, stop, tile)
    if T > 3:
        y3 = plus(y3, x + 3 * x_stride, column, stop, tile)
    if FN != "":
        tile = widened(first_up, FP8)
        u0 = plus(u0, x, column, stop, tile)
        if T > 1:
            u1 = plus(u1, x + x_stride, column, stop, tile)
        if T > 2:
            u2 = plus(u2, x + 2 * x_stride, column, stop, tile)
        if T > 3:
            u3 = plus(u3, x + 3 * x_stride, column, stop, tile)
    for k in tl.range(start + BK, stop, BK, num_stages=STAGES):
        column = k + tl.arange(0, BK)
        inside = (o < O)[:, None] & (column < stop)[None]
        tile = widened(weights_at(w, row + column[None], inside, FP8), FP8)
        y0 = plus(y0, x, column, stop, tile)
        if T > 1:
            y1 = plus(y1, x + x_stride, column, stop, tile)
        if T > 2:
            y2 = plus(y2, x + 2 * x_stride, column, stop, tile)
        if T > 3:
            y3 = plus(y3, x + 3 * x_stride, column, stop, tile)
        if FN != "":
            tile = widened(weights_at(w, up_row + column[None], inside, FP8), FP8)
            u0 = plus(u0, x, column, stop, tile)
            if T > 1:
                u1 = plus(u1, x + x_stride, column, stop, tile)
            if T > 2:
                u2 = plus(u2, x + 2 * x_stride, column, stop, tile)
            if T > 3:
                u3 = plus(u3, x + 3 * x_stride, column, stop, tile)
    by, up_by = 1.0, 1.0
    if FP8:
        by = tl.load(scales + o, mask=o < O, other=0.0)
        if FN != "":
            up_by = tl.load(scales + O + o, mask=o < O, other=0.0)
    deliver(
        tl.sum(y0, 1) * by, tl.sum(y1, 1) * by, tl.sum(y2, 1) * by, tl.sum(y3, 1) * by,
        tl.sum(u0, 1) * up_by, tl.sum(u1, 1) * up_by, tl.sum(u2, 1) * up_by, tl.sum(u3, 1) * up_by,
        bias, out, partial, counter, o, O, out_stride, limit, T, SPLIT, FN, LIMITED,
    )  # fmt: skip


CANDIDATES = tuple(
    Config({"BO": rows, "BK": columns, "SPLIT": split, "STAGES": stages}, n_warps)
    for rows, columns, n_warps in (
        (1, 2048, 4), (2, 1024, 4), (4, 512, 4), (8, 256, 4), (4, 1024, 4), (2, 512, 2), (4, 1024, 8), (8,
        512, 8)
    )
    for split in (1, 4)
    for stages in (1, 4)
)  # fmt: skip


def default(outputs: int, width: int, rows: int, item_bytes: int) -> Config:
    """Sixteen numbers a thread; as many rows a program as leave four programs a multiprocessor, or a
    split."""
    wide = 2048 if rows * item_bytes <= 4 else 1024  # numbers a program has in registers
    block_rows = 4 if outputs >= 16 * MULTIPROCESSORS else 2
    columns = min(max(wide // block_rows, 32), power(width))
    programs = cdiv(outputs, block_rows)
    split = 1
    while split < 8 and programs * split < 4 * MULTIPROCESSORS and width >= 2 * split * columns * 2:
        split *= 2
    return Config({"BO": block_rows, "BK": columns, "SPLIT": split, "STAGES": 3}, n_warps=4)


def matvec(
    x: torch.Tensor, data: torch.Tensor, scales: torch.Tensor | None, bias: torch.Tensor | None,
    out: torch.Tensor, work: Workspace, fn: str = "", limit: float = 0.0, config: Config | None = None,
) -> Call:  # fmt: skip
    """x [T, D], T up to 4; data [O, D], or with `fn` [2 O, D], the gate's rows first; out [T, O].

    data in e4m3 has `scales`, float32, one a row of it.
    """
    rows, width = x.shape
    outputs = out.shape[1]
    assert 0 < rows <= MOST_ROWS
    cut = config or default(outputs, width, rows * (2 if fn else 1), data.element_size())
    is_fp8 = data.dtype == torch.float8_e4m3fn
    arguments = {
        "x": x, "w": data.view(torch.uint8) if is_fp8 else data, "scales": scales, "bias": bias, "out": out,
        "partial": work.partial, "counter": work.counter, "D": width, "O": outputs, "x_stride": x.stride(0),
        "out_stride": out.stride(0), "limit": float(limit),
    }  # fmt: skip
    constants = {"T": rows, "FN": fn, "LIMITED": bool(limit), "FP8": is_fp8}
    grid = (cdiv(outputs, cut.sizes["BO"]), cut.sizes["SPLIT"])
    return Call(matvec_kernel, grid, arguments, constants, cut)
