"""Stretches of a plan that the CPU runs: plans of their own, whose inputs are handed over from the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from kvasir.backends.base import Backend, Batch, Floats, Memory, Program
from kvasir.backends.cuda.frame import Frame
from kvasir.backends.cuda.place import Stretch, live_in, live_out
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CapacityError
from kvasir.plan import Op, Plan, Value, ops
from kvasir.quant.formats import FORMATS

MOST_ROWS = 8192  # of one step


@dataclass(frozen=True)
class Sub:
    """A stretch as a plan: `inputs` are values of the whole plan, by the tables that stand for them."""

    plan: Plan
    inputs: Mapping[int, str]
    output: int


def sub_plan(plan: Plan, stretch: Stretch) -> Sub:
    """The ops of a stretch with new numbers.  What they read from before is looked up by row in tables."""
    made = Plan(f"{plan.name} {stretch.first}-{stretch.last}", context=plan.context)
    moved, inputs = dict[int, Value](), dict[int, str]()
    for id in live_in(plan, stretch.first, stretch.last):
        inputs[id] = f"handed.{id}"
        moved[id] = made.embed(inputs[id], MOST_ROWS, plan.ops[id].out.width)
    for op in plan.ops[stretch.first : stretch.last + 1]:
        moved[op.out.id] = made.append(_renumbered(op, moved, len(made.ops)))
        made.weights |= {w.name: w for w in op.weights}
        made.states |= {s.name: s for s in op.states}
    (out,) = live_out(plan, stretch.first, stretch.last)
    made.output = moved[out]
    return Sub(made, inputs, out)


def _renumbered(op: Op, moved: Mapping[int, Value], number: int) -> Op:
    changes: dict[str, Any] = {"out": replace(op.out, id=number)}
    for f in fields(op):
        item = getattr(op, f.name)
        if f.name != "out" and isinstance(item, Value):
            changes[f.name] = moved[item.id]
        elif isinstance(op, ops.Cat) and f.name == "xs":
            changes[f.name] = tuple(moved[v.id] for v in op.xs)
    return replace(op, **changes)


@dataclass
class OnCpu:
    """A stretch compiled for the CPU.  Mutable: `tables` hold what was handed over last."""

    stretch: Stretch
    sub: Sub
    program: Program
    tables: Mapping[int, Floats]
    values: Mapping[int, Value] = field(default_factory=dict)

    def run(self, f: Frame) -> None:
        """Waits for what it reads, computes, and hands the result back."""
        batch = f.step.host
        assert batch is not None, "a step with a part on the CPU is not captured"
        n = len(batch.tokens)
        if n > MOST_ROWS:
            raise CapacityError(
                f"a step of {n} rows is too long for a model that is partly on the CPU: {MOST_ROWS} at most",
                hint="send shorter texts, or make room on the GPU for the whole model",
            )
        for id, table in self.tables.items():
            table[:n] = f.at(self.values[id]).float().cpu().numpy()
        own = Batch(np.arange(n, dtype=np.int32), batch.positions, batch.starts, batch.blocks, batch.slots,
                    batch.logit_rows, batch.adapters)  # fmt: skip
        f.at(self.values[self.sub.output]).copy_(torch.from_numpy(self.program.step(own)))


def on_cpu(
    plan: Plan, stretch: Stretch, backend: Backend, weights: Mapping[str, Tensor], memory: Memory
) -> OnCpu:
    """A stretch of the plan ready to run on the CPU."""
    sub = sub_plan(plan, stretch)
    tables = {id: np.zeros((MOST_ROWS, plan.ops[id].out.width), np.float32) for id in sub.inputs}
    handed = {
        name: Tensor(name, FORMATS["F32"], tables[id].shape, tables[id].view(np.uint8))
        for id, name in sub.inputs.items()
    }
    values = {id: plan.ops[id].out for id in (*sub.inputs, sub.output)}
    return OnCpu(stretch, sub, backend.compile(sub.plan, {**weights, **handed}, memory), tables, values)
