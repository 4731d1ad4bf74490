"""Hands a plan to the C++ extension, op by op: weights repacked, states reserved, values placed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

import numpy as np

from kvasir.backends import reference
from kvasir.backends.base import BLOCK, Adapter, Batch, Bytes, Floats, Memory
from kvasir.backends.packed import Packed
from kvasir.checkpoint.files import give_back, is_mapped
from kvasir.checkpoint.tensor import Tensor
from kvasir.plan import Op, Plan, State, Value, Weight, ops
from kvasir.plan.passes import BEGIN_BY_ROWS, Group, Layout, fuse, layout, slots
from kvasir.records import dataclass

LANES = 8  # floats a vector: the width of a delta memory's rows is rounded up to it


@dataclass
class Seat:
    """Where the ops that run as their reference find the batch of this step, and the adapters.  Mutable."""

    batch: Batch | None = None
    adapters: dict[int, Adapter] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What `build` made.  `emitted`: number of a plan's op -> number of the native op that completes it.
    `adapted`: by weight, the table of what adapters add to its product.  `again` makes the native program
    once more, over the same weights and states: a step of one may rest while the other runs.
    """

    native: Any
    values: Mapping[int, Any]
    emitted: Mapping[int, int]
    referenced: frozenset[str]
    seat: Seat
    states: Mapping[str, Any]
    adapted: Mapping[str, Any]
    again: Callable[[], Any] = field(repr=False)


@dataclass
class Emitter:
    """What the functions below share while a plan is handed over.  Mutable."""

    kernels: Any
    pool: Any
    plan: Plan
    weights: Mapping[str, Tensor]
    memory: Memory
    native: Any
    placed: Layout
    values: dict[int, Any]
    slots: dict[int, int]
    alone: frozenset[type[Op]]  # kinds that run as their reference
    packed: Packed | None = None
    states: dict[str, Any] = field(default_factory=dict)
    seat: Seat = field(default_factory=Seat)
    adapted: dict[str, Any] = field(default_factory=dict)  # weight -> what adapters add to its product
    met: set[str] = field(default_factory=set)  # weights whose products are emitted, of those adapters add to
    made: dict[str, list[Any]] = field(default_factory=dict)  # weight -> its matrices
    read: list[Bytes] = field(default_factory=list)  # mapped bytes that were packed
    readers: dict[int, list[Weight]] = field(default_factory=dict)  # value -> what it meets in products

    def __post_init__(self) -> None:
        for op in self.plan.ops:
            if isinstance(op, ops.Linear):
                self.readers.setdefault(op.x.id, []).append(op.weight)

    def at(self, v: Value) -> Any:
        return self.values[v.id]

    def floats(self, w: Weight | None) -> Floats | None:
        """A small weight as one flat float32 array of its own, or None."""
        return None if w is None else np.array(self.weights[w.name].floats(), np.float32).ravel()

    def is_view(self, op: Op) -> bool:
        return isinstance(op, ops.Columns) and op.out != self.plan.output

    def formats(self, v: Value) -> list[str]:
        """Number formats of the matrices that the value meets in products."""
        if ops.Linear in self.alone:
            return []
        return [self.matrices(w)[0].format for w in self.readers.get(v.id, [])]

    def prepare(self, v: Value) -> None:
        """Readies the value's rows for the products that read it, if any do and nobody has."""
        for name in self.formats(v):
            self.native.prepare(self.at(v), name, self.slots[v.id])

    def matrices(self, w: Weight, count: int = 1) -> list[Any]:
        """The weight as its kernel reads it; `count` matrices of a stack of experts."""
        if w.name not in self.made:
            if self.packed is None:
                self.made[w.name] = self.pack(w, count)[1]
            else:
                self.made[w.name] = self.packed.matrices(
                    self.kernels, w.name, w.shape, count, lambda: self.pack(w, count)
                )
        return self.made[w.name]

    def pack(self, w: Weight, count: int) -> tuple[str, list[Any]]:
        """The weight's format, and the weight repacked by all threads."""
        t = self.weights[w.name]
        raw, form = np.ascontiguousarray(t.raw), t.format.name
        if is_mapped(raw):
            self.read.append(raw)
        return form, list(self.kernels.pack_stack(self.pool, form, raw, w.shape[-1], count, is_mapped(raw)))

    def tables(self, linears: list[Any]) -> list[Any]:
        """What adapters add to each product; none where they never do."""
        if not linears[0].adapted:
            return []
        for op in linears:
            assert op.weight.name not in self.met, f"{op.weight.name} is in two products"
            self.met.add(op.weight.name)
            if op.weight.name not in self.adapted:
                self.adapted[op.weight.name] = self.kernels.Adapted(*op.weight.shape)
        return [self.adapted[op.weight.name] for op in linears]

    def slot_state(self, s: State, width: int) -> Any:
        if s.name not in self.states:
            self.states[s.name] = self.kernels.Slots(n_slots=self.memory.n_slots, width=width)
        return self.states[s.name]


