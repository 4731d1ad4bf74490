"""Products for some rows (5 to 64, or the rows that chose an expert), and weights decoded for cuBLAS.

out[r, o] = sum_d x[r, d] w[e, o, d] + bias[e, o]         e: the expert of the rows' block, or none

Bound by the bytes of the weights up to about 100 rows, for weights of 4 and 8 bits by their decoding
first.  A program has M rows of x (16, 32 or 64) and BO of w and walks its part of D; products are tl.dot,
tiles come N stages ahead (cp.async).  Weights of 4 bits are multiplied half a block at a time: the low
halves of 16 bytes meet x's columns 0 to 15 of a block, the high halves 16 to 31, so that nothing has to be
interleaved.  They are decoded into x's number format.

Experts: pairs (row, expert) are sorted by expert into blocks of M; `pairs` says which pair a row of a block
is (-1: none), `block_expert` whose it is.  A stack of experts is one tall matrix, its rows e * O + o.

Shared outputs (SPLIT): as in matvec.py.  Tests: tests/cuda/interpreted/check_some_rows.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.codes import exponents
from kvasir.backends.cuda.kernels.common import Call, Config, cdiv, power, release, wait
from kvasir.backends.cuda.kernels.matvec import MULTIPROCESSORS, Workspace, e4m3
from kvasir.backends.cuda.kernels.matvec_codes import block_arguments
from kvasir.backends.cuda.weights import Blocks, Dense, Fp8, Weight

MOST_ROWS = 64


@triton.jit
def per_weight(table, supers, row, block, half, inside, N_BLOCKS, N_SUPERS, N: tl.constexpr, BO: tl.constexpr,
               NB: tl.constexpr, GROUP: tl.constexpr, FP4: tl.constexpr):  # fmt: skip
    """Scales or minima of the N weights of each of NB blocks that lie in one group: [BO, NB * N]."""
    PER: tl.constexpr = 32 // GROUP
    group = block * PER + (half if PER == 2 else 0)
    s = tl.load(table + (row * (N_BLOCKS * PER))[:, None] + group[None], mask=inside, other=0)
    if FP4:
        y = exponents(s)
    elif supers is not None:
        of = tl.load(supers + (row * N_SUPERS)[:, None] + (block // 8)[None], mask=inside, other=0.0)
        y = of.to(tl.float32) * s.to(tl.float32)
    else:
        y = s.to(tl.float32)
    return tl.reshape(tl.broadcast_to(y[:, :, None], (BO, NB, N)), (BO, NB * N))


@triton.jit
def half_blocks(
    codes, scales, mins, supers, super_mins, levels, row, first, o_inside, stop, half, N_BLOCKS, N_SUPERS,
    BO: tl.constexpr, NB: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    FP4: tl.constexpr,
):  # fmt: skip
    """The first (half 0) or second 16 weights of NB blocks from `first` on: float32 [BO, NB * 16]."""
    at = tl.arange(0, NB * 16)
    of = first + at // 16
    inside = o_inside[:, None] & (of < stop)[None]
    if BITS == 4:
        byte = (row * N_BLOCKS * 16)[:, None] + (first * 16 + at)[None]
        code = (tl.load(codes + byte, mask=inside, other=0) >> (4 * half)) & 15
        value = code.to(tl.float32) - ZERO if levels is None else tl.load(levels + code.to(tl.int32))
    else:
        byte = (row * N_BLOCKS * 32)[:, None] + (of * 32 + half * 16 + at % 16)[None]
        value = tl.load(codes + byte, mask=inside, other=0).to(tl.float32) - ZERO
    block = first + tl.arange(0, NB)
    b_inside = o_inside[:, None] & (block < stop)[None]
    w = value * per_weight(
        scales, supers, row, block, half, b_inside, N_BLOCKS, N_SUPERS, 16, BO, NB, GROUP, FP4
    )
    if mins is not None:
        low = per_weight(
            mins, super_mins, row, block, half, b_inside, N_BLOCKS, N_SUPERS, 16, BO, NB, GROUP, False
        )
        w = w - low if super_mins is not None else w + low
    return w


@triton.jit
def columns_of(x, at_row, column, here, limit):
    """Rows of x at some columns: [M, n]."""
    return tl.load(x + at_row[:, None] + column[None], mask=here[:, None] & (column < limit)[None], other=0.0)


@triton.jit
def meet(acc, partial, counter, tile, SPLIT: tl.constexpr, M: tl.constexpr, BO: tl.constexpr):
    """The sums of all SPLIT programs of a tile in their order, and whether this one is the last."""
    r, o = tl.arange(0, M), tl.arange(0, BO)
    where = (r * BO)[:, None] + o[None]
    tl.store(partial + (tile * SPLIT + tl.program_id(2)) * (M * BO) + where, acc)
    tl.debug_barrier()
    come = tl.atomic_add(counter + tile, 1, sem="acq_rel")
    if come == SPLIT - 1:
        acc = tl.zeros((M, BO), tl.float32)
        for s in range(SPLIT):
            acc += tl.load(partial + (tile * SPLIT + s) * (M * BO) + where, cache_modifier=".cg")
        tl.store(counter + tile, 0)
    return acc, come == SPLIT - 1


@triton.jit
def rows_kernel(
    x, codes, scales, mins, supers, super_mins, levels, bias, pairs, block_expert, out, partial, counter, D,
    O, N_BLOCKS, N_SUPERS, n_rows, x_stride, out_stride, per_row, M: tl.constexpr, BO: tl.constexpr, NB:
    tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZERO:
    tl.constexpr, FP4: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BITS: 4 or 8 of `Blocks`; 16 for dense weights, 1 for e4m3: then `codes` is the matrix itself."""
    wait(PDL)
    release(PDL)
    tile = tl.program_id(0)
    place = tl.program_id(1) * M + tl.arange(0, M)
    o = tile * BO + tl.arange(0, BO)
    o_inside = o < O
    if pairs is not None:
        base = tl.load(block_expert + tl.program_id(1)).to(tl.int64) * O
        pair = tl.load(pairs + place)
        here, to, from_row = pair >= 0, pair, pair // per_row
    else:
        here, to, from_row = place < n_rows, place, place
        base = tl.zeros((), tl.int64)
    row = base + o
    at_row = tl.where(here, from_row, 0).to(tl.int64) * x_stride
    per = tl.cdiv(tl.cdiv(N_BLOCKS, SPLIT), NB) * NB
    start = tl.program_id(2) * per
    stop = tl.minimum(start + per, N_BLOCKS)
    acc = tl.zeros((M, BO), tl.float32)
    stop = tl.where(tl.max(here.to(tl.int32), 0) > 0, stop, start)  # an empty block
    for block in tl.range(start, stop, NB, num_stages=STAGES):
        if BITS == 4 or BITS == 8:
            at = tl.arange(0, NB * 16)
            column = (block + at // 16) * 32 + at % 16
            limit = stop * 32
            given = (codes, scales, mins, supers, super_mins, levels, row, block, o_inside, stop)
            low = half_blocks(*given, 0, N_BLOCKS, N_SUPERS, BO, NB, BITS, GROUP, ZERO, FP4)
            xs = columns_of(x, at_row, column, here, limit)
            acc = tl.dot(xs, tl.trans(low.to(xs.dtype)), acc, input_precision="ieee")
            high = half_blocks(*given, 1, N_BLOCKS, N_SUPERS, BO, NB, BITS, GROUP, ZERO, FP4)
            xs = columns_of(x, at_row, column + 16, here, limit)
            acc = tl.dot(xs, tl.trans(high.to(xs.dtype)), acc, input_precision="ieee")
        else:
            column = block * 32 + tl.arange(0, NB * 32)
            limit = tl.minimum(stop * 32, D)
            inside = o_inside[:, None] & (column < limit)[None]
            w = tl.load(codes + (row * D)[:, None] + column[None], mask=inside, other=0)
            xs = columns_of(x, at_row, column, here, limit)
            w = e4m3(w).to(xs.dtype) if BITS == 1 else w.to(xs.dtype)
            acc = tl.dot(xs, tl.trans(w), acc, input_precision="ieee")
    last = True
    if SPLIT > 1:
        acc, last = meet(acc, partial, counter, tl.program_id(1) * tl.num_programs(0) + tile, SPLIT, M, BO)
    if last:
        if BITS == 1:
            acc = acc * tl.load(scales + row, mask=o_inside, other=0.0)[None]
        if bias is not None:
            acc += tl.load(bias + row, mask=o_inside, other=0.0)[None]
        at = (tl.where(here, to, 0).to(tl.int64) * out_stride)[:, None] + o[None]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=here[:, None] & o_inside[None])


