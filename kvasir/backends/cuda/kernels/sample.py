"""The next token of each row, as `sampling.choose` says, without sorting.

Candidates stand by logit, highest first, the lower id first among equals.  Every cut (top-k, top-p, min-p)
keeps a beginning of that order: all logits above some value and the first few of those equal to it.  So the
state is (tau, few), and each step looks for the value where a sum over the logits that are not below it
passes a goal: 32 halvings of the range of a float's bits, each a pass over the row, which lies in the L2
cache.  Weights and sums are float64, as the law's.

Bound by those passes, at most 96 of them: a program a row, so that many rows take as long as one.
Tests: tests/cuda/interpreted/check_sample.py, against `sampling.choose`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvasir.backends.cuda.kernels.common import Call, Config, release, wait
from kvasir.backends.cuda.kernels.face import Sampling

LOWEST = tl.constexpr(-2147483648)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def logits_at(row, at, V, top):
    """Logits as candidates have them: NaN is never one; infinities leave only each other."""
    x = tl.load(row + at, mask=at < V, other=float("-inf")).to(tl.float32) + 0.0  # no -0
    x = tl.where(x != x, float("-inf"), x)
    return tl.where(top == INFINITY, tl.where(x == INFINITY, 0.0, float("-inf")), x)


@triton.jit
def key_of(x):
    """An integer in the order of the floats; its own inverse on their bits."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def weight_of(x, base, cool, least):
    """exp((x - base) / temperature), 0 where min-p cuts; `least` < 0: counts candidates."""
    wide = (x - base).to(tl.float64)
    w = tl.where(tl.exp(wide) >= least, tl.exp(wide * cool), 0.0)
    return tl.where(least < 0.0, tl.where(x == float("-inf"), 0.0, 1.0).to(tl.float64), w)


@triton.jit
def mass_from(row, V, top, base, cool, least, tau, few, key, BLOCK: tl.constexpr):
    """The weight of all candidates whose key is at least `key`."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, V, BLOCK):
        x = logits_at(row, start + tl.arange(0, BLOCK), V, top)
        k = key_of(x)
        total += tl.where((k > tau) & (k >= key), weight_of(x, base, cool, least), 0.0)
    edge = tl.where(tau >= key, few * weight_of(value_of(tau), base, cool, least), 0.0)
    return tl.sum(total, 0) + tl.where(few > 0, edge, 0.0)


@triton.jit
def value_of(key):
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def passing(row, V, top, base, cool, least, tau, few, goal, STRICT: tl.constexpr, BLOCK: tl.constexpr):
    """The highest candidate key from which on the weight reaches (STRICT: exceeds) the goal."""
    low = tl.full((), LOWEST, tl.int64)
    high = key_of(tl.where(top == INFINITY, 0.0, top)).to(tl.int64)
    for _ in range(32):
        middle = low + (high - low + 1) // 2
        mass = mass_from(row, V, top, base, cool, least, tau, few, middle.to(tl.int32), BLOCK)
        enough = mass > goal if STRICT else mass >= goal
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low.to(tl.int32)


@triton.jit
def equals(row, V, top, key, BLOCK: tl.constexpr):
    """How many logits have this key."""
    n = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        n += ((key_of(logits_at(row, at, V, top)) == key) & (at < V)).to(tl.int32)
    return tl.sum(n, 0)


@triton.jit
def sample_kernel(
    logits, temperature, top_k, top_p, min_p, drawn, out, V, stride, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    r = tl.program_id(0)
    wait(PDL)
    release(PDL)
    row = logits + r.to(tl.int64) * stride
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < V, other=float("-inf")).to(tl.float32) + 0.0
        best = tl.maximum(best, tl.where(x != x, float("-inf"), x))
    top = tl.max(best, 0)
    base = tl.where(top == INFINITY, 0.0, top)
    t, k, p = tl.load(temperature + r), tl.load(top_k + r), tl.load(top_p + r).to(tl.float64)
    one = tl.full((), 1.0, tl.float64)
    none = one * 0.0
    tau = tl.full((), LOWEST, tl.int32)
    few = tl.full((), 0, tl.int32)
    chosen, nth = key_of(base), few
    if t > 0:
        if (k > 0) & (k < V):
            cut = passing(row, V, top, base, one, -one, tau, few, k * one, False, BLOCK)
            above = mass_from(row, V, top, base, one, -one, tau, few, cut + 1, BLOCK)
            few = tl.minimum(k - above.to(tl.int32), equals(row, V, top, cut, BLOCK))
            tau = cut
        if p < 1.0:
            goal = p * mass_from(row, V, top, base, one, none, tau, few, LOWEST, BLOCK)
            cut = passing(row, V, top, base, one, none, tau, few, goal, False, BLOCK)
            above = mass_from(row, V, top, base, one, none, tau, few, cut + 1, BLOCK)
            there = tl.where(cut == tau, few, equals(row, V, top, cut, BLOCK))
            wanted = tl.ceil((goal - above) / weight_of(value_of(cut), base, one, none)).to(tl.int32)
            few = tl.minimum(tl.maximum(wanted, 1), there)
            tau = cut
        cool = 1.0 / t.to(tl.float64)
        least = tl.load(min_p + r).to(tl.float64)
        goal = tl.load(drawn + r) * mass_from(row, V, top, base, cool, least, tau, few, LOWEST, BLOCK)
        chosen = passing(row, V, top, base, cool, least, tau, few, goal, True, BLOCK)
        above = mass_from(row, V, top, base, cool, least, tau, few, chosen + 1, BLOCK)
        there = tl.where(chosen == tau, few, equals(row, V, top, chosen, BLOCK))
        nth = tl.floor((goal - above) / weight_of(value_of(chosen), base, cool, least)).to(tl.int32)
        nth = tl.maximum(tl.minimum(nth, there - 1), 0)
    seen, token = 0, 0
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        same = ((key_of(logits_at(row, at, V, top)) == chosen) & (at < V)).to(tl.int32)
        place = seen + tl.cumsum(same, 0) - 1
        token += tl.sum(tl.where((same > 0) & (place == nth), at, 0), 0)
        seen += tl.sum(same, 0)
    tl.store(out + r, token)


def sample(logits: torch.Tensor, how: Sampling, out: torch.Tensor) -> Call:
    """logits [R, V], out [R] int32."""
    arguments = {
        "logits": logits, "temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p,
        "min_p": how.min_p, "drawn": how.drawn, "out": out, "V": logits.shape[1], "stride": logits.stride(0),
    }  # fmt: skip
    block = 4096 if logits.shape[1] > 4096 else 256
    return Call(sample_kernel, (len(logits),), arguments, {"BLOCK": block}, Config(n_warps=16))
