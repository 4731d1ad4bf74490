"""The plan as a list of calls of kernels: which ops run as one, the dtype of each value, what lies where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from kvasir.backends.cuda import weights as device_weights
from kvasir.backends.cuda.frame import Frame
from kvasir.backends.cuda.kernels.face import Attention, ExpertsOf, Kernels, LowRanks, Rope
from kvasir.backends.cuda.states import States
from kvasir.backends.cuda.weights import Weight
from kvasir.checkpoint.tensor import Tensor
from kvasir.plan import Op, Plan, Value, ops
from kvasir.plan import Weight as Named
from kvasir.plan.passes import Group, Layout, fuse, layout

Run = Callable[[Frame], None]
WIDE = (ops.Embed, ops.Add, ops.Decay)  # what residual streams are made of stays float32
LIKE_INPUT = (ops.Columns, ops.Take, ops.Pool, ops.Scale, ops.Softcap, ops.Act)


@dataclass(frozen=True)
class Call:
    """Some ops of the plan, by number, that one function computes; only the last is told to who watches if
    the others ran elsewhere.
    """

    ops: tuple[int, ...]
    run: Run
    is_away: bool = False


def dtypes(plan: Plan, compute: torch.dtype) -> dict[int, torch.dtype]:
    """Each value's dtype: float32 for residual streams, scores of routers and the output, else `compute`."""
    wide = {v.id for op in plan.ops if isinstance(op, ops.Experts) for v in (op.scores,)}
    wide |= {v.id for op in plan.ops if isinstance(op, ops.Delta) for v in (op.decay, op.beta)}
    assert plan.output is not None
    wide.add(plan.output.id)
    found = dict[int, torch.dtype]()
    for op in plan.ops:
        if isinstance(op, ops.Columns):  # a view has its owner's
            found[op.out.id] = found[op.x.id] if op.out != plan.output else torch.float32
        elif op.out.id in wide or isinstance(op, WIDE):
            found[op.out.id] = torch.float32
        elif isinstance(op, LIKE_INPUT):
            found[op.out.id] = found[op.inputs[0].id]
        else:
            found[op.out.id] = compute
    return found


@dataclass
class Loader:
    """Weights of the plan on the device.  Mutable: each is loaded once."""

    tensors: Mapping[str, Tensor]
    device: torch.device
    compute: torch.dtype
    fp8: bool = False
    made: dict[str, Weight] = field(default_factory=dict)
    stacked: dict[tuple[str, ...], Weight] = field(default_factory=dict)

    def matrix(self, w: Named) -> Weight:
        if w.name not in self.made:
            self.made[w.name] = self._load(w)
        return self.made[w.name]

    def _load(self, w: Named) -> Weight:
        t = self.tensors[w.name]
        own = device_weights.load(replace(t, shape=w.shape), self.device, self.compute)
        return device_weights.to_fp8(own) if self.fp8 and len(w.shape) == 2 else own

    def stack(self, named: Sequence[Named]) -> Weight:
        """Several matrices as one; what they were made of is let go where nobody else has it."""
        key = tuple(w.name for w in named)
        if key not in self.stacked:
            self.stacked[key] = device_weights.stack([self.matrix(w) for w in named])
            for w in named:
                self.made.pop(w.name, None)
        return self.stacked[key]

    def vector(self, w: Named | None) -> torch.Tensor | None:
        """A small weight in float32, in its shape."""
        if w is None:
            return None
        return torch.from_numpy(self.tensors[w.name].floats().copy()).to(self.device)

    def likeness(self, w: Named) -> tuple[object, ...]:
        """Matrices of equal likeness can be stacked: of one format (float formats all become `compute`)."""
        name = self.tensors[w.name].format.name
        return ("float" if name in ("F32", "F16", "BF16") else name, w.shape[-1])

    @property
    def n_bytes(self) -> int:
        return sum(w.n_bytes for w in (*self.made.values(), *self.stacked.values()))


@dataclass
class Ranks:
    """What adapters add to the products of some weights.  Mutable: made anew when adapters come and go."""

    tables: dict[str, LowRanks] = field(default_factory=dict)