@triton.jit
def decoded_kernel(
    codes, scales, mins, supers, super_mins, levels, out, N_BLOCKS, N_SUPERS, first_row, n_rows, out_stride,
    BO: tl.constexpr, NB: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    FP4: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    release(PDL)
    own = tl.program_id(0) * BO + tl.arange(0, BO)
    inside = own < n_rows
    row = (first_row + own).to(tl.int64)
    block = tl.program_id(1) * NB
    at = tl.arange(0, NB * 16)
    column = (block + at // 16) * 32 + at % 16
    mask = inside[:, None] & (column < N_BLOCKS * 32)[None]
    to = out + (own.to(tl.int64) * out_stride)[:, None] + column[None]
    for half in tl.static_range(2):
        w = half_blocks(
            codes, scales, mins, supers, super_mins, levels, row, block, inside, N_BLOCKS, half, N_BLOCKS,
            N_SUPERS, BO, NB, BITS, GROUP, ZERO, FP4,
        )  # fmt: skip
        tl.store(to + half * 16, w.to(out.dtype.element_ty), mask=mask)


CANDIDATES = tuple(
    Config({"BO": outputs, "NB": blocks, "SPLIT": split, "STAGES": stages}, n_warps)
    for outputs, n_warps in ((32, 4), (64, 4), (128, 8))
    for blocks in (2, 4)
    for split in (1, 4)
    for stages in (2, 4)
)


def default(outputs: int, width: int, blocks_of_rows: int, rows: int, item_bytes: int, coded: bool) -> Config:
    """Tiles of 64 outputs, D split until there are two programs a multiprocessor."""
    programs, split = cdiv(outputs, 64) * blocks_of_rows, 1
    while split < 8 and programs * split < 2 * MULTIPROCESSORS and width >= 512 * split:
        split *= 2
    stages, blocks = (4 if rows <= 32 else 3, 4) if item_bytes == 2 else (2, 2)
    blocks = 2 if coded else blocks  # decoding takes registers
    return Config({"BO": 64, "NB": min(blocks, power(cdiv(width, 32))), "SPLIT": split, "STAGES": stages}, 4)


def _weights(w: Weight) -> tuple[dict[str, object], dict[str, object]]:
    none = {"mins": None, "supers": None, "super_mins": None, "levels": None}
    n_blocks = cdiv(w.shape[-1], 32)
    if isinstance(w, Blocks):
        arguments, constants = block_arguments(w)
        return arguments | {"codes": w.codes}, constants
    constants = {"BITS": 16, "GROUP": 32, "ZERO": 0, "FP4": False}
    if isinstance(w, Dense):
        return {"codes": w.data, "scales": None, "N_BLOCKS": n_blocks, "N_SUPERS": 0, **none}, constants
    assert isinstance(w, Fp8)
    own = {"codes": w.data.view(torch.uint8), "scales": w.scales, "N_BLOCKS": n_blocks, "N_SUPERS": 0, **none}
    return own, constants | {"BITS": 1}


def some_rows(
    x: torch.Tensor, w: Weight, bias: torch.Tensor | None, out: torch.Tensor, work: Workspace,
    pairs: torch.Tensor | None = None, block_expert: torch.Tensor | None = None, per_row: int = 1,
    block: int = 0, config: Config | None = None,
) -> Call:  # fmt: skip
    """x [rows, D], w [O, D], out [rows, O]; with `pairs` w [E, O, D] and row pairs // per_row of x to row
    `pairs` of out, in blocks of `block`.
    """
    arguments, constants = _weights(w)
    outputs, width = w.shape[-2], w.shape[-1]
    m = block or max(16, min(power(len(x)), MOST_ROWS))
    n_blocks = cdiv(len(x), m) if pairs is None else len(pairs) // m
    cut = config or default(outputs, width, n_blocks, m, x.element_size(), isinstance(w, Blocks))
    tiles, size, split = cdiv(outputs, cut.sizes["BO"]) * n_blocks, m * cut.sizes["BO"], cut.sizes["SPLIT"]
    while split > 1 and (tiles * split * size > work.partial.numel() or tiles > work.counter.numel()):
        split //= 2
    cut = Config({**cut.sizes, "SPLIT": split}, cut.n_warps, cut.n_stages)
    arguments |= {
        "x": x, "bias": bias, "pairs": pairs, "block_expert": block_expert, "out": out,
        "partial": work.partial, "counter": work.counter, "D": width, "O": outputs, "n_rows": len(x),
        "x_stride": x.stride(0), "out_stride": out.stride(0), "per_row": per_row,
    }  # fmt: skip
    grid = (cdiv(outputs, cut.sizes["BO"]), n_blocks, split)
    return Call(rows_kernel, grid, arguments, constants | {"M": m}, cut)


def decoded(w: Blocks, first_row: int, out: torch.Tensor) -> Call:
    """Rows first_row.. of w [O, D] as numbers in `out` [n, D]."""
    arguments, constants = block_arguments(w)
    cut = Config({"BO": 16, "NB": 8})
    arguments |= {
        "codes": w.codes, "out": out, "first_row": first_row, "n_rows": len(out), "out_stride": out.stride(0)
    }  # fmt: skip
    grid = (cdiv(len(out), 16), cdiv(w.shape[-1] // 32, 8))
    return Call(decoded_kernel, grid, arguments, constants, cut)