def build(
    kernels: Any, pool: Any, plan: Plan, weights: Mapping[str, Tensor], memory: Memory,
    as_reference: frozenset[type[Op]], packed: Packed | None = None,
) -> Compiled:  # fmt: skip
    """The plan as a native program.  Ops not in EMIT, and `as_reference`, run as their reference."""
    if packed and packed.path is None:
        packed.open(kernels)
    alone = as_reference | {type(op) for op in plan.ops if type(op) not in EMIT}
    groups = fuse(plan, alone)
    placed = layout(plan, groups)

    def program() -> Any:
        widths, rows = list(placed.widths), _output_rows(plan)
        return kernels.Program(pool=pool, widths=widths, output_rows=rows, limits=_limits(plan, memory))

    values, room = _values(kernels, placed), slots(plan, groups)
    e = Emitter(kernels, pool, plan, weights, memory, program(), placed, values, room, alone, packed)
    native, emitted = e.native, dict[int, int]()
    for group in groups:
        emitted |= emit(e, group)
    give_back(e.read)  # a fault maps the pages around it too: 40 MB of a model of 770
    if packed:
        packed.keep()

    def again() -> Any:
        e.native = program()
        e.met.clear()
        for group in groups:
            emit(e, group)
        return e.native

    referenced = frozenset(plan.ops[i].kind for i in emitted if type(plan.ops[i]) in alone)
    return Compiled(native, e.values, emitted, referenced, e.seat, e.states, e.adapted, again)


def emit(e: Emitter, group: Group) -> dict[int, int]:
    """Hands a group over.  Number of each op that runs -> number of the native op that completes it."""
    run = [i for i in group.ops if not e.is_view(e.plan.ops[i])]
    its_ops = [e.plan.ops[i] for i in run]
    match group.kind:
        case "rows":
            at = rows(e, its_ops)
        case "products":
            at = products(e, its_ops)
        case "gated":
            at = gated(e, its_ops)
        case "op":
            at = -1
            for op in its_ops:
                at = by_reference(e, op) if type(op) in e.alone else EMIT[type(op)](e, op)
    for i in group.ops:
        e.prepare(e.plan.ops[i].out)
    return dict.fromkeys(run, at)


def rows(e: Emitter, its_ops: list[Op]) -> int:
    """Ops by rows, and what readies their rows for products, as one."""
    e.native.open()
    for op in its_ops:
        EMIT[type(op)](e, op)
        if not isinstance(op, BEGIN_BY_ROWS):
            e.prepare(op.out)
    return int(e.native.close())


def products(e: Emitter, linears: list[Any]) -> int:
    matrices = [e.matrices(op.weight)[0] for op in linears]
    biases, outs = [e.floats(op.bias) for op in linears], [e.at(op.out) for op in linears]
    return int(e.native.products(e.at(linears[0].x), matrices, biases, outs, e.tables(linears)))


def gated(e: Emitter, its_ops: list[Any]) -> int:
    *pair, glu = its_ops
    matrices, biases = [e.matrices(op.weight)[0] for op in pair], [e.floats(op.bias) for op in pair]
    outs, slot = [e.at(op.out) for op in its_ops], e.slots.get(glu.out.id, 0)
    return int(e.native.gated(e.at(pair[0].x), matrices, biases, outs, glu.fn, glu.limit,
                              e.formats(glu.out), slot, e.tables(pair)))  # fmt: skip


def _values(kernels: Any, placed: Layout) -> dict[int, Any]:
    return {
        id: kernels.Value(id, p.base, p.offset, p.column, p.stride, p.width)
        for id, p in placed.places.items()
    }


def _output_rows(plan: Plan) -> int:
    assert plan.output is not None
    return ("T", "R", "N").index(plan.output.rows)


def _limits(plan: Plan, memory: Memory) -> list[int]:
    """n_blocks, n_slots, vocabulary, positions, paged?, slots?, window: what a batch is checked against."""
    windows = [op.window for op in plan.ops if isinstance(op, ops.Attend) and op.cache]
    kinds = {s.kind for s in plan.states.values()}
    vocabulary, positions = plan.table_rows("tokens"), plan.table_rows("positions")
    window = 0 if 0 in windows else max(windows, default=0)
    return [memory.n_blocks, memory.n_slots, vocabulary, positions, "paged" in kinds, "slot" in kinds, window]


def by_reference(e: Emitter, op: Op) -> int:
    """An op as a call back into Python, on views of the arena and states of its own."""
    weights = {w.name: e.weights[w.name].floats() for w in op.weights}
    states = {s.name: _reference_state(e, s) for s in op.states}
    seat = e.seat

    def run(inputs: list[Floats], out: Floats) -> None:
        assert seat.batch is not None
        values = {v.id: x for v, x in zip(op.inputs, inputs, strict=True)}
        context = reference.Context(seat.batch, states, e.memory.kv_format, seat.adapters)
        out[:] = reference.run(op, context, values, weights)

    return int(e.native.reference(run, [e.at(v) for v in op.inputs], e.at(op.out)))


