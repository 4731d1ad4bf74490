"""Plan -> what a backend needs to run it: which ops run as one, and where each value lives."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Literal

from kvasir.plan import ops
from kvasir.plan.ops import Op, Value
from kvasir.plan.plan import Plan
from kvasir.records import dataclass

ROWS = ("T", "R", "N")  # an arena for each kind of rows: logits of R rows must not cost T rows of memory
OUTPUT = len(ROWS)  # the base of the plan's output: memory that the caller of a step hands in
ALIGN = 16  # floats: a value begins on a cache line


@dataclass(frozen=True)
class Place:
    """Row r of a value begins `offset * rows + r * stride + column` floats into the arena `base`."""

    base: int
    offset: int
    column: int
    stride: int
    width: int


@dataclass(frozen=True)
class Layout:
    """A place for every value, and the floats a row that each of the three arenas needs."""

    places: dict[int, Place]
    widths: tuple[int, int, int]


def layout(plan: Plan, groups: Sequence[Group] = (), beside: Sequence[tuple[int, ...]] = ()) -> Layout:
    """Packs the values of a plan into three arenas, reusing room once its last reader ran.

    `Columns` costs nothing: it is its input seen from another column (except as the plan's output).  A group
    of ops (default: each op is one) never writes over what it reads, or over what it writes.  `beside`: ids
    of values of one group that are to lie side by side, as columns of one matrix.
    """
    assert plan.output is not None, f"{plan.name} has no output"
    steps = groups or [Group((i,)) for i in range(len(plan.ops))]
    last = _last_readers(plan, steps)
    joined = {id: ids for ids in beside for id in ids}
    for ids in beside:
        last[ids[0]] = max(last[id] for id in ids)
    rooms = [_Room() for _ in ROWS]
    places: dict[int, Place] = {}
    own: dict[int, int] = {}  # values with room of their own -> its floats
    for n, group in enumerate(steps):
        for i in group.ops:
            op, v = plan.ops[i], plan.ops[i].out
            if v.id == plan.output.id:
                places[v.id] = Place(OUTPUT, 0, 0, v.width, v.width)
            elif isinstance(op, ops.Columns) and places[op.x.id].base != OUTPUT:
                at = places[op.x.id]
                places[v.id] = Place(at.base, at.offset, at.column + op.start, at.stride, v.width)
            elif v.id in joined:
                if v.id not in places:
                    places |= _side_by_side([plan.ops[id].out for id in joined[v.id]], rooms, own)
            else:
                own[v.id] = -(-v.width // ALIGN) * ALIGN
                base = ROWS.index(v.rows)
                places[v.id] = Place(base, rooms[base].take(own[v.id]), 0, v.width, v.width)
        for ended in [id for id in own if last[id] == n]:
            rooms[places[ended].base].give(places[ended].offset, own.pop(ended))
    return Layout(places, (rooms[0].top, rooms[1].top, rooms[2].top))


def _side_by_side(values: Sequence[Value], rooms: Sequence[_Room], own: dict[int, int]) -> dict[int, Place]:
    """Places in one area, whose room stands in `own` under the first value."""
    base, width = ROWS.index(values[0].rows), sum(v.width for v in values)
    own[values[0].id] = -(-width // ALIGN) * ALIGN
    offset, column = rooms[base].take(own[values[0].id]), 0
    found = dict[int, Place]()
    for v in values:
        found[v.id] = Place(base, offset, column, width, v.width)
        column += v.width
    return found


def _places_in(groups: Sequence[Group]) -> dict[int, int]:
    """For each op the number of its group."""
    return {i: n for n, group in enumerate(groups) for i in group.ops}


def _last_readers(plan: Plan, groups: Sequence[Group]) -> dict[int, int]:
    """For each value the last group that needs its room: its readers and those of its columns."""
    group_of = _places_in(groups)
    last = {op.out.id: group_of[i] for i, op in enumerate(plan.ops)}
    for i, op in enumerate(plan.ops):
        for v in op.inputs:
            last[v.id] = max(last[v.id], group_of[i])
    for op in reversed(plan.ops):
        if isinstance(op, ops.Columns):
            last[op.x.id] = max(last[op.x.id], last[op.out.id])
    return last


def slots(plan: Plan, groups: Sequence[Group]) -> dict[int, int]:
    """A buffer number for each value that products read: two share one only if the first is read no more.

    A value is prepared by the group that writes it, or by whatever comes just before its first reader.
    """
    group_of = _places_in(groups)
    written = {op.out.id: group_of[i] for i, op in enumerate(plan.ops)}
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(plan.ops):
        if isinstance(op, ops.Linear):
            readers.setdefault(op.x.id, []).append(group_of[i])
    busy_until: list[int] = []
    chosen: dict[int, int] = {}
    for id in sorted(readers, key=lambda id: written[id]):
        free = next((n for n, end in enumerate(busy_until) if end < written[id]), len(busy_until))
        busy_until[free : free + 1] = [max(readers[id])]
        chosen[id] = free
    return chosen


# -- adapters -------------------------------------------------------------------------------------


def adapt(plan: Plan) -> Plan:
    """The plan with room for adapters: each product adds what the adapter of a row's sequence says."""
    made = [replace(op, adapted=True) if isinstance(op, ops.Linear) else op for op in plan.ops]
    return replace(plan, ops=made)


# -- fusion ---------------------------------------------------------------------------------------

# What these give in a row depends on that row of what they read, and on the batch.  Take and Pool read rows
# of another kind, which were written before.
BY_ROWS = (
    ops.Embed, ops.Take, ops.Pool, ops.Add, ops.Mul, ops.Scale, ops.Softcap, ops.Act, ops.Glu, ops.Cat,
    ops.Norm, ops.L2Norm, ops.Rope, ops.Decay,
)  # fmt: skip
BEGIN_BY_ROWS = (ops.Attend, ops.Experts)  # they look at rows one by one first, and then at more


MOST = 100  # ops a group: far more than a layer has
Kind = Literal["op", "rows", "products", "gated"]


@dataclass(frozen=True)
class Group:
    """Ops that a backend runs as one, by their numbers in the plan.

    `op`: one op.  `rows`: ops that look at rows one by one; the last may begin so and go on by itself.
    `products`: matrices that share their input.  `gated`: gate, up, and the glu of both.
    """

    ops: tuple[int, ...]
    kind: Kind = "op"


def fuse(plan: Plan, alone: Container[type[Op]] = ()) -> list[Group]:
    """All ops of a plan in groups that run as one, each after what it reads; kinds in `alone` by themselves.

    `Columns` in the middle of a group belong to it; they are views and never run.
    """
    groups: list[Group] = []
    order, at = _siblings_together(plan), 0
    while at < len(order):
        left = [plan.ops[i] for i in order[at : at + MOST]]
        count, kind = _products(plan, left, alone) or _rows(plan, left, alone) or (1, "op")
        groups.append(Group(tuple(order[at : at + count]), kind))
        at += count
    return groups


def _siblings_together(plan: Plan) -> list[int]:
    """The plan's order, but a product comes right after an earlier one of the same input.

    Not so the two that a glu joins: they are a group with it.
    """
    made = {op.out.id: op for op in plan.ops}
    paired = set[int]()
    for op in plan.ops:
        if isinstance(op, ops.Glu):
            gate, up = made[op.gate.id], made[op.up.id]
            if isinstance(gate, ops.Linear) and isinstance(up, ops.Linear) and gate.x == up.x:
                paired |= {op.gate.id, op.up.id}
    runs: list[list[int]] = []  # of products, and of what stands between them
    open_runs: dict[int, list[int]] = {}
    for i, op in enumerate(plan.ops):
        if isinstance(op, ops.Linear) and op.out.id not in paired:
            if op.x.id not in open_runs:
                runs.append(open_runs.setdefault(op.x.id, []))
            open_runs[op.x.id].append(i)
        else:
            runs.append([i])
    return [i for run in runs for i in run]


def _products(plan: Plan, left: Sequence[Op], alone: Container[type[Op]]) -> tuple[int, Kind] | None:
    """How many products come first that read the same value; with the glu that joins two of them."""
    first, count = left[0], 0
    if not isinstance(first, ops.Linear) or ops.Linear in alone:
        return None
    while count < len(left) and isinstance(op := left[count], ops.Linear) and op.x == first.x:
        count += 1
    glu = left[count] if count < len(left) else first
    if count < 2 or not isinstance(glu, ops.Glu) or ops.Glu in alone or glu.out == plan.output:
        return count, "products"
    if (glu.gate, glu.up) != (left[count - 2].out, left[count - 1].out):
        return count, "products"
    return (3, "gated") if count == 2 else (count - 2, "products")


def _rows(plan: Plan, left: Sequence[Op], alone: Container[type[Op]]) -> tuple[int, Kind] | None:
    """How many ops by rows come first, over one kind of rows."""
    count = 0
    for op in left:
        view = isinstance(op, ops.Columns) and op.out != plan.output and count > 0
        if op.out.rows != left[0].out.rows or (type(op) in alone and not view):
            break
        if not view and not isinstance(op, BY_ROWS):
            count += isinstance(op, BEGIN_BY_ROWS)
            break
        count += 1
    return (count, "rows") if count else None


class _Room:
    """Free stretches of one arena, best fit first, neighbours joined.  Mutable."""

    def __init__(self) -> None:
        self.top = 0
        self.free: dict[int, int] = {}  # offset -> floats

    def take(self, size: int) -> int:
        fits = [(room, at) for at, room in self.free.items() if room >= size]
        if not fits:
            self.top += size
            return self.top - size
        room, at = min(fits)
        del self.free[at]
        if room > size:
            self.free[at + size] = room - size
        return at

    def give(self, at: int, size: int) -> None:
        for begin, room in list(self.free.items()):
            if begin + room == at:
                del self.free[begin]
                at, size = begin, size + room
            elif at + size == begin:
                del self.free[begin]
                size += room
        self.free[at] = size