@dataclass
class Emitter:
    """What the functions below share while a plan is handed over.  Mutable."""

    plan: Plan
    kernels: Kernels
    loader: Loader
    states: States
    ranks: Ranks
    dtypes: Mapping[int, torch.dtype]
    n_positions: int
    ropes: dict[tuple[object, ...], Rope] = field(default_factory=dict)
    readers: dict[int, int] = field(default_factory=dict)  # value -> how many ops read it

    def __post_init__(self) -> None:
        assert self.plan.output is not None
        for op in self.plan.ops:
            for v in op.inputs:
                self.readers[v.id] = self.readers.get(v.id, 0) + 1
        self.readers[self.plan.output.id] = self.readers.get(self.plan.output.id, 0) + 1

    def rope(self, op: ops.Rope) -> Rope:
        """cos and sin for every position, the angle in float64 as in the reference."""
        key = (op.inverse_frequencies, op.magnitude)
        if key not in self.ropes:
            at = torch.arange(self.n_positions, dtype=torch.float64)
            angle = at[:, None] * torch.tensor(op.inverse_frequencies, dtype=torch.float64)
            turns = (
                f(angle).mul_(op.magnitude).float().to(self.loader.device) for f in (torch.cos, torch.sin)
            )
            self.ropes[key] = Rope(*turns)
        return self.ropes[key]


@dataclass(frozen=True)
class Emitted:
    """`calls` as they run; `alone`: op by op (products that lie side by side together), for who watches."""

    calls: tuple[Call, ...]
    alone: tuple[Call, ...]
    placed: Layout


def beside(
    plan: Plan, groups: Sequence[Group], loader: Loader, dtypes: Mapping[int, torch.dtype]
) -> list[tuple[int, ...]]:
    """Products of one input whose matrices can be one, by the ids of what they write."""
    found = list[tuple[int, ...]]()
    for group in groups:
        linears = [op for i in group.ops if isinstance(op := plan.ops[i], ops.Linear)]
        alike: dict[tuple[object, ...], list[int]] = {}
        for op in linears:
            if op.out != plan.output:
                key = (*loader.likeness(op.weight), op.bias is None, dtypes[op.out.id])
                alike.setdefault(key, []).append(op.out.id)
        found += [tuple(ids) for ids in alike.values() if len(ids) > 1]
    return found


def emit(e: Emitter, elsewhere: Sequence[tuple[range, Run]] = ()) -> Emitted:
    """All ops as calls.  `elsewhere`: stretches of ops that something else computes, in order."""
    groups = cut(fuse(e.plan), [numbers for numbers, _ in elsewhere], len(e.plan.ops))
    sides = beside(e.plan, groups, e.loader, e.dtypes)
    placed = layout(e.plan, groups, sides)
    whole = {id: ids for ids in sides for id in ids}
    away = {numbers.start: (numbers, run) for numbers, run in elsewhere}
    gone = {i for numbers, _ in elsewhere for i in numbers}
    calls, alone = list[Call](), list[Call]()
    for group in groups:
        if group.ops[0] in gone:
            numbers, run = away.pop(min(group.ops), (range(0), _nothing))
            if numbers:
                calls.append(Call(tuple(numbers), run, is_away=True))
                alone.append(calls[-1])
            continue
        todo = [i for i in group.ops if not _is_view(e.plan, e.plan.ops[i])]
        single = singles(e, todo, whole)
        joined: Sequence[Call] = single
        if group.kind == "gated" and len(single) == 2 and len(todo) == 3:
            joined = [gated(e, [e.plan.ops[i] for i in todo], single)]
        elif group.kind == "rows" and todo:
            joined = rows(e, [e.plan.ops[i] for i in todo], single)
        calls += joined
        alone += single
    return Emitted(tuple(calls), tuple(alone), placed)


def cut(groups: Sequence[Group], away: Sequence[range], n_ops: int) -> list[Group]:
    """The groups, cut where stretches begin and end, those of a stretch together and in order; a stretch that
    is away is one group, of ops that nobody here runs.
    """
    if not away:
        return list(groups)
    edges = sorted({0, n_ops, *(r.start for r in away), *(r.stop for r in away)})
    found = list[Group]()
    for first, stop in pairwise(edges):
        if range(first, stop) in away:
            found.append(Group(tuple(range(first, stop))))
            continue
        for group in groups:
            own = tuple(i for i in group.ops if first <= i < stop)
            if own:
                found.append(replace(group, ops=own))
    return found


