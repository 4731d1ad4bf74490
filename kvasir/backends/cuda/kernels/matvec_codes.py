"""Products for up to four rows with weights of 4 and 8 bits (`weights.Blocks`), decoded in registers.

out[t, o] = fn(sum_g s[o, g] sum_{d in g} code[o, d] x[t, d]  +  m[o, g] sum_{d in g} x[t, d]   + bias[o])

Bound by bytes on paper (0.56 a weight), by instructions in fact: at 3 TB/s a multiprocessor has 4.7 fp32
instructions a weight.  The decoding of `codes` takes 3.1 of 4 bits, sums included.  So a thread has one whole
block of 32 (16 bytes, one load) of each of its BO rows: a block's codes are summed before its scale is
applied, a row of x is brought into the order of the codes once for all BO rows, and nothing meets another
lane before the end.
The next tile of codes is under way in registers while one is summed; the first is loaded before the wait.
Scales come eight blocks at a load and change lanes once.

Shared outputs (SPLIT): as in matvec.py.  Tests: tests/cuda/interpreted/check_codes.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.codes import code4, code8, facing4, facing8, group_scales
from kvasir.backends.cuda.kernels.common import Call, Config, cdiv, power, release, wait
from kvasir.backends.cuda.kernels.matvec import MULTIPROCESSORS, Workspace, deliver
from kvasir.backends.cuda.weights import Blocks


@triton.jit
def words_of(codes, row, block, o_inside, stop, N_BLOCKS, NB: tl.constexpr, PER: tl.constexpr):
    """The code words [BO, NB * PER] of NB blocks from `block` on."""
    at = tl.arange(0, NB * PER)
    inside = o_inside[:, None] & (block + at // PER < stop)[None]  # whole blocks: 16 bytes go at once
    return tl.load(
        codes + (row * N_BLOCKS + block)[:, None] * PER + at[None], mask=inside, other=0,
        eviction_policy="evict_first",
    )  # fmt: skip


@triton.jit
def facing(x, block, stop, NB: tl.constexpr, BITS: tl.constexpr, PLAIN: tl.constexpr):
    """A row of x in the order of the codes, and the sums of its groups' halves [NB], [NB]."""
    at = block * 32 + tl.arange(0, NB * 32)
    row = tl.load(x + at, mask=at // 32 < stop, other=0.0).to(tl.float32)
    pairs = tl.sum(tl.reshape(row, (NB, 2, 16)), 2)
    low, high = tl.split(pairs)
    if BITS == 4:
        return facing4(row, NB, PLAIN), low, high
    else:
        return facing8(row, NB), low, high


@triton.jit
def block_sums(words, xs, levels, BO: tl.constexpr, NB: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
               FP4: tl.constexpr):  # fmt: skip
    """Sums of codes times x over the first and the second 16 weights of each block: [BO, NB] twice."""
    if BITS == 4:
        low = code4(words, 0, levels, ZERO, FP4) * xs[0][None]
        for j in tl.static_range(1, 4):
            low += code4(words, j, levels, ZERO, FP4) * xs[j][None]
        high = code4(words, 4, levels, ZERO, FP4) * xs[4][None]
        for j in tl.static_range(5, 8):
            high += code4(words, j, levels, ZERO, FP4) * xs[j][None]
        return tl.sum(tl.reshape(low, (BO, NB, 4)), 2), tl.sum(tl.reshape(high, (BO, NB, 4)), 2)
    else:
        turned = words ^ -2139062144  # 0x80808080
        both = code8(turned, 0, ZERO) * xs[0][None]
        for j in tl.static_range(1, 4):
            both += code8(turned, j, ZERO) * xs[j][None]
        return tl.split(tl.sum(tl.reshape(both, (BO, NB, 2, 4)), 3))


@triton.jit
def scaled(low, high, x_low, x_high, s, s_high, m, m_high, GROUP: tl.constexpr, MINS: tl.constexpr):
    """What NB blocks add to a row's sums: [BO, NB]."""
    if GROUP == 32:
        y = s * (low + high)
        if MINS:
            y += m * (x_low + x_high)[None]
    else:
        y = s * low + s_high * high
        if MINS:
            y += m * x_low[None] + m_high * x_high[None]
    return y


@triton.jit
def added(
    y0, y1, y2, y3, words, facing0, facing1, facing2, facing3, row, block, o_inside, stop, scales, mins,
    supers, super_mins, levels, N_BLOCKS, N_SUPERS, T: tl.constexpr, BO: tl.constexpr, NB: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, FP4: tl.constexpr,
):  # fmt: skip
    """The sums y [BO, NB] of T rows with those of one tile of blocks."""
    PER: tl.constexpr = 32 // GROUP
    MINS: tl.constexpr = mins is not None
    at = block + tl.arange(0, NB)
    inside = o_inside[:, None] & (at < stop)[None]
    group, rows, n = (at * PER)[None], row[:, None], N_BLOCKS * PER
    s = group_scales(scales, supers, rows, group, inside, n, N_SUPERS, GROUP, FP4)
    s_high, m, m_high = s, s, s
    if PER == 2:
        s_high = group_scales(scales, supers, rows, group + 1, inside, n, N_SUPERS, GROUP, FP4)
    if MINS:
        m = group_scales(mins, super_mins, rows, group, inside, n, N_SUPERS, GROUP, False)
        if PER == 2:
            m_high = group_scales(mins, super_mins, rows, group + 1, inside, n, N_SUPERS, GROUP, False)
        if super_mins is not None:
            m, m_high = -m, -m_high
    xs, x_low, x_high = facing0
    low, high = block_sums(words, xs, levels, BO, NB, BITS, ZERO, FP4)
    y0 += scaled(low, high, x_low, x_high, s, s_high, m, m_high, GROUP, MINS)
    if T > 1:
        xs, x_low, x_high = facing1
        low, high = block_sums(words, xs, levels, BO, NB, BITS, ZERO, FP4)
        y1 += scaled(low, high, x_low, x_high, s, s_high, m, m_high, GROUP, MINS)
    if T > 2:
        xs, x_low, x_high = facing2
        low, high = block_sums(words, xs, levels, BO, NB, BITS, ZERO, FP4)
        y2 += scaled(low, high, x_low, x_high, s, s_high, m, m_high, GROUP, MINS)
    if T > 3:
        xs, x_low, x_high = facing3
        low, high = block_sums(words, xs, levels, BO, NB, BITS, ZERO, FP4)
        y3 += scaled(low, high, x_low, x_high, s, s_high, m, m_high, GROUP, MINS)
    return y0, y1, y2, y3


@triton.jit
def matvec_codes_kernel(
    x, codes, scales, mins, supers, super_mins, levels, bias, out, partial, counter, N_BLOCKS, N_SUPERS, O,
    x_stride, out_stride, limit, T: tl.constexpr, BO: tl.constexpr, NB: tl.constexpr, SPLIT: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, FP4: tl.constexpr, FN: tl.constexpr,
    LIMITED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    PER: tl.constexpr = BITS  # words a block
    PLAIN: tl.constexpr = levels is None
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    o_inside = o < O
    per = tl.cdiv(tl.cdiv(N_BLOCKS, SPLIT), NB) * NB
    start = tl.program_id(1) * per
    stop = tl.minimum(start + per, N_BLOCKS)
    row = o.to(tl.int64)
    words = words_of(codes, row, start, o_inside, stop, N_BLOCKS, NB, PER)
    if FN != "":
        up_row = row + O
        up_words = words_of(codes, up_row, start, o_inside, stop, N_BLOCKS, NB, PER)
    wait(PDL)
    release(PDL)
    y0 = tl.zeros((BO, NB), tl.float32)
    y1, y2, y3, u0, u1, u2, u3 = y0, y0, y0, y0, y0, y0, y0
    for block in range(start, stop, NB):
        f0 = facing(x, block, stop, NB, BITS, PLAIN)
        f1, f2, f3 = f0, f0, f0
        if T > 1:
            f1 = facing(x + x_stride, block, stop, NB, BITS, PLAIN)
        if T > 2:
            f2 = facing(x + 2 * x_stride, block, stop, NB, BITS, PLAIN)
        if T > 3:
            f3 = facing(x + 3 * x_stride, block, stop, NB, BITS, PLAIN)
        following = words_of(codes, row, block + NB, o_inside, stop, N_BLOCKS, NB, PER)
        y0, y1, y2, y3 = added(
            y0, y1, y2, y3, words, f0, f1, f2, f3, row, block, o_inside, stop, scales, mins, supers,
            super_mins, levels, N_BLOCKS, N_SUPERS, T, BO, NB, BITS, GROUP, ZERO, FP4,
        )  # fmt: skip
        words = following
        if FN != "":
            following = words_of(codes, up_row, block + NB, o_inside, stop, N_BLOCKS, NB, PER)
            u0, u1, u2, u3 = added(
                u0, u1, u2, u3, up_words, f0, f1, f2, f3, up_row, block, o_inside, stop, scales, mins, supers,
                super_mins, levels, N_BLOCKS, N_SUPERS, T, BO, NB, BITS, GROUP, ZERO, FP4,
            )  # fmt: skip
            up_words = following
    deliver(
        tl.sum(y0, 1), tl.sum(y1, 1), tl.sum(y2, 1), tl.sum(y3, 1),
        tl.sum(u0, 1), tl.sum(u1, 1), tl.sum(u2, 1), tl.sum(u3, 1),
        bias, out, partial, counter, o, O, out_stride, limit, T, SPLIT, FN, LIMITED,
    )  # fmt: skip


CANDIDATES = tuple(
    Config({"BO": rows, "NB": blocks, "SPLIT": split}, n_warps)
    for rows, blocks, n_warps in (
        (8, 32, 1), (4, 32, 1), (8, 64, 2), (4, 64, 2), (8, 128, 4), (4, 128, 4), (2, 128, 4), (16, 64, 4)
    )
    for split in (1, 4)
)  # fmt: skip


def default(w: Blocks, outputs: int, rows: int, is_gated: bool) -> Config:
    """A block a thread and row; fewer rows of weights where registers hold more besides: x, bytes, minima."""
    n_blocks = w.shape[-1] // 32
    plain = w.bits == 4 and w.mins is None and w.levels is None
    block_rows = (8 if plain else 4) // (2 if is_gated else 1) // (1 if rows == 1 else 2 * rows)
    block_rows = max(block_rows, 1)
    n_warps = 4 if n_blocks >= 128 else 2 if n_blocks >= 64 else 1
    while block_rows > 1 and cdiv(outputs, block_rows) * n_warps < 8 * MULTIPROCESSORS:
        block_rows //= 2
    return Config({"BO": block_rows, "NB": min(32 * n_warps, power(n_blocks)), "SPLIT": 1}, n_warps)


def block_arguments(w: Blocks) -> tuple[dict[str, object], dict[str, object]]:
    """What kernels are told of such weights: arguments and constants.  codes are seen as words."""
    arguments: dict[str, object] = {
        "codes": w.codes.view(torch.int32), "scales": w.scales, "mins": w.mins, "supers": w.super_scales,
        "super_mins": w.super_mins, "levels": w.levels, "N_BLOCKS": w.shape[-1] // 32,
        "N_SUPERS": cdiv(w.shape[-1], 256),
    }  # fmt: skip
    return arguments, {"BITS": w.bits, "GROUP": w.group, "ZERO": w.zero, "FP4": w.is_fp4}


def matvec_codes(
    x: torch.Tensor, w: Blocks, bias: torch.Tensor | None, out: torch.Tensor, work: Workspace, fn: str = "",
    limit: float = 0.0, config: Config | None = None,
) -> Call:  # fmt: skip
    """x [T, D], T up to 4; w [O, D], or with `fn` [2 O, D], the gate's rows first; out [T, O]."""
    outputs = out.shape[1]
    arguments, constants = block_arguments(w)
    cut = config or default(w, outputs, len(x), bool(fn))
    arguments |= {
        "x": x, "bias": bias, "out": out, "partial": work.partial, "counter": work.counter, "O": outputs,
        "x_stride": x.stride(0), "out_stride": out.stride(0), "limit": float(limit),
    }  # fmt: skip
    constants |= {"T": len(x), "FN": fn, "LIMITED": bool(limit)}
    grid = (cdiv(outputs, cut.sizes["BO"]), cut.sizes["SPLIT"])
    return Call(matvec_codes_kernel, grid, arguments, constants, cut)
