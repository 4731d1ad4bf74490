"""Plan -> what a backend needs to run it: where each value lives."""

from __future__ import annotations

from dataclasses import dataclass

from kvasir.plan import ops
from kvasir.plan.plan import Plan

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


def layout(plan: Plan) -> Layout:
    """Packs the values of a plan into three arenas, reusing room once its last reader ran.

    `Columns` costs nothing: it is its input seen from another column (except as the plan's output).  An op
    never writes over what it reads.
    """
    assert plan.output is not None, f"{plan.name} has no output"
    last = _last_readers(plan)
    rooms = [_Room() for _ in ROWS]
    places: dict[int, Place] = {}
    own: dict[int, int] = {}  # values with room of their own -> its floats
    for i, op in enumerate(plan.ops):
        v = op.out
        if v.id == plan.output.id:
            places[v.id] = Place(OUTPUT, 0, 0, v.width, v.width)
        elif isinstance(op, ops.Columns) and places[op.x.id].base != OUTPUT:
            at = places[op.x.id]
            places[v.id] = Place(at.base, at.offset, at.column + op.start, at.stride, v.width)
        else:
            own[v.id] = -(-v.width // ALIGN) * ALIGN
            base = ROWS.index(v.rows)
            places[v.id] = Place(base, rooms[base].take(own[v.id]), 0, v.width, v.width)
        for ended in [id for id in own if last[id] == i]:
            rooms[places[ended].base].give(places[ended].offset, own.pop(ended))
    return Layout(places, (rooms[0].top, rooms[1].top, rooms[2].top))


def _last_readers(plan: Plan) -> dict[int, int]:
    """For each value the index of the last op that needs its room: its readers and those of its columns."""
    last = {op.out.id: i for i, op in enumerate(plan.ops)}
    for i, op in enumerate(plan.ops):
        for v in op.inputs:
            last[v.id] = i
    for op in reversed(plan.ops):
        if isinstance(op, ops.Columns):
            last[op.x.id] = max(last[op.x.id], last[op.out.id])
    return last


def slots(plan: Plan) -> dict[int, int]:
    """A buffer number for each value that products read: two share one only if the first is read no more."""
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(plan.ops):
        if isinstance(op, ops.Linear):
            readers.setdefault(op.x.id, []).append(i)
    busy_until: list[int] = []
    chosen: dict[int, int] = {}
    for id, at in sorted(readers.items(), key=lambda item: item[1][0]):
        free = next((n for n, end in enumerate(busy_until) if end < at[0]), len(busy_until))
        busy_until[free : free + 1] = [at[-1]]
        chosen[id] = free
    return chosen


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
