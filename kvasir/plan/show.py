"""A plan for people: equal layers folded, what each op moves and computes for a token, and what that allows.

A token costs the bytes of every weight it needs (of experts: of those chosen), the bytes of its past, and
multiply-adds.  Elementwise work is not counted: it is small, and its data is in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import prod

from kvasir.plan import ops
from kvasir.plan.ops import Op
from kvasir.plan.plan import Plan, line
from kvasir.records import dataclass

KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # a number in the cache
SLOT_BYTES = 4  # a number in a recurrent state: float32


@dataclass(frozen=True)
class Cost:
    """What one token takes: bytes of weights and of its past (cache and recurrent state), multiply-adds."""

    weight_bytes: float = 0.0
    past_bytes: float = 0.0
    macs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        past_bytes = self.past_bytes + other.past_bytes
        return Cost(self.weight_bytes + other.weight_bytes, past_bytes, self.macs + other.macs)

    @property
    def n_bytes(self) -> float:
        return self.weight_bytes + self.past_bytes


def op_cost(op: Op, sizes: Mapping[str, int], past: int, kv: str = "f16") -> Cost:
    """The cost of `op` for a token with `past` tokens behind it; `sizes`: encoded bytes of each weight,
    `kv`: the format of the cache.
    """
    n_bytes, n_weights = sum(sizes[w.name] for w in op.weights), sum(prod(w.shape) for w in op.weights)
    match op:
        case ops.Embed():
            return Cost(n_bytes / op.table.shape[0])
        case ops.Linear():
            return Cost(n_bytes, 0, prod(op.weight.shape))
        case ops.Experts():
            share = op.k / op.scores.width
            return Cost(n_bytes * share, 0, n_weights * share)
        case ops.Attend():
            seen = min(past, op.window) if op.window else past
            width = op.cache.width if op.cache else 0
            return Cost(n_bytes, seen * width * KV_BYTES[kv], seen * (op.q.width + op.out.width))
        case ops.Conv():
            return Cost(n_bytes, 2 * op.past.width * SLOT_BYTES, n_weights)
        case ops.Delta():
            return Cost(0, 2 * op.memory.width * SLOT_BYTES, 3 * op.memory.width)
        case _:
            return Cost(n_bytes)


def plan_cost(plan: Plan, sizes: Mapping[str, int], past: int = 0, kv: str = "f16") -> Cost:
    """The cost of one token, computed by itself."""
    return sum((op_cost(op, sizes, past, kv) for op in plan.ops), Cost())


# -- folding --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Ops of one scope, and how many equal parts the plan has: layers 0, 1, 2 are one part of 3."""

    scope: str
    layers: tuple[int, ...]
    ops: tuple[Op, ...]


def shape_of(op: Op) -> tuple[object, ...]:
    """What makes ops of two layers equal: everything but the layer's number and where the values stand."""
    weights = tuple((w.name.removeprefix(op.scope), w.shape) for w in op.weights)
    states = tuple((s.name.removeprefix(op.scope), s.width, s.window) for s in op.states)
    inputs = tuple((op.out.id - v.id, v.width) for v in op.inputs)
    return op.kind, op.out.rows, op.out.width, inputs, weights, states, tuple(op.attrs.items())


def parts(plan: Plan) -> list[Part]:
    """The plan's scopes in order, equal layers as one part at the place of the first."""
    found: dict[object, Part] = {}
    for at, (scope, group) in enumerate(groupby(plan.ops, key=lambda op: op.scope)):
        members = tuple(group)
        key = tuple(shape_of(op) for op in members) if scope else at
        number = (int(scope.split(".")[1]),) if scope else ()
        first = found.get(key, Part(scope, (), members))
        found[key] = Part(first.scope, first.layers + number, first.ops)
    return list(found.values())


def ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 4 as "0-2, 4"."""
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in runs(numbers))


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [n for _, n in group]
        yield members[0], members[-1]


# -- printing -------------------------------------------------------------------------------------


def amount(x: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 4.10 G."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size * 0.9995:
            return f"{x / size:.3g} {prefix}{unit}"
    return f"{x:.3g} {unit}".rstrip()


def show(plan: Plan, sizes: Mapping[str, int], past: int = 0, kv: str = "f16") -> str:
    """The plan with equal layers folded; before each op its bytes and multiply-adds for a token."""
    lines = [f"{plan.name}: {len(plan.ops)} ops, {len(plan.weights)} weights, {len(plan.states)} states, "
             f"context {plan.context or 'unlimited'}", f"{'bytes':>10} {'mul-adds':>10}"]  # fmt: skip
    for part in parts(plan):
        if part.scope:
            times = f"{len(part.layers)} layers" if len(part.layers) > 1 else "layer"
            lines.append(f"-- {times}: {ranges(part.layers)}")
        else:
            lines.append("--")
        for op in part.ops:
            cost = op_cost(op, sizes, past, kv)
            text = line(op).replace(part.scope, "") if part.scope else line(op)
            told = (amount(n) if n else "" for n in (cost.n_bytes, cost.macs))
            lines.append(" ".join(f"{t:>10}" for t in told) + " " + text)
    return "\n".join(lines)


def rate(x: float) -> str:
    """Tokens a second, to three digits or whole."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def roofline(
    plan: Plan, sizes: Mapping[str, int], past: int, bytes_per_s: float, macs_per_s: float = 0,
    kv: str = "f16",
) -> str:  # fmt: skip
    """Where a token's bytes and multiply-adds go, by kind of op, and the most that this machine allows.

    `bytes_per_s`: measured memory bandwidth; `macs_per_s`: measured multiply-adds, 0 if nobody measured.
    """
    total, kinds = plan_cost(plan, sizes, past, kv), dict[str, Cost]()
    for op in plan.ops:
        kinds[op.kind] = kinds.get(op.kind, Cost()) + op_cost(op, sizes, past, kv)
    lines = [
        f"a token with {past} tokens of past",
        f"  {'op':<10}{'weights':>12}{'past':>12}{'mul-adds':>12}",
    ]
    for kind, c in [*sorted(kinds.items(), key=lambda k: -k[1].n_bytes), ("all", total)]:
        if c.n_bytes or c.macs:
            told = (amount(c.weight_bytes, "B"), amount(c.past_bytes, "B"), amount(c.macs))
            lines.append(f"  {kind:<10}" + "".join(f"{t:>12}" for t in told))
    if total.n_bytes:
        most = rate(bytes_per_s / total.n_bytes)
        lines.append(f"decoding alone: {amount(bytes_per_s, 'B/s')} allow {most} tokens a second")
    if macs_per_s and total.macs:
        most = rate(macs_per_s / total.macs)
        lines.append(f"prefill: {amount(macs_per_s)} multiply-adds a second allow {most} tokens a second")
    return "\n".join(lines)
