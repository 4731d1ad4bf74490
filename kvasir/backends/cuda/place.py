"""What of a model goes to the GPU and what stays with the CPU, by what each costs a token there.

A unit is a layer, or the experts of one.  The CPU takes the units that cost the least time for each byte that
they free, until the rest fits.  Experts usually go first: they hold most bytes and a token reads few of them.
No torch here: sizes and speeds in, a choice and its reason out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvasir.errors import CapacityError
from kvasir.plan import Op, Plan, ops

GB = 1e9
HOP_S = 40e-6  # to hand a row over to the other side and back, without its bytes


@dataclass(frozen=True)
class Speeds:
    """Bytes a second, measured when the model is loaded."""

    gpu: float  # reading its memory
    cpu: float  # reading the machine's
    link: float  # between both


@dataclass(frozen=True)
class Unit:
    """Ops of one layer that can run elsewhere.

    weight_bytes on the device; read_bytes: those that one token reads; state_bytes: its share of the KV cache
    and of slots; width: floats that go over and come back for a token.  `within`: the layer, for its experts.
    """

    name: str
    first: int  # op numbers, first to last
    last: int
    weight_bytes: int
    read_bytes: int
    state_bytes: int
    width: int
    within: str = ""

    @property
    def n_bytes(self) -> int:
        return self.weight_bytes + self.state_bytes

    def slower_s(self, speeds: Speeds) -> float:
        """Seconds that a token takes longer if the CPU has this unit."""
        there = self.read_bytes / speeds.cpu + HOP_S + self.width * 4 / speeds.link
        return max(there - self.read_bytes / speeds.gpu, 0.0)


@dataclass(frozen=True)
class Placement:
    """`on_cpu`: units that the CPU has, in the order of their ops.  Shares are of bytes."""

    on_cpu: tuple[Unit, ...]
    gpu_bytes: int
    cpu_bytes: int
    slower_s: float
    reason: str

    @property
    def share(self) -> str:
        """As `kvasir ps` shows it: 48%/52% CPU/GPU."""
        if not self.on_cpu:
            return "100% GPU"
        if not self.gpu_bytes:
            return "100% CPU"
        percent = round(100 * self.cpu_bytes / (self.cpu_bytes + self.gpu_bytes))
        percent = min(max(percent, 1), 99)
        return f"{percent}%/{100 - percent}% CPU/GPU"


def place(units: Sequence[Unit], fixed_bytes: int, room_bytes: int, speeds: Speeds) -> Placement:
    """Which units the CPU must have so that the others fit with what is fixed (embeddings, head, buffers).

    Raises CapacityError, with what is needed, what there is and what would fit, where nothing helps.
    """
    layers = [u for u in units if not u.within]
    total = fixed_bytes + sum(u.n_bytes for u in layers)
    if total <= room_bytes:
        return Placement((), total, 0, 0.0, f"all {total / GB:.1f} GB fit in {room_bytes / GB:.1f} GB")
    if fixed_bytes > room_bytes:
        raise CapacityError(
            f"the GPU needs {fixed_bytes / GB:.1f} GB for the embeddings, the head and buffers alone, and "
            f"has {room_bytes / GB:.1f} GB free (the whole model: {total / GB:.1f} GB)",
            hint="end other programs on the GPU, shrink the KV cache (KVASIR_CACHE_GB, num_ctx), or use the "
            "CPU (KVASIR_BACKEND=cpu)",
        )
    need = total - room_bytes
    chosen = _choose(units, need, speeds)
    on_cpu = tuple(sorted(chosen, key=lambda u: u.first))
    moved, slower = sum(u.n_bytes for u in on_cpu), sum(u.slower_s(speeds) for u in on_cpu)
    n_experts = sum(bool(u.within) for u in on_cpu)
    what = [f"the experts of {n_experts} layers"] * bool(n_experts)
    what += [f"{len(on_cpu) - n_experts} of {len(layers)} layers"] * (len(on_cpu) > n_experts)
    reason = (
        f"{total / GB:.1f} GB are needed and {room_bytes / GB:.1f} GB are free on the GPU: "
        f"{' and '.join(what)} ({moved / GB:.1f} GB) run on the CPU, which takes {slower * 1e3:.1f} ms a "
        f"token longer (GPU {speeds.gpu / GB:.0f}, CPU {speeds.cpu / GB:.0f}, link {speeds.link / GB:.0f} "
        "GB/s)"
    )
    return Placement(on_cpu, total - moved, moved, slower, reason)


def _choose(units: Sequence[Unit], need: int, speeds: Speeds) -> list[Unit]:
    """Units that free `need` bytes: those that cost least a byte, and last whatever then does it cheapest."""
    order = sorted(units, key=lambda u: (u.slower_s(speeds) / max(u.n_bytes, 1), u.first))
    best: list[Unit] | None = None
    chosen: dict[str, Unit] = {}

    def freed(units: dict[str, Unit]) -> int:
        return sum(u.n_bytes for u in units.values())

    for unit in order:
        left = need - freed(chosen)
        ends = [_with(chosen, u) for u in units if u.n_bytes >= left > 0 and u.within not in chosen]
        for end in [*ends, *([chosen] if left <= 0 else [])]:
            cost = sum(u.slower_s(speeds) for u in end.values())
            if freed(end) >= need and (best is None or cost < sum(u.slower_s(speeds) for u in best)):
                best = list(end.values())
        if left <= 0:
            break
        if unit.within not in chosen:
            chosen = _with(chosen, unit)
    return best or list(chosen.values())


def _with(chosen: dict[str, Unit], unit: Unit) -> dict[str, Unit]:
    """With one more; a whole layer takes its experts along."""
    kept = {n: u for n, u in chosen.items() if unit.within or u.within != unit.name}
    return {**kept, unit.name: unit}


def units_of(
    plan: Plan, weight_bytes: dict[str, int], block_bytes: dict[str, int], n_blocks: int
) -> list[Unit]:
    """The layers of a plan, and the experts of each, that hand over one value to what comes after them.

    weight_bytes: by weight, on the device; block_bytes: by state, those of a block (or all of a slot state).
    """
    found, layers = list[Unit](), dict[str, list[int]]()
    for i, op in enumerate(plan.ops):
        if op.scope:
            layers.setdefault(op.scope, []).append(i)
    for scope, numbers in layers.items():
        first, last = numbers[0], numbers[-1]
        by_tokens = all(plan.ops[i].out.rows == "T" for i in (*live_in(plan, first, last), *numbers))
        if by_tokens and numbers == list(range(first, last + 1)) and len(live_out(plan, first, last)) == 1:
            found.append(_unit(plan, scope, first, last, weight_bytes, block_bytes, n_blocks))
            found += [
                _unit(plan, f"{scope}experts", i, i, weight_bytes, block_bytes, n_blocks, scope)
                for i in numbers
                if isinstance(plan.ops[i], ops.Experts)
            ]
    return found


def live_in(plan: Plan, first: int, last: int) -> list[int]:
    """Values from before that the ops read."""
    return sorted({v.id for op in plan.ops[first : last + 1] for v in op.inputs if v.id < first})


def live_out(plan: Plan, first: int, last: int) -> list[int]:
    """Values of these ops that others read, or that are the plan's output."""
    read = {v.id for op in plan.ops[last + 1 :] for v in op.inputs}
    assert plan.output is not None
    return [i for i in range(first, last + 1) if i in read or i == plan.output.id]


