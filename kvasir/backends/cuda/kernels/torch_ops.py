"""Every op in plain torch, on any device: what the kernels are held to, and what runs where there is none.

Products, sums and functions are float32; `out` is rounded once.  Where a step may be captured in a graph
nothing here reads the device.  Tests: tests/cuda/test_torch_ops.py, against `backends/reference.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kvasir.backends.cuda.kernels.experts import route_rows
from kvasir.backends.cuda.kernels.face import (
    BLOCK,
    Attention,
    ExpertsOf,
    LowRanks,
    Paged,
    Rope,
    Sampling,
    Step,
)  # fmt: skip
from kvasir.backends.cuda.weights import Blocks, Dense, Weight

Fn = Callable[[Tensor], Tensor]
SWIGLU_ALPHA = 1.702  # gpt-oss
Q8_GROUP = 32

ACTIVATIONS: dict[str, Fn] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def gated(gate: Tensor, up: Tensor, fn: str, limit: float) -> Tensor:
    """fn(gate) * up, with `limit` gpt-oss's: see `reference.gated`."""
    if not limit:
        return ACTIVATIONS[fn](gate) * up
    gate, up = torch.clamp(gate, max=limit), torch.clamp(up, -limit, limit)
    return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)


def split_gated(both: Tensor, fn: str, limit: float) -> Tensor:
    """[.., 2F], gate first -> [.., F]."""
    gate, up = both.float().chunk(2, -1)
    return gated(gate, up, fn, limit)


def widest(x: Tensor) -> Tensor:
    """What sums are formed in: float32, and float64 on the CPU, where nothing is in a hurry and the order of
    torch's sums depends on the number of rows.
    """
    return x.double() if x.device.type == "cpu" else x.float()


def by_heads(x: Tensor, heads: int) -> Tensor:
    """[rows, H*d] -> [rows, H, d] as `widest`."""
    return widest(x).unflatten(-1, (heads, -1))


def normed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, heads: int = 1, center: bool = False
) -> Tensor:
    """[rows, heads, d]."""
    h = by_heads(x, heads)
    if center:
        h = h - h.mean(-1, keepdim=True)
    h = h / torch.sqrt((h * h).mean(-1, keepdim=True) + eps)
    if weight is not None:
        h = h * weight
    return h if bias is None else h + bias


def turned(h: Tensor, table: Rope, positions: Tensor) -> Tensor:
    """float32 [rows, heads, d], its first `dim` columns turned."""
    half = table.dim // 2
    at = positions.long()
    cos, sin = table.cos[at][:, None], table.sin[at][:, None]
    a, b = h[..., :half], h[..., half : table.dim]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, h[..., table.dim :]], -1)