def singles(e: Emitter, todo: Sequence[int], whole: Mapping[int, tuple[int, ...]]) -> list[Call]:
    """Op by op; products whose matrices are one together."""
    found, done = list[Call](), set[int]()
    for i in todo:
        if i in done:
            continue
        op = e.plan.ops[i]
        if isinstance(op, ops.Linear):
            ids = whole.get(op.out.id, (op.out.id,))
            found.append(product(e, [e.plan.ops[n] for n in ids], len(ids) > 1))
        else:
            found.append(Call((i,), EMIT[type(op)](e, op)))
        done |= set(found[-1].ops)
    return found


def _nothing(f: Frame) -> None: ...


def _is_view(plan: Plan, op: Op) -> bool:
    return isinstance(op, ops.Columns) and op.out != plan.output


# -- products -----------------------------------------------------------------------------------


def product(e: Emitter, linears: Sequence[Any], joined: bool) -> Call:
    """One product for all these, and then what adapters add."""
    k, first = e.kernels, linears[0]
    matrix = e.loader.stack([op.weight for op in linears]) if joined else e.loader.matrix(first.weight)
    biases = [e.loader.vector(op.bias) for op in linears]
    bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])
    adapted = [op for op in linears if op.adapted]

    def run(f: Frame) -> None:
        k.product(f.at(first.x), matrix, bias, f.whole(first.out) if joined else f.at(first.out))
        if f.adapted:
            for op in adapted:
                add_low_rank(e, f, op)

    return Call(tuple(op.out.id for op in linears), run)


def add_low_rank(e: Emitter, f: Frame, op: ops.Linear) -> None:
    """What adapters add to a product, for each row by its sequence."""
    ranks = e.ranks.tables.get(op.weight.name)
    if ranks is None:
        return
    s = f.step
    rows = {
        "T": s.owners,
        "R": s.owners[s.logit_rows.long()],
        "N": torch.arange(len(s.slots), device=s.slots.device),
    }
    e.kernels.low_rank(f.at(op.x), ranks, rows[op.out.rows], s.adapters, f.at(op.out))


def gated(e: Emitter, its_ops: Sequence[Any], single: Sequence[Call]) -> Call:
    """Gate, up and the activation of both as one; where adapters come between, one after another."""
    gate, up, glu = its_ops
    k, matrix = e.kernels, e.loader.stack([gate.weight, up.weight])
    biases = [e.loader.vector(op.bias) for op in (gate, up)]
    bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])

    def run(f: Frame) -> None:
        if f.adapted:
            for call in single:
                call.run(f)
        else:
            k.gated(f.at(gate.x), matrix, bias, glu.fn, glu.limit, f.whole(gate.out), f.at(glu.out))

    return Call(tuple(op.out.id for op in its_ops), run)


# -- ops by rows --------------------------------------------------------------------------------


def rows(e: Emitter, its_ops: Sequence[Op], single: Sequence[Call]) -> list[Call]:
    """The group's calls, with sums joined to the norms that read them, and what comes before an attention to
    its cache.
    """
    by_out = {c.ops[0]: c for c in single}
    made = {op.out.id: op for op in its_ops}
    last = its_ops[-1]
    joined = attend_group(e, last, made) if isinstance(last, ops.Attend) else None
    gone = set(joined.ops) if joined else set[int]()
    out, at = list[Call](), 0
    while at < len(its_ops):
        op, following = its_ops[at], its_ops[at + 1] if at + 1 < len(its_ops) else None
        at += 1
        if op.out.id in gone:
            continue
        if isinstance(op, ops.Add) and isinstance(following, ops.Norm) and _reads_whole(following, op):
            out.append(add_norm(e, op, following))
            at += 1
        else:
            out.append(by_out[op.out.id])
    return [*out, joined] if joined else out


def _reads_whole(norm: ops.Norm, add: ops.Add) -> bool:
    return norm.x == add.out and norm.heads == 1