def _reference_state(e: Emitter, s: State) -> Any:
    """A state in the reference's form: [cache rows or slots, width]."""
    if s.name not in e.states:
        paged = s.kind == "paged"
        rows = e.memory.n_blocks * BLOCK if paged else e.memory.n_slots
        kind = np.float16 if paged and e.memory.kv_format == "f16" else np.float32
        e.states[s.name] = np.zeros((rows, s.width), kind)
    return e.states[s.name]


def embed(e: Emitter, op: ops.Embed) -> int:
    t = e.weights[op.table.name]
    raw = np.ascontiguousarray(t.raw)  # stays as the file has it, mapped
    return int(e.native.embed(t.format.name, raw, op.table.shape[-1], op.by == "positions", e.at(op.out)))


def norm(e: Emitter, op: ops.Norm) -> int:
    weight, bias = e.floats(op.weight), e.floats(op.bias)
    return int(e.native.norm(e.at(op.x), weight, bias, op.eps, op.heads, op.center, e.at(op.out)))


def attend(e: Emitter, op: ops.Attend) -> int:
    cache = None
    if op.cache:
        cache = e.states.get(op.cache.name)
        if cache is None:
            form, n_blocks = e.memory.kv_format, e.memory.n_blocks
            cache = e.kernels.Cache(form, op.kv_heads, op.k.width, op.v.width, n_blocks)
            e.states[op.cache.name] = cache
    return int(
        e.native.attend(
            e.at(op.q), e.at(op.k), e.at(op.v), cache, (op.heads, op.kv_heads), op.scale, op.window,
            op.causal, op.softcap, e.floats(op.sinks), e.at(op.out),
        )
    )  # fmt: skip


def conv(e: Emitter, op: ops.Conv) -> int:
    taps = op.weight.shape[1]
    past = e.slot_state(op.past, op.x.width * (taps - 1))
    return int(e.native.conv(e.at(op.x), e.floats(op.weight), taps, past, e.at(op.out)))


def delta(e: Emitter, op: ops.Delta) -> int:
    stride = -(-op.v_dim // LANES) * LANES
    memory = e.slot_state(op.memory, op.v_heads * op.k_dim * stride)
    inputs = (e.at(v) for v in (op.q, op.k, op.v, op.decay, op.beta))
    return int(e.native.delta(*inputs, memory, op.k_heads, op.v_heads, e.at(op.out)))


def experts(e: Emitter, op: ops.Experts) -> int:
    stacks = [e.matrices(w, w.shape[0]) for w in (op.gate, op.up, op.down)]
    biases = [e.floats(w) for w in (op.gate_bias, op.up_bias, op.down_bias)]
    return int(
        e.native.experts(
            e.at(op.x), e.at(op.scores), *stacks, *biases, op.k, op.route, op.fn, op.limit, e.at(op.out)
        )
    )


EMIT: dict[type[Op], Callable[[Emitter, Any], int]] = {
    ops.Embed: embed,
    ops.Take: lambda e, op: int(e.native.take(e.at(op.x), e.at(op.out))),
    ops.Pool: lambda e, op: int(e.native.pool(e.at(op.x), op.how, e.at(op.out))),
    ops.Add: lambda e, op: int(e.native.add(e.at(op.x), e.at(op.y), e.at(op.out))),
    ops.Mul: lambda e, op: int(e.native.mul(e.at(op.x), e.at(op.y), e.at(op.out))),
    ops.Scale: lambda e, op: int(e.native.scale(e.at(op.x), op.by, e.at(op.out))),
    ops.Softcap: lambda e, op: int(e.native.softcap(e.at(op.x), op.cap, e.at(op.out))),
    ops.Act: lambda e, op: int(e.native.act(e.at(op.x), op.fn, e.at(op.out))),
    ops.Glu: lambda e, op: int(e.native.glu(e.at(op.gate), e.at(op.up), op.fn, op.limit, e.at(op.out))),
    ops.Columns: lambda e, op: int(e.native.cat([_part(e, op)], e.at(op.out))),  # as the plan's output
    ops.Cat: lambda e, op: int(e.native.cat([e.at(x) for x in op.xs], e.at(op.out))),
    ops.Linear: lambda e, op: products(e, [op]),
    ops.Norm: norm,
    ops.L2Norm: lambda e, op: int(e.native.l2norm(e.at(op.x), op.eps, op.heads, e.at(op.out))),
    ops.Rope: lambda e, op: int(
        e.native.rope(e.at(op.x), list(op.inverse_frequencies), op.magnitude, op.heads, e.at(op.out))
    ),
    ops.Attend: attend,
    ops.Conv: conv,
    ops.Decay: lambda e, op: int(e.native.decay(e.at(op.x), e.floats(op.a), e.floats(op.bias), e.at(op.out))),
    ops.Delta: delta,
    ops.Experts: experts,
}


def _part(e: Emitter, op: ops.Columns) -> Any:
    """A view of some columns of a value."""
    p = e.placed.places[op.x.id]
    return e.kernels.Value(op.out.id, p.base, p.offset, p.column + op.start, p.stride, op.out.width)
