"""What comes before attention, in one launch: norms of heads, rope, keys and values into the cache.

q_out = rope(norm(q)), k_out and cache.k = rope(norm(k)), cache.v = v

Bound by latency in a decode (a few KB a row), by bytes in a prompt.  A program has one head of one row in one
warp or two: query heads first, then keys, then values.  Halves of a head are loaded apart, so that the pair
(i, i + dim/2) is in one thread.  Norm weights are loaded before the wait.
Tests: tests/cuda/interpreted/check_attend.py, against `reference.norm`, `reference.rope` and the cells that
`reference.attend` writes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, power, release, wait
from kvasir.backends.cuda.kernels.face import BLOCK, Paged, Rope, Step

CELLS = tl.constexpr(BLOCK)


@triton.jit
def put(out, at, a, b, c, i, j, half, dim, width, REST: tl.constexpr):
    """The two halves and the rest of a head."""
    tl.store(out + at + i, a.to(out.dtype.element_ty), mask=i < half)
    tl.store(out + at + half + i, b.to(out.dtype.element_ty), mask=i < half)
    if REST > 0:
        tl.store(out + at + dim + j, c.to(out.dtype.element_ty), mask=j < width - dim)


@triton.jit
def inputs_kernel(
    q, k, v, q_norm, k_norm, cos, sin, positions, owners, blocks, k_cache, v_cache, q_out, k_out, eps, heads,
    kv_heads, dk, dv, half, q_stride, k_stride, v_stride, q_out_stride, k_out_stride, block_stride,
    v_block_stride, table_width, HALF: tl.constexpr, REST: tl.constexpr, DV: tl.constexpr, ROPE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, j = tl.arange(0, HALF), tl.arange(0, REST if REST > 0 else 1)
    dim = 2 * half
    is_query = head < heads
    of_key = head - heads
    a_w, b_w, c_w = 1.0, 1.0, 1.0
    if q_norm is not None:
        weights = q_norm if is_query else k_norm
        a_w = tl.load(weights + i, mask=i < half, other=0.0).to(tl.float32)
        b_w = tl.load(weights + half + i, mask=i < half, other=0.0).to(tl.float32)
        if REST > 0:
            c_w = tl.load(weights + dim + j, mask=j < dk - dim, other=0.0).to(tl.float32)
    wait(PDL)
    release(PDL)
    position = tl.load(positions + row)
    owner = tl.load(owners + row).to(tl.int64)
    block = tl.load(blocks + owner * table_width + position // CELLS).to(tl.int64)
    place = position % CELLS
    if head < heads + kv_heads:
        source = q + row * q_stride + head * dk if is_query else k + row * k_stride + of_key * dk
        a = tl.load(source + i, mask=i < half, other=0.0).to(tl.float32)
        b = tl.load(source + half + i, mask=i < half, other=0.0).to(tl.float32)
        c = tl.zeros((REST if REST > 0 else 1,), tl.float32)
        if REST > 0:
            c = tl.load(source + dim + j, mask=j < dk - dim, other=0.0).to(tl.float32)
        if q_norm is not None:
            squares = tl.sum(a * a, 0) + tl.sum(b * b, 0) + tl.sum(c * c, 0)
            by = tl.sqrt(squares / dk + eps)
            a, b, c = a / by * a_w, b / by * b_w, c / by * c_w
        if ROPE:
            turn = position.to(tl.int64) * half + i
            cosine = tl.load(cos + turn, mask=i < half, other=0.0)
            sine = tl.load(sin + turn, mask=i < half, other=0.0)
            a, b = a * cosine - b * sine, b * cosine + a * sine
        if is_query:
            put(q_out, row * q_out_stride + head * dk, a, b, c, i, j, half, dim, dk, REST)
        else:
            cell = block * block_stride + (of_key * CELLS + place) * dk
            put(k_cache, cell, a, b, c, i, j, half, dim, dk, REST)
            if k_out is not None:
                put(k_out, row * k_out_stride + of_key * dk, a, b, c, i, j, half, dim, dk, REST)
    else:
        own, e = of_key - kv_heads, tl.arange(0, DV)
        value = tl.load(v + row * v_stride + own * dv + e, mask=e < dv, other=0.0)
        cell = block * v_block_stride + (own * CELLS + place) * dv
        tl.store(v_cache + cell + e, value.to(v_cache.dtype.element_ty), mask=e < dv)


def inputs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None, eps: float, table: Rope | None, heads: int, kv_heads: int, step: Step,
    cache: Paged, q_out: torch.Tensor, k_out: torch.Tensor | None,
) -> Call:  # fmt: skip
    """As `face.Kernels.attend_inputs`, for caches of floats; q and k have norms both or neither."""
    assert (q_norm is None) == (k_norm is None)
    dk, dv = cache.k.shape[3], cache.v.shape[3]
    half = dk // 2 if table is None else table.dim // 2
    rest = dk - 2 * half
    arguments = {
        "q": q, "k": k, "v": v, "q_norm": q_norm, "k_norm": k_norm,
        "cos": None if table is None else table.cos, "sin": None if table is None else table.sin,
        "positions": step.positions, "owners": step.owners, "blocks": step.blocks,
        "k_cache": cache.k, "v_cache": cache.v, "q_out": q_out, "k_out": k_out,
        "eps": float(eps), "heads": heads, "kv_heads": kv_heads, "dk": dk, "dv": dv, "half": half,
        "q_stride": q.stride(0), "k_stride": k.stride(0), "v_stride": v.stride(0),
        "q_out_stride": q_out.stride(0), "k_out_stride": 0 if k_out is None else k_out.stride(0),
        "block_stride": cache.k.stride(0), "v_block_stride": cache.v.stride(0),
        "table_width": step.blocks.shape[1],
    }  # fmt: skip
    constants: dict[str, object] = {
        "HALF": power(half),
        "REST": power(rest) if rest else 0,
        "DV": power(dv),
        "ROPE": table is not None,
    }
    return Call(inputs_kernel, (len(q), heads + 2 * kv_heads), arguments, constants, Config(n_warps=1))