def add_norm(e: Emitter, add: ops.Add, norm: ops.Norm) -> Call:
    k, weight, bias = e.kernels, e.loader.vector(norm.weight), e.loader.vector(norm.bias)

    def run(f: Frame) -> None:
        k.add_norm(
            f.at(add.x), f.at(add.y), weight, bias, norm.eps, norm.center, f.at(add.out), f.at(norm.out)
        )

    return Call((add.out.id, norm.out.id), run)


@dataclass(frozen=True)
class Chain:
    """How a q or k comes about: an optional norm by heads and an optional rope of `source`."""

    source: Value
    norm: ops.Norm | None
    rope: ops.Rope | None

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(op.out.id for op in (self.norm, self.rope) if op)


def chain(e: Emitter, v: Value, heads: int, made: Mapping[int, Op]) -> Chain:
    """The norm and rope of this group that lead to v, as far as nobody else reads what is between."""
    rope = norm = None
    op = made.get(v.id)
    if isinstance(op, ops.Rope) and op.heads == heads and e.readers[v.id] == 1:
        rope, v = op, op.x
        op = made.get(v.id)
    plain = isinstance(op, ops.Norm) and op.heads == heads and op.weight and not op.bias and not op.center
    if isinstance(op, ops.Norm) and plain and e.readers[v.id] == 1:
        norm, v = op, op.x
    return Chain(v, norm, rope)


def attend_group(e: Emitter, op: ops.Attend, made: Mapping[int, Op]) -> Call | None:
    """Norms, ropes, the write to the cache and the attention over it as two kernels; None where they do not
    fit.
    """
    if op.cache is None:
        return None
    q, k = chain(e, op.q, op.heads, made), chain(e, op.k, op.kv_heads, made)
    ropes = [c.rope and (c.rope.inverse_frequencies, c.rope.magnitude) for c in (q, k)]
    eps = {c.norm.eps for c in (q, k) if c.norm}
    if not (q.ids and k.ids) or ropes[0] != ropes[1] or len(eps) > 1:
        return None
    table = e.rope(q.rope) if q.rope else None
    q_norm, k_norm = (e.loader.vector(c.norm.weight if c.norm else None) for c in (q, k))
    kernels, cache, told = e.kernels, e.states.paged[op.cache.name], attention(e, op)

    def run(f: Frame) -> None:
        turned, fresh = f.at(op.q), f.step.fresh
        keys = f.at(op.k) if fresh else None
        kernels.attend_inputs(
            f.at(q.source), f.at(k.source), f.at(op.v), q_norm, k_norm, next(iter(eps), 0.0), table,
            op.heads, op.kv_heads, f.step, cache, turned, keys,
        )  # fmt: skip
        if fresh:
            kernels.attend_fresh(turned, f.at(op.k), f.at(op.v), f.step, told, f.at(op.out))
        else:
            kernels.attend(turned, cache, f.step, told, f.at(op.out))

    return Call((*q.ids, *k.ids, op.out.id), run)


def attention(e: Emitter, op: ops.Attend) -> Attention:
    sinks = e.loader.vector(op.sinks)
    return Attention(op.heads, op.kv_heads, op.scale, op.window, op.causal, op.softcap, sinks)


# -- one op -------------------------------------------------------------------------------------


def embed(e: Emitter, op: ops.Embed) -> Run:
    k, table = e.kernels, e.loader.matrix(op.table)
    if op.by == "tokens":
        return lambda f: k.embed(table, f.step.tokens, f.at(op.out))
    return lambda f: k.embed(table, f.step.positions, f.at(op.out))


def norm(e: Emitter, op: ops.Norm) -> Run:
    k, weight, bias = e.kernels, e.loader.vector(op.weight), e.loader.vector(op.bias)
    return lambda f: k.norm(f.at(op.x), weight, bias, op.eps, op.heads, op.center, f.at(op.out))


def cat(e: Emitter, op: ops.Cat) -> Run:
    def run(f: Frame) -> None:
        out, at = f.at(op.out), 0
        for x in op.xs:
            e.kernels.copy(f.at(x), out[:, at : at + x.width])
            at += x.width

    return run


def rope(e: Emitter, op: ops.Rope) -> Run:
    k, table = e.kernels, e.rope(op)
    return lambda f: k.rope(f.at(op.x), table, f.step.positions, op.heads, f.at(op.out))