def cells(step: Step) -> tuple[Tensor, Tensor]:
    """For each row the cache block and the place in it: [T], [T]."""
    at = step.positions.long()
    return step.blocks[step.owners.long(), at // BLOCK].long(), at % BLOCK


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """[.., d] float32 -> int8 codes [.., d] and float16 scales [.., ceil(d/32)], as `reference.kept`."""
    d = x.shape[-1]
    groups = F.pad(x, (0, -d % Q8_GROUP)).unflatten(-1, (-1, Q8_GROUP))
    scales = torch.clamp(groups.abs().amax(-1) / 127, max=65504).half()
    wide = scales.float()
    inverse = torch.where(wide > 0, 1 / wide, torch.zeros_like(wide))
    codes = torch.clamp(torch.round(groups * inverse[..., None]), -127, 127).to(torch.int8)
    return codes.flatten(-2)[..., :d], scales


def widened(codes: Tensor, scales: Tensor | None) -> Tensor:
    """What a cache keeps."""
    if scales is None:
        return widest(codes)
    d = codes.shape[-1]
    return widest(codes) * scales.float().repeat_interleave(Q8_GROUP, -1)[..., :d]


def scored(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, told: Attention) -> Tensor:
    """q [.., t, H, dk], keys [.., u, K, dk], values [.., u, K, dv], hidden [.., t, u] -> [.., t, H, dv]."""
    group = told.heads // told.kv_heads
    keys, values = (x.repeat_interleave(group, -2) for x in (keys, values))
    s = torch.einsum("...thd,...uhd->...htu", q, keys) * told.scale
    if told.softcap:
        s = told.softcap * torch.tanh(s / told.softcap)
    s = s.masked_fill(hidden[..., None, :, :], -math.inf)
    if told.sinks is not None:
        sink = told.sinks.float()[:, None, None].expand(*s.shape[:-1], 1)
        p = torch.softmax(torch.cat([s, sink], -1), -1)[..., :-1]
    else:
        p = torch.softmax(s, -1)
    return torch.einsum("...htu,...uhd->...thd", p, values)


def hidden(at: Tensor, past: Tensor, told: Attention) -> Tensor:
    """Which of `past` [.., u] a row at `at` [.., t] does not see: [.., t, u]."""
    ago = at[..., :, None] - past[..., None, :]
    out = (ago < 0) if told.causal else torch.zeros_like(ago, dtype=torch.bool)
    return out | (ago >= told.window) if told.window else out


class TorchOps:
    """The face in plain torch; see `face.Kernels` for what each method does."""

    name = "torch"

    # -- rows in and out --------------------------------------------------------------------------

    def embed(self, table: Weight, ids: Tensor, out: Tensor) -> None:
        out.copy_(rows_of(table, ids.long()))

    def take(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        out.copy_(x[rows.long()])

    def pool(self, x: Tensor, step: Step, how: str, out: Tensor) -> None:
        first, last = step.starts[:-1].long(), step.starts[1:].long() - 1
        if how == "mean":
            sums = torch.zeros(out.shape, dtype=torch.float32, device=x.device)
            sums.index_add_(0, step.owners.long(), x.float())
            out.copy_(sums / (last - first + 1)[:, None])
        else:
            out.copy_(x[first if how == "first" else last])

    # -- elementwise ------------------------------------------------------------------------------

    def add(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        out.copy_(x.float() + y.float())

    def mul(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        if y.shape[1] == x.shape[1]:
            out.copy_(x.float() * y.float())
        else:
            out.copy_((by_heads(x, y.shape[1]) * y.float()[..., None]).flatten(1))

    def scale(self, x: Tensor, by: float, out: Tensor) -> None:
        out.copy_(x.float() * by)

    def softcap(self, x: Tensor, cap: float, out: Tensor) -> None:
        out.copy_(cap * torch.tanh(x.float() / cap))

    def act(self, x: Tensor, fn: str, out: Tensor) -> None:
        out.copy_(ACTIVATIONS[fn](x.float()))

    def glu(self, gate: Tensor, up: Tensor, fn: str, limit: float, out: Tensor) -> None:
        out.copy_(gated(gate.float(), up.float(), fn, limit))

    def copy(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x)

    # -- norms ------------------------------------------------------------------------------------

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, heads: int, center: bool,
        out: Tensor,
    ) -> None:  # fmt: skip
        out.copy_(normed(x, weight, bias, eps, heads, center).flatten(1))

    def add_norm(
        self, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool,
        total: Tensor, out: Tensor,
    ) -> None:  # fmt: skip
        both = x.float() + y.float()
        total.copy_(both)
        out.copy_(normed(both, weight, bias, eps, 1, center).flatten(1))

    def l2norm(self, x: Tensor, heads: int, eps: float, out: Tensor) -> None:
        h = by_heads(x, heads)
        out.copy_((h / torch.sqrt((h * h).sum(-1, keepdim=True) + eps)).flatten(1))

    # -- products ---------------------------------------------------------------------------------

    def product(self, x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor) -> None:
        y = multiplied(x, weight)
        out.copy_(y if bias is None else y.float() + bias)

    def gated(
        self, x: Tensor, gate_up: Weight, bias: Tensor | None, fn: str, limit: float, scratch: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        y = multiplied(x, gate_up).float()
        out.copy_(split_gated(y if bias is None else y + bias, fn, limit))

    def low_rank(self, x: Tensor, ranks: LowRanks, owners: Tensor, adapters: Tensor, out: Tensor) -> None:
        at = adapters[owners.long()].long()
        a, b = ranks.a[at.clamp(min=0)].float(), ranks.b[at.clamp(min=0)].float()
        low = torch.einsum("trd,td->tr", a, x.float())
        more = torch.einsum("tor,tr->to", b, low) * ranks.scales[at.clamp(min=0)][:, None]
        out.copy_(torch.where(at[:, None] >= 0, out.float() + more, out.float()))

    # -- position and past ------------------------------------------------------------------------

    def rope(self, x: Tensor, table: Rope, positions: Tensor, heads: int, out: Tensor) -> None:
        out.copy_(turned(by_heads(x, heads), table, positions).flatten(1))

    def store(self, k: Tensor, v: Tensor, step: Step, cache: Paged) -> None:
        block, place = cells(step)
        for x, into, scales in ((k, cache.k, cache.k_scales), (v, cache.v, cache.v_scales)):
            rows = by_heads(x, into.shape[1])
            if scales is None:
                into[block, :, place] = rows.to(into.dtype)
            else:
                into[block, :, place], scales[block, :, place] = quantized(rows.float())

    def attend_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
        table: Rope | None, heads: int, kv_heads: int, step: Step, cache: Paged, q_out: Tensor,
        k_out: Tensor | None,
    ) -> None:  # fmt: skip
        made = []
        for x, weight, n in ((q, q_norm, heads), (k, k_norm, kv_heads)):
            h = by_heads(x, n) if weight is None else normed(x, weight, None, eps, n)
            made.append((h if table is None else turned(h, table, step.positions)).flatten(1))
        q_out.copy_(made[0])
        if k_out is not None:
            k_out.copy_(made[1])
        self.store(made[1].to(q_out.dtype), v, step, cache)

    def attend(self, q: Tensor, cache: Paged, step: Step, told: Attention, out: Tensor) -> None:
        if step.host is None or step.is_decode:  # every sequence over the whole width of the table
            assert step.is_decode, "several rows a sequence need the host's batch"
            self._attend(q, cache, step.blocks, step.positions[:, None], told, out)
            return
        for n, rows in step.host.sequences():
            at = step.positions[rows].long()
            blocks = step.blocks[n : n + 1, : int(step.host.positions[rows.stop - 1]) // BLOCK + 1]
            self._attend(q[rows], cache, blocks, at[None], told, out[rows])

    def _attend(
        self, q: Tensor, cache: Paged, blocks: Tensor, at: Tensor, told: Attention, out: Tensor
    ) -> None:
        """q [n * t, H*dk] of sequences at positions `at` [n, t] over their blocks [n, b]."""
        own = blocks.long()
        keys, values = (
            widened(x[own], None if s is None else s[own]).transpose(2, 3).flatten(1, 2)  # [n, u, K, d]
            for x, s in ((cache.k, cache.k_scales), (cache.v, cache.v_scales))
        )
        past = torch.arange(keys.shape[1], device=q.device)
        unseen = hidden(at.long(), past, told)
        queries = by_heads(q, told.heads).unflatten(0, at.shape)
        # What nobody wrote may be anything, and 0 * inf would show it.
        values = values.masked_fill(unseen.all(1)[..., None, None], 0)
        out.copy_(scored(queries, keys, values, unseen, told).flatten(0, 1).flatten(1))

    def attend_fresh(self, q: Tensor, k: Tensor, v: Tensor, step: Step, told: Attention, out: Tensor) -> None:
        queries = by_heads(q, told.heads)
        keys, values = by_heads(k, told.kv_heads), by_heads(v, told.kv_heads)
        if step.host is None:
            at = torch.arange(len(q), device=q.device)
            other = step.owners[:, None] != step.owners[None]
            out.copy_(scored(queries, keys, values, hidden(at, at, told) | other, told).flatten(1))
            return
        for _, rows in step.host.sequences():
            at = torch.arange(rows.stop - rows.start, device=q.device)
            y = scored(queries[rows], keys[rows], values[rows], hidden(at, at, told), told)
            out[rows] = y.flatten(1).to(out.dtype)

    def conv(self, x: Tensor, weight: Tensor, step: Step, past: Tensor, out: Tensor) -> None:
        taps = weight.shape[1]
        slots, fresh = step.slots.long(), (step.positions[step.starts[:-1].long()] == 0)
        before = past[slots].masked_fill(fresh[:, None], 0).unflatten(1, (taps - 1, -1))  # [N, taps-1, D]
        if step.is_decode:
            seen = torch.cat([before, x.float()[:, None]], 1)
            out.copy_((seen * weight.T).sum(1))
            past[slots] = seen[:, 1:].flatten(1)
            return
        assert step.host is not None, "several rows a sequence need the host's batch"
        for n, rows in step.host.sequences():
            seen = torch.cat([before[n], x[rows].float()])
            windows = seen.unfold(0, taps, 1)  # [t, D, taps]
            out[rows] = (windows * weight).sum(-1).to(out.dtype)
            past[slots[n]] = seen[len(seen) - taps + 1 :].flatten()

    def decay(self, x: Tensor, a: Tensor, bias: Tensor, out: Tensor) -> None:
        z = x.float() + bias
        out.copy_(-torch.exp(a) * torch.logaddexp(torch.zeros_like(z), z))

    def delta(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, step: Step, memory: Tensor,
        k_heads: int, v_heads: int, out: Tensor,
    ) -> None:  # fmt: skip
        group = v_heads // k_heads
        qh, kh = (by_heads(x, k_heads).repeat(1, group, 1) for x in (q, k))
        vh, scale = by_heads(v, v_heads), float(memory.shape[-1]) ** -0.5
        g, b = torch.exp(decay.float()), beta.float()
        slots, fresh = step.slots.long(), (step.positions[step.starts[:-1].long()] == 0)
        state = widest(memory[slots]).masked_fill(fresh[:, None, None, None], 0)  # [N, H, dv, dk]
        if not step.is_decode:
            assert step.host is not None, "several rows a sequence need the host's batch"
            for n, rows in step.host.sequences():
                for t in range(rows.start, rows.stop):
                    own = slice(t, t + 1)
                    state[n : n + 1], y = _delta(state[n : n + 1], qh[own], kh[own], vh[own], g[own], b[own])
                    out[own] = (y * scale).flatten(1).to(out.dtype)
        else:
            state, y = _delta(state, qh, kh, vh, g, b)
            out.copy_((y * scale).flatten(1))
        memory[slots] = state.to(memory.dtype)

    # -- experts ----------------------------------------------------------------------------------

    def experts(self, x: Tensor, scores: Tensor, of: ExpertsOf, out: Tensor) -> None:
        share = routed(scores, of.k, of.route)  # [T, E], 0 where not chosen
        total = torch.zeros(out.shape, dtype=torch.float32, device=x.device)
        for e in range(share.shape[1]):  # in the order of their numbers
            inner = multiplied(x, one_of(of.gate_up, e)).float()
            inner = inner if of.gate_up_bias is None else inner + of.gate_up_bias[e]
            inner = split_gated(inner, of.fn, of.limit).to(x.dtype)
            y = multiplied(inner, one_of(of.down, e)).float()
            y = y if of.down_bias is None else y + of.down_bias[e]
            chosen = share[:, e : e + 1]
            total += torch.where(chosen != 0, chosen * y, 0)
        out.copy_(total)

    # -- choosing ---------------------------------------------------------------------------------

    def choose(self, logits: Tensor, how: Sampling, out: Tensor) -> None:
        wide = torch.nan_to_num(logits.double(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        top = wide.amax(-1, keepdim=True)
        endless = torch.where(wide == math.inf, 0.0, -math.inf)
        ranked, ids = torch.sort(
            torch.where(top == math.inf, endless, wide), dim=-1, descending=True, stable=True
        )
        place = torch.arange(wide.shape[1], device=wide.device)
        most = torch.where(how.top_k > 0, how.top_k, wide.shape[1])[:, None]
        ranked = ranked.masked_fill(place >= most, -math.inf)
        before = torch.softmax(ranked, -1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        # As np.searchsorted(cumulative, top_p): the first candidate that reaches top_p is the last one kept.
        cut = (before >= how.top_p.double()[:, None]) & (how.top_p < 1)[:, None] & (place > 0)
        ranked = ranked.masked_fill(cut, -math.inf)
        p = torch.softmax(ranked, -1)
        ranked = ranked.masked_fill(p < how.min_p.double()[:, None] * p[:, :1], -math.inf)
        greedy = how.temperature == 0
        cool = torch.where(greedy, 1.0, how.temperature).double()[:, None]
        reached = torch.softmax((ranked - ranked[:, :1]) / cool, -1).cumsum(-1)
        at = (reached <= how.drawn[:, None]).sum(-1, keepdim=True)
        last = (ranked > -math.inf).sum(-1, keepdim=True) - 1
        at = torch.where(greedy[:, None], 0, torch.minimum(at, last))
        out.copy_(ids.gather(1, at)[:, 0])


def rows_of(table: Weight, ids: Tensor) -> Tensor:
    """Rows [t] of a matrix, in float32."""
    return picked(table, ids).floats()


def picked(weight: Weight, at: Tensor | slice | int) -> Weight:
    """Rows of a matrix, or matrices of a stack, as they are encoded."""
    if isinstance(weight, Dense):
        return Dense(weight.data[at])
    if isinstance(weight, Blocks):
        return weight.of([None if t is None else t[at] for t in weight.tensors])
    return type(weight)(weight.data[at], weight.scales[at])


def one_of(stack: Weight, e: int) -> Weight:
    """Expert e of a stack."""
    return picked(stack, e)


def multiplied(x: Tensor, weight: Weight) -> Tensor:
    """x W^T: cuBLAS's in the dtype of the weights, or of x where they are codes; on the CPU in float64."""
    if x.device.type == "cpu":
        return (x.double() @ weight.floats(torch.float64).T).float()
    dtype = weight.data.dtype if isinstance(weight, Dense) else x.dtype
    return F.linear(x.to(dtype), weight.floats(dtype))


def routed(scores: Tensor, k: int, route: str) -> Tensor:
    """[T, E] -> what each expert's answer counts [T, E], 0 where it is not chosen; ties to the lower one."""
    chosen, share = route_rows(scores, k, route)
    return torch.zeros_like(scores, dtype=torch.float32).scatter_(1, chosen, share)


def _delta(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """One row of each sequence: state [N, H, dv, dk], q, k [N, H, dk], v [N, H, dv], g, beta [N, H]."""
    state = state * g[..., None, None]
    missing = v - torch.einsum("nhvk,nhk->nhv", state, k)
    state = state + beta[..., None, None] * missing[..., None] * k[:, :, None]
    return state, torch.einsum("nhvk,nhk->nhv", state, q)