def _unit(
    plan: Plan, name: str, first: int, last: int, weight_bytes: dict[str, int], block_bytes: dict[str, int],
    n_blocks: int, within: str = "",
) -> Unit:  # fmt: skip
    own = plan.ops[first : last + 1]
    held = sum(weight_bytes[w.name] for op in own for w in op.weights)
    states = {s.name: s for op in own for s in op.states}
    kept = sum(block_bytes[s] * (n_blocks if states[s].kind == "paged" else 1) for s in states)
    width = sum(plan.ops[i].out.width for i in live_in(plan, first, last)) + plan.ops[last].out.width
    return Unit(name, first, last, held, sum(_read(op, weight_bytes) for op in own), kept, width, within)


def _read(op: Op, weight_bytes: dict[str, int]) -> int:
    """Bytes of weights that one token reads."""
    whole = sum(weight_bytes[w.name] for w in op.weights)
    return whole * op.k // op.gate.shape[0] if isinstance(op, ops.Experts) else whole


Where = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Stretch:
    """Ops first..last of a plan, in one place."""

    where: Where
    first: int
    last: int


def stretches(plan: Plan, on_cpu: Sequence[Unit]) -> list[Stretch]:
    """The plan cut into stretches, neighbouring units of the CPU joined where they hand over one value."""
    found, at = list[Stretch](), 0
    for unit in on_cpu:
        if unit.first > at:
            found.append(Stretch("gpu", at, unit.first - 1))
        before = found[-1] if found else None
        if before and before.where == "cpu" and len(live_out(plan, before.first, unit.last)) == 1:
            found[-1] = Stretch("cpu", before.first, unit.last)
        else:
            found.append(Stretch("cpu", unit.first, unit.last))
        at = unit.last + 1
    if at < len(plan.ops):
        found.append(Stretch("gpu", at, len(plan.ops) - 1))
    return found