def attend(e: Emitter, op: ops.Attend) -> Run:
    k, told = e.kernels, attention(e, op)
    cache = e.states.paged[op.cache.name] if op.cache else None

    def run(f: Frame) -> None:
        q, keys, values, out = f.at(op.q), f.at(op.k), f.at(op.v), f.at(op.out)
        if cache is None:
            k.attend_fresh(q, keys, values, f.step, told, out)
            return
        k.store(keys, values, f.step, cache)
        if f.step.fresh:
            k.attend_fresh(q, keys, values, f.step, told, out)
        else:
            k.attend(q, cache, f.step, told, out)

    return run


def conv(e: Emitter, op: ops.Conv) -> Run:
    k, weight, past = e.kernels, e.loader.vector(op.weight), e.states.slots[op.past.name]
    assert weight is not None
    return lambda f: k.conv(f.at(op.x), weight, f.step, past, f.at(op.out))


def decay(e: Emitter, op: ops.Decay) -> Run:
    k, a, bias = e.kernels, e.loader.vector(op.a), e.loader.vector(op.bias)
    assert a is not None and bias is not None
    return lambda f: k.decay(f.at(op.x), a, bias, f.at(op.out))


def delta(e: Emitter, op: ops.Delta) -> Run:
    k, memory = e.kernels, e.states.slots[op.memory.name]
    memory = memory.view(len(memory), op.v_heads, op.v_dim, op.k_dim)

    def run(f: Frame) -> None:
        q, keys, v, g, beta = (f.at(x) for x in (op.q, op.k, op.v, op.decay, op.beta))
        k.delta(q, keys, v, g, beta, f.step, memory, op.k_heads, op.v_heads, f.at(op.out))

    return run


def experts(e: Emitter, op: ops.Experts) -> Run:
    k, load = e.kernels, e.loader
    gate_up = load.stack([op.gate, op.up])
    biases = [load.vector(w) for w in (op.gate_bias, op.up_bias)]
    bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None], 1)
    of = ExpertsOf(
        gate_up, load.matrix(op.down), bias, load.vector(op.down_bias), op.k, op.route, op.fn, op.limit
    )
    return lambda f: k.experts(f.at(op.x), f.at(op.scores), of, f.at(op.out))


def _columns(e: Emitter, op: ops.Columns) -> Run:
    return lambda f: e.kernels.copy(f.at(op.x)[:, op.start : op.stop], f.at(op.out))


EMIT: dict[type[Op], Callable[[Emitter, Any], Run]] = {
    ops.Embed: embed,
    ops.Take: lambda e, op: lambda f: e.kernels.take(f.at(op.x), f.step.logit_rows, f.at(op.out)),
    ops.Pool: lambda e, op: lambda f: e.kernels.pool(f.at(op.x), f.step, op.how, f.at(op.out)),
    ops.Add: lambda e, op: lambda f: e.kernels.add(f.at(op.x), f.at(op.y), f.at(op.out)),
    ops.Mul: lambda e, op: lambda f: e.kernels.mul(f.at(op.x), f.at(op.y), f.at(op.out)),
    ops.Scale: lambda e, op: lambda f: e.kernels.scale(f.at(op.x), op.by, f.at(op.out)),
    ops.Softcap: lambda e, op: lambda f: e.kernels.softcap(f.at(op.x), op.cap, f.at(op.out)),
    ops.Act: lambda e, op: lambda f: e.kernels.act(f.at(op.x), op.fn, f.at(op.out)),
    ops.Glu: lambda e, op: lambda f: e.kernels.glu(f.at(op.gate), f.at(op.up), op.fn, op.limit, f.at(op.out)),
    ops.Columns: _columns,  # as the plan's output
    ops.Cat: cat,
    ops.Norm: norm,
    ops.L2Norm: lambda e, op: lambda f: e.kernels.l2norm(f.at(op.x), op.heads, op.eps, f.at(op.out)),
    ops.Rope: rope,
    ops.Attend: attend,
    ops.Conv: conv,
    ops.Decay: decay,
    ops.Delta: delta,
    ops.Experts: experts,
}  # fmt: skip
