"""The oracle: every op in a few lines of numpy, float32, no tricks.  If a backend differs, this is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from time import perf_counter
from typing import Any

import numpy as np

from kvasir.backends.base import BLOCK, Adapter, Batch, Bytes, Floats, Ints, Memory, Seen
from kvasir.checkpoint.tensor import Tensor
from kvasir.plan import Op, Plan, State, Value, ops
from kvasir.records import dataclass
from kvasir.sampling import SamplingParams, choose, penalize

GELU_TANH = 0.7978845608028654  # sqrt(2 / pi)
SWIGLU_ALPHA = 1.702  # gpt-oss


def erf(x: Floats) -> Floats:
    """The error function to 1.2e-7, float32.  Source: Numerical Recipes' erfc, section 6.2.2."""
    coefficients = (1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
                    -0.82215223, 0.17087277)  # fmt: skip
    t = 1 / (1 + 0.5 * np.abs(x.astype(np.float64)))
    series = -1.26551223 + sum(c * t ** (i + 1) for i, c in enumerate(coefficients))
    return (np.sign(x) * (1 - t * np.exp(-(x.astype(np.float64) ** 2) + series))).astype(np.float32)


def sigmoid(x: Floats) -> Floats:
    e = np.exp(-np.abs(x))  # at most 1: nothing overflows, and small results keep all their digits
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e), np.float32)


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.float32(2**0.5))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.float32(GELU_TANH) * (x + np.float32(0.044715) * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


def gated(gate: Floats, up: Floats, fn: str, limit: float) -> Floats:
    """fn(gate) * up.  With a limit, gpt-oss's: gate is cut above, up on both sides,
    then gate * sigmoid(1.702 gate) * (up + 1).
    """
    if not limit:
        return np.asarray(ACTIVATIONS[fn](gate) * up, np.float32)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return np.asarray(gate * sigmoid(np.float32(SWIGLU_ALPHA) * gate) * (up + 1), np.float32)


def route(scores: Floats, k: int, how: str) -> list[list[tuple[int, np.float32]]]:
    """For each row the chosen experts in the order of their numbers, each with its weight."""
    chosen = np.argsort(-scores, 1, kind="stable")[:, :k]
    if how == "topk_softmax":
        weight = softmax(np.take_along_axis(scores, chosen, 1))
    else:
        weight = np.take_along_axis(softmax(scores), chosen, 1)
        if how == "softmax_renorm":
            weight = weight / weight.sum(1, keepdims=True)
    return [sorted(zip(map(int, c), w, strict=True)) for c, w in zip(chosen, weight, strict=True)]


@dataclass
class Context:
    """What ops may see beside their arguments.  Mutable: `states` are the program's memory."""

    batch: Batch
    states: Mapping[str, Floats]
    kv_format: str = "f32"
    adapters: Mapping[int, Adapter] = field(default_factory=dict)

    def adapted(self, v: Value) -> Iterator[tuple[int, Adapter]]:
        """The rows of v whose sequence has an adapter, each with it."""
        b = self.batch
        if len(b.adapters):
            of_token = np.repeat(np.arange(len(b.starts) - 1), np.diff(b.starts))
            sequence = {"T": of_token, "R": of_token[b.logit_rows], "N": np.arange(len(b.starts) - 1)}
            for row, at in enumerate(b.adapters[sequence[v.rows]].tolist()):
                if at >= 0:
                    yield row, self.adapters[at]

    def sequences(self) -> Iterator[tuple[int, slice]]:
        return self.batch.sequences()

    def cells(self, n: int, positions: Ints) -> Ints:
        """Rows of a paged state that hold these positions of sequence n."""
        cells: Ints = self.batch.blocks[n, positions // BLOCK] * BLOCK + positions % BLOCK
        return cells

    def slot(self, state: State, n: int, rows: slice) -> Floats:
        """The sequence's own row of a slot state, zeroed if the sequence begins in this step."""
        own: Floats = self.states[state.name][self.batch.slots[n]]
        if self.batch.positions[rows.start] == 0:
            own[:] = 0
        return own


def embed(op: ops.Embed, c: Context, table: Floats) -> Floats:
    ids = c.batch.tokens if op.by == "tokens" else c.batch.positions
    return np.asarray(table[ids])


def take(op: ops.Take, c: Context, x: Floats) -> Floats:
    return np.asarray(x[c.batch.logit_rows])


def pool(op: ops.Pool, c: Context, x: Floats) -> Floats:
    pick = {"mean": lambda rows: rows.mean(0), "first": lambda rows: rows[0], "last": lambda rows: rows[-1]}
    return np.stack([pick[op.how](x[rows]) for _, rows in c.sequences()])


def add(op: ops.Add, c: Context, x: Floats, y: Floats) -> Floats:
    return x + y


def mul(op: ops.Mul, c: Context, x: Floats, y: Floats) -> Floats:
    heads = y.shape[1]
    return (x.reshape(len(x), heads, -1) * y[:, :, None]).reshape(x.shape) if heads < x.shape[1] else x * y


def scale(op: ops.Scale, c: Context, x: Floats) -> Floats:
    return x * np.float32(op.by)


def softcap(op: ops.Softcap, c: Context, x: Floats) -> Floats:
    return np.asarray(np.float32(op.cap) * np.tanh(x / np.float32(op.cap)), np.float32)


def act(op: ops.Act, c: Context, x: Floats) -> Floats:
    return ACTIVATIONS[op.fn](x)


def glu(op: ops.Glu, c: Context, gate: Floats, up: Floats) -> Floats:
    return gated(gate, up, op.fn, op.limit)


def columns(op: ops.Columns, c: Context, x: Floats) -> Floats:
    return x[:, op.start : op.stop]


def cat(op: ops.Cat, c: Context, *xs: Floats) -> Floats:
    return np.concatenate(xs, 1)


def linear(op: ops.Linear, c: Context, x: Floats, w: Floats, b: Floats | None = None) -> Floats:
    y = x @ w.T
    y = np.asarray(y if b is None else y + b, np.float32)
    return low_rank(op, c, x, y) if op.adapted else y


def low_rank(op: ops.Linear, c: Context, x: Floats, y: Floats) -> Floats:
    """y [rows, O] with what adapters add to it for x [rows, D]; rows without one stay as they are."""
    y = y.copy()
    for row, adapter in c.adapted(op.out):
        if low := adapter.get(op.weight.name):
            y[row] += np.float32(low.scale) * (low.b.floats() @ (low.a.floats() @ x[row]))
    return y


def norm(op: ops.Norm, c: Context, x: Floats, *wb: Floats) -> Floats:
    h = x.reshape(len(x), op.heads, -1)
    if op.center:
        h = h - h.mean(-1, keepdims=True)
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + np.float32(op.eps))
    if wb:
        h = h * wb[0] + (wb[1] if op.bias else np.float32(0))
    return np.asarray(h.reshape(x.shape), np.float32)


def l2norm(op: ops.L2Norm, c: Context, x: Floats) -> Floats:
    h = x.reshape(len(x), op.heads, -1)
    return np.asarray(h / np.sqrt((h * h).sum(-1, keepdims=True) + np.float32(op.eps)), np.float32).reshape(
        x.shape
    )


def rope(op: ops.Rope, c: Context, x: Floats) -> Floats:
    h, half = x.reshape(len(x), op.heads, -1).copy(), op.dim // 2
    # The angle in float64: at position 100,000 a float32 product would be off by 0.004.
    angle = c.batch.positions[:, None, None].astype(np.float64) * np.asarray(op.inverse_frequencies)
    cos = (np.cos(angle) * op.magnitude).astype(np.float32)
    sin = (np.sin(angle) * op.magnitude).astype(np.float32)
    a, b = h[..., :half].copy(), h[..., half : op.dim].copy()
    h[..., :half], h[..., half : op.dim] = a * cos - b * sin, b * cos + a * sin
    return h.reshape(x.shape)


def attend(
    op: ops.Attend, c: Context, q: Floats, k: Floats, v: Floats, sinks: Floats | None = None
) -> Floats:
    kv, y = np.concatenate([k, v], 1), []
    for n, rows in c.sequences():
        at = c.batch.positions[rows] if op.cache else np.arange(rows.stop - rows.start)
        past = kv[rows]
        if op.cache:
            state = c.states[op.cache.name]
            state[c.cells(n, at)] = kept(past, op, c.kv_format)
            past = state[c.cells(n, np.arange(at[-1] + 1, dtype=np.int32))].astype(np.float32)
        y.append(attend_one(op, q[rows], past, at, k.shape[1], sinks))
    return np.concatenate(y)


def kept(kv: Floats, op: ops.Attend, kv_format: str) -> Floats:
    """New rows [t, k|v] as the cache gives them back.  A float format rounds when they are stored; q8_0 has
    integers up to 127 and a float16 scale for every 32 numbers of a head.
    """
    if kv_format != "q8_0":
        return kv
    widths = [op.k.width // op.kv_heads] * op.kv_heads + [op.v.width // op.kv_heads] * op.kv_heads
    blocks = [n for width in widths for n in (*[32] * (width // 32), width % 32) if n]
    starts = np.cumsum([0, *blocks[:-1]])
    most = np.maximum.reduceat(np.abs(kv), starts, 1)
    scale = np.minimum(most / np.float32(127), np.float32(65504)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    scale, inverse = (np.repeat(x, blocks, 1) for x in (scale, inverse))
    return np.clip(np.rint(kv * inverse), -127, 127) * scale


def attend_one(
    op: ops.Attend, q: Floats, past: Floats, at: Ints, k_width: int, sinks: Floats | None
) -> Floats:
    """One sequence's rows [t, H*d] at positions `at` over its past [u, k|v]."""
    keys, vals = (p.reshape(len(past), op.kv_heads, -1) for p in (past[:, :k_width], past[:, k_width:]))
    keys, vals = (np.repeat(p, op.heads // op.kv_heads, 1) for p in (keys, vals))
    s = np.einsum("thd,uhd->htu", q.reshape(len(q), op.heads, -1), keys) * np.float32(op.scale)
    if op.softcap:
        s = np.float32(op.softcap) * np.tanh(s / np.float32(op.softcap))
    ago = at[:, None] - np.arange(len(past))[None]
    hidden = ((ago < 0) & op.causal) | ((ago >= op.window) & (op.window > 0))
    s = np.where(hidden, np.float32(-np.inf), s)
    if sinks is not None:  # one more score for each head, whose share of the softmax goes to nobody
        s = np.concatenate([s, np.broadcast_to(sinks[:, None, None], (*s.shape[:2], 1))], -1)
    p = softmax(s)[..., : len(past)]
    return np.asarray(np.einsum("htu,uhd->thd", p, vals).reshape(len(q), -1), np.float32)


def conv(op: ops.Conv, c: Context, x: Floats, w: Floats) -> Floats:
    taps, y = w.shape[1], np.empty_like(x)
    for n, rows in c.sequences():
        past = c.slot(op.past, n, rows)
        seen = np.concatenate([past.reshape(taps - 1, -1), x[rows]])
        y[rows] = sum(seen[i : i + rows.stop - rows.start] * w[:, i] for i in range(taps))
        past[:] = seen[len(seen) - taps + 1 :].ravel()
    return y


def decay(op: ops.Decay, c: Context, x: Floats, a: Floats, bias: Floats) -> Floats:
    return np.asarray(-np.exp(a) * np.logaddexp(np.float32(0), x + bias), np.float32)


def delta(op: ops.Delta, c: Context, q: Floats, k: Floats, v: Floats, g: Floats, beta: Floats) -> Floats:
    y, group = np.empty_like(v), op.v_heads // op.k_heads
    per_head = [np.tile(t.reshape(len(t), op.k_heads, op.k_dim), (1, group, 1)) for t in (q, k)]
    values = v.reshape(len(v), op.v_heads, op.v_dim)
    for n, rows in c.sequences():
        memory = c.slot(op.memory, n, rows).reshape(op.v_heads, op.v_dim, op.k_dim)
        for t in range(rows.start, rows.stop):
            qt, kt = (p[t] for p in per_head)
            memory *= np.exp(g[t])[:, None, None]
            missing = values[t] - np.einsum("hvk,hk->hv", memory, kt)
            memory += beta[t][:, None, None] * missing[..., None] * kt[:, None]
            y[t] = np.einsum("hvk,hk->hv", memory, qt).ravel() * np.float32(op.k_dim**-0.5)
    return y


def experts(op: ops.Experts, c: Context, x: Floats, scores: Floats, *w: Floats) -> Floats:
    gate, up, down = w[:3]
    gate_b, up_b, down_b = w[3:] if op.gate_bias else (np.zeros(t.shape[:2], np.float32) for t in w[:3])
    y = np.zeros_like(x)
    for t, choice in enumerate(route(scores, op.k, op.route)):
        for e, weight in choice:
            inner = gated(gate[e] @ x[t] + gate_b[e], up[e] @ x[t] + up_b[e], op.fn, op.limit)
            y[t] += weight * (down[e] @ inner + down_b[e])
    return y


OPS: dict[type[Op], Callable[..., Floats]] = {
    ops.Embed: embed, ops.Take: take, ops.Pool: pool, ops.Add: add, ops.Mul: mul, ops.Scale: scale,
    ops.Softcap: softcap, ops.Act: act, ops.Glu: glu, ops.Columns: columns, ops.Cat: cat, ops.Linear: linear,
    ops.Norm: norm, ops.L2Norm: l2norm, ops.Rope: rope, ops.Attend: attend, ops.Conv: conv, ops.Decay: decay,
    ops.Delta: delta, ops.Experts: experts,
}  # fmt: skip


def run(op: Op, c: Context, values: Mapping[int, Floats], weights: Mapping[str, Floats]) -> Floats:
    """One op on the values and weights it names: float32 [rows, width]."""
    y = OPS[type(op)](op, c, *(values[v.id] for v in op.inputs), *(weights[w.name] for w in op.weights))
    assert y.shape[1] == op.out.width, f"{op.scope}{op.kind}: {y.shape} is not {op.out.width} wide"
    return np.asarray(y, np.float32)


@dataclass
class ReferenceProgram:
    """A plan over decoded weights.  Mutable: holds the states."""

    plan: Plan
    memory: Memory
    weights: Mapping[str, Floats]
    states: dict[str, Floats] = field(default_factory=dict)
    adapters: dict[int, Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kv: Any = np.float16 if self.memory.kv_format == "f16" else np.float32
        for s in self.plan.states.values():
            paged = s.kind == "paged"
            rows = self.memory.n_blocks * BLOCK if paged else self.memory.n_slots
            self.states[s.name] = np.zeros((rows, s.width), kv if paged else np.float32)

    def values(self, batch: Batch) -> Iterator[tuple[Op, Floats]]:
        """Each op with what it wrote, in order: for `KVASIR_CHECK` and for tests that look inside."""
        context = Context(batch, self.states, self.memory.kv_format, self.adapters)
        values = dict[int, Floats]()
        with np.errstate(over="ignore"):  # exp and tanh run to their limits by design
            for op in self.plan.ops:
                values[op.out.id] = run(op, context, values, self.weights)
                yield op, values[op.out.id]

    def step(self, batch: Batch) -> Floats:
        assert self.plan.output is not None
        return {op.out.id: y for op, y in self.values(batch)}[self.plan.output.id]

    def watch(self, batch: Batch, seen: Seen) -> Floats:
        assert self.plan.output is not None
        last, output = perf_counter(), np.empty((0, 0), np.float32)
        for op, y in self.values(batch):
            seen((op,), perf_counter() - last, (y,))
            last, output = perf_counter(), y if op.out == self.plan.output else output
        return output

    def copy_slot(self, source: int, target: int) -> None:
        for name, state in self.plan.states.items():
            if state.kind == "slot":
                self.states[name][target] = self.states[name][source]

    def block(self, number: int) -> tuple[Bytes, ...]:
        cells = slice(number * BLOCK, (number + 1) * BLOCK)
        paged = [name for name, s in self.plan.states.items() if s.kind == "paged"]
        return tuple(self.states[name][cells].reshape(-1).view(np.uint8) for name in paged)

    def slot(self, number: int) -> tuple[Bytes, ...]:
        slots = [name for name, s in self.plan.states.items() if s.kind == "slot"]
        return tuple(self.states[name][number].view(np.uint8) for name in slots)

    def adapt(self, at: int, adapter: Adapter | None) -> None:
        if adapter is None:
            self.adapters.pop(at, None)
        else:
            self.adapters[at] = adapter

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        penalize(logits, recent, params)
        return choose(logits, params, drawn)

    def referenced(self) -> frozenset[str]:
        return frozenset()


class Reference:
    """The reference backend: decodes every weight to float32."""

    name = "reference"

    def compile(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> ReferenceProgram:
        return ReferenceProgram(plan, memory, {name: weights[name].floats() for name in plan.weights})
