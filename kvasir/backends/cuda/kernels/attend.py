"""Attention over the paged cache: one row a sequence with its past split among programs, and rows by pieces.

y[t, h] = sum_u softmax_u(scale q[t, h] . k[u, h / G]) v[u, h / G]      u up to t's position, in its window

Decode is bound by the bytes of keys and values.  A program has one kv head of one sequence and the G query
heads that share it (their product is a tl.dot whose 16 rows are mostly padding: the cache is read once for
all of them), and walks one of SPLITS parts of the past in tiles of BN positions, the next tiles under way
(cp.async).  How long a sequence is stands on the device: the grid is the same for all lengths, as a graph
needs it.  Parts leave (max, sum, y) in float32; the one that comes last joins them in their order.

Several rows a sequence are bound by the product of its scores.  A program has one head of a piece of
PIECE_ROWS rows (`Step.pieces`) and walks all that its last row sees.  Sums are float32; keys, values and
weights of the softmax meet in the cache's number format.
Tests: tests/cuda/interpreted/check_attend.py, against `reference.attend`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, power, release, tanh, wait
from kvasir.backends.cuda.kernels.face import BLOCK, PIECE_ROWS, Attention, Paged, Step
from kvasir.backends.cuda.kernels.matvec import MULTIPROCESSORS, Workspace

LOG2E = tl.constexpr(1.4426950408889634)
CELLS = tl.constexpr(BLOCK)


@triton.jit
def tile_of(cache, blocks, u, inside, head, d, block_stride, width):
    """Rows [BN, d] of a cache for positions u of the sequence whose table is `blocks`."""
    block = tl.load(blocks + u // CELLS, mask=inside, other=0).to(tl.int64)
    at = block * block_stride + head * (CELLS * width) + (u % CELLS) * width
    return tl.load(cache + at[:, None] + d[None], mask=inside[:, None] & (d < width)[None], other=0.0)


@triton.jit
def scores(q, keys, scale, cap, CAPPED: tl.constexpr):
    """q [M, dk] times keys [BN, dk], in units of log 2: [M, BN]."""
    s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    if CAPPED:
        s = cap * tanh(s / cap)
    return s * LOG2E


@triton.jit
def softened(m, total, y, s, values):
    """One step of the softmax: the largest score [M], the sum of weights [M], and y [M, dv] so far."""
    most = tl.maximum(m, tl.max(s, 1))
    base = tl.where(most == float("-inf"), 0.0, most)  # a row that has seen nothing yet
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    y = y * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
    return most, total * shrink + tl.sum(p, 1), y


@triton.jit
def with_sink(m, total, y, sink):
    """A score that takes part and has no value."""
    most = tl.maximum(m, sink)
    shrink = tl.exp2(m - most)
    return total * shrink + tl.exp2(sink - most), y * shrink[:, None]


@triton.jit
def decode_kernel(
    q, k, v, blocks, lengths, sinks, out, partial, counter, q_stride, out_stride, block_stride,
    v_block_stride, table_width, kv_heads, dk, dv, scale, cap, window, G: tl.constexpr, M: tl.constexpr, DK:
    tl.constexpr, DV: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr, CAPPED:
    tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n, kv, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wait(PDL)
    release(PDL)
    length = tl.load(lengths + n)
    first = tl.maximum(length - window, 0) if window > 0 else 0
    first = first // BN * BN
    per = tl.cdiv(tl.cdiv(length - first, SPLITS), BN) * BN
    start = first + part * per
    stop = tl.minimum(start + per, length)
    g, d, e = tl.arange(0, M), tl.arange(0, DK), tl.arange(0, DV)
    head = kv * G + g
    row = n.to(tl.int64)
    own = tl.load(
        q + row * q_stride + (head * dk)[:, None] + d[None],
        mask=(g < G)[:, None] & (d < dk)[None], other=0.0,
    ).to(k.dtype.element_ty)  # fmt: skip
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    y = tl.zeros((M, DV), tl.float32)
    table = blocks + row * table_width
    for at in tl.range(start, stop, BN, num_stages=STAGES):
        u = at + tl.arange(0, BN)
        inside = u < stop
        s = scores(own, tile_of(k, table, u, inside, kv, d, block_stride, dk), scale, cap, CAPPED)
        seen = inside & (u > length - 1 - window) if window > 0 else inside
        s = tl.where(seen[None], s, float("-inf"))
        m, total, y = softened(m, total, y, s, tile_of(v, table, u, inside, kv, e, v_block_stride, dv))
    if SPLITS > 1:
        meeting = (row * kv_heads + kv) * SPLITS
        WIDTH: tl.constexpr = DV + 2
        mine = partial + ((meeting + part) * M + g) * WIDTH
        tl.store(mine[:, None] + e[None], y)
        tl.store(mine + DV, m)
        tl.store(mine + DV + 1, total)
        tl.debug_barrier()
        come = tl.atomic_add(counter + n * kv_heads + kv, 1, sem="acq_rel")
        if come == SPLITS - 1:
            m = tl.full((M,), float("-inf"), tl.float32)
            total = tl.zeros((M,), tl.float32)
            y = tl.zeros((M, DV), tl.float32)
            for other in range(SPLITS):
                theirs = partial + ((meeting + other) * M + g) * WIDTH
                top = tl.load(theirs + DV, cache_modifier=".cg")
                most = tl.maximum(m, top)
                base = tl.where(most == float("-inf"), 0.0, most)
                shrink, grow = tl.exp2(m - base), tl.exp2(top - base)
                y = y * shrink[:, None] + grow[:, None] * tl.load(
                    theirs[:, None] + e[None], cache_modifier=".cg"
                )
                total = total * shrink + grow * tl.load(theirs + DV + 1, cache_modifier=".cg")
                m = most
            finish_decode(m, total, y, sinks, out, row * out_stride, head, g, e, dv, G)
            tl.store(counter + n * kv_heads + kv, 0)
    else:
        finish_decode(m, total, y, sinks, out, row * out_stride, head, g, e, dv, G)


@triton.jit
def finish_decode(m, total, y, sinks, out, offset, head, g, e, dv, G: tl.constexpr):
    if sinks is not None:
        total, y = with_sink(m, total, y, tl.load(sinks + head, mask=g < G, other=0.0) * LOG2E)
    y = y / tl.where(g < G, total, 1.0)[:, None]
    at = offset + (head * dv)[:, None] + e[None]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=(g < G)[:, None] & (e < dv)[None])


@triton.jit
def pieces_kernel(
    q, k, v, blocks, positions, starts, pieces, sinks, out, q_stride, out_stride, block_stride,
    v_block_stride, table_width, dk, dv, scale, cap, window, G: tl.constexpr, M: tl.constexpr, DK:
    tl.constexpr, DV: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, CAPPED: tl.constexpr, PDL:
    tl.constexpr,
):  # fmt: skip
    piece, head = tl.program_id(0), tl.program_id(1)
    kv = head // G
    wait(PDL)
    release(PDL)
    n = tl.load(pieces + 2 * piece)
    first_row = tl.load(pieces + 2 * piece + 1)
    n_rows = tl.minimum(tl.load(starts + n + 1) - first_row, M)
    row, d, e = tl.arange(0, M), tl.arange(0, DK), tl.arange(0, DV)
    here = row < n_rows
    at_row = (first_row + row).to(tl.int64)
    position = tl.load(positions + first_row + row, mask=here, other=-1)
    own = tl.load(
        q + (at_row * q_stride + head * dk)[:, None] + d[None], mask=here[:, None] & (d < dk)[None], other=0.0
    ).to(k.dtype.element_ty)
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    y = tl.zeros((M, DV), tl.float32)
    stop = tl.max(position, 0) + 1
    begin = tl.load(positions + first_row, mask=n_rows > 0, other=0)
    start = tl.maximum(begin - window + 1, 0) // BN * BN if window > 0 else 0
    table = blocks + n.to(tl.int64) * table_width
    for at in tl.range(start, stop, BN, num_stages=STAGES):
        u = at + tl.arange(0, BN)
        inside = u < stop
        s = scores(own, tile_of(k, table, u, inside, kv, d, block_stride, dk), scale, cap, CAPPED)
        ago = position[:, None] - u[None]
        seen = (ago >= 0) & (ago < window) if window > 0 else ago >= 0
        s = tl.where(seen, s, float("-inf"))
        m, total, y = softened(m, total, y, s, tile_of(v, table, u, inside, kv, e, v_block_stride, dv))
    if sinks is not None:
        total, y = with_sink(m, total, y, tl.load(sinks + head) * LOG2E)
    y = y / tl.where(here, total, 1.0)[:, None]
    at = (at_row * out_stride + head * dv)[:, None] + e[None]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=here[:, None] & (e < dv)[None])


CANDIDATES = tuple(
    Config({"BN": tokens, "STAGES": stages}, n_warps)
    for tokens in (32, 64, 128)
    for stages in (2, 3)
    for n_warps in (4, 8)
)


def default(head_width: int, rows: int, item_bytes: int) -> Config:
    """Tiles of 64 positions; smaller ones for wide heads and float32."""
    tokens = 64 if head_width * item_bytes <= 256 else 32 if head_width * item_bytes <= 512 else 16
    return Config({"BN": tokens, "STAGES": 3 if item_bytes == 2 else 2}, 4 if rows <= 64 else 8)


def splits_for(sequences: int, kv_heads: int, table_width: int) -> int:
    """Parts of a past: two programs a multiprocessor, none shorter than 16 blocks of the longest past."""
    wanted, longest = 2 * MULTIPROCESSORS // max(sequences * kv_heads, 1), max(table_width // 16, 1)
    return min(power(max(wanted, 1)), 1 << (longest.bit_length() - 1), 64)


def _told(told: Attention, cache: Paged) -> dict[str, object]:
    return {
        "k": cache.k, "v": cache.v, "sinks": told.sinks, "block_stride": cache.k.stride(0),
        "v_block_stride": cache.v.stride(0), "dk": cache.k.shape[3], "dv": cache.v.shape[3],
        "scale": float(told.scale), "cap": float(told.softcap), "window": told.window,
    }  # fmt: skip


def decode(
    q: torch.Tensor, cache: Paged, step: Step, told: Attention, out: torch.Tensor, work: Workspace,
    config: Config | None = None, splits: int = 0,
) -> Call:  # fmt: skip
    """Row n is sequence n: q [N, H*dk], out [N, H*dv].  `splits` 0: by the number of sequences."""
    dk, dv = cache.k.shape[3], cache.v.shape[3]
    group = told.heads // told.kv_heads
    cut = config or default(max(dk, dv), 16, cache.k.element_size())
    parts = splits or splits_for(len(q), told.kv_heads, step.blocks.shape[1])
    sizes = {"M": max(16, power(group)), "DK": max(16, power(dk)), "DV": max(16, power(dv))}
    while (
        parts > 1 and len(q) * told.kv_heads * parts * sizes["M"] * (sizes["DV"] + 2) > work.partial.numel()
    ):
        parts //= 2
    arguments = _told(told, cache) | {
        "q": q, "blocks": step.blocks, "lengths": step.lengths, "out": out, "partial": work.partial,
        "counter": work.counter, "q_stride": q.stride(0), "out_stride": out.stride(0),
        "table_width": step.blocks.shape[1], "kv_heads": told.kv_heads,
    }  # fmt: skip
    constants = {"G": group, "SPLITS": parts, "CAPPED": bool(told.softcap), **sizes}
    return Call(decode_kernel, (len(q), told.kv_heads, parts), arguments, constants, cut)


def by_pieces(
    q: torch.Tensor,
    cache: Paged,
    step: Step,
    told: Attention,
    out: torch.Tensor,
    config: Config | None = None,
) -> Call:
    """Any rows of sequences: q [T, H*dk], out [T, H*dv]; keys and values of these rows are in the cache."""
    dk, dv = cache.k.shape[3], cache.v.shape[3]
    cut = config or default(max(dk, dv), PIECE_ROWS, cache.k.element_size())
    arguments = _told(told, cache) | {
        "q": q, "blocks": step.blocks, "positions": step.positions, "starts": step.starts,
        "pieces": step.pieces, "out": out, "q_stride": q.stride(0), "out_stride": out.stride(0),
        "table_width": step.blocks.shape[1],
    }  # fmt: skip
    constants = {
        "G": told.heads // told.kv_heads, "M": PIECE_ROWS, "DK": max(16, power(dk)), "DV": max(16, power(dv)),
        "CAPPED": bool(told.softcap),
    }  # fmt: skip
    return Call(pieces_kernel, (len(step.pieces), told.heads), arguments, constants, cut)
