"""KVASIR_CHECK: every op of the CPU backend beside its reference, stopping at the first that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np

from kvasir.backends import reference
from kvasir.backends.base import Adapter, Batch, Bytes, Floats, Memory, Seen
from kvasir.backends.cpu import CpuBackend, CpuProgram
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import Bug
from kvasir.plan import Op, Plan, Value, Weight, ops
from kvasir.records import dataclass
from kvasir.sampling import SamplingParams

CLOSE = 1e-3  # greatest difference, relative to the greatest magnitude of the op's output
CLOSE_EXPERTS = 3e-2  # quantized experts round their inner activations to int8, which the reference does not
FLOAT_FORMATS = ("F32", "F16", "BF16")  # weights whose products read activations as they are


@dataclass
class CheckedProgram:
    """A CPU program that checks itself.  Mutable: holds both programs' states.  Slow: decodes every weight.

    Each op's reference gets the CPU's own inputs, so nothing adds up over layers; a product over quantized
    weights gets them as its kernel rounds them.  Raises Bug that names the first op beyond CLOSE.
    """

    plan: Plan
    memory: Memory
    program: CpuProgram
    weights: Mapping[str, Tensor]
    states: Mapping[str, Any] = field(repr=False)
    decoded: dict[str, Floats] = field(default_factory=dict, repr=False)

    def step(self, batch: Batch) -> Floats:
        """As the program's, after every op was compared."""
        adapters = self.program.compiled.seat.adapters
        context = reference.Context(batch, self.states, self.memory.kv_format, adapters)
        found: dict[int, Floats] = {}
        with np.errstate(over="ignore"):
            for op, value in self.program.values(batch):
                self._compare(op, context, found, value)
                found[op.out.id] = value
        assert self.plan.output is not None
        return found[self.plan.output.id]

    def watch(self, batch: Batch, seen: Seen) -> Floats:
        return self.program.watch(batch, seen)

    def copy_slot(self, source: int, target: int) -> None:
        self.program.copy_slot(source, target)
        for name, state in self.plan.states.items():
            if state.kind == "slot":
                self.states[name][target] = self.states[name][source]

    def block(self, number: int) -> tuple[Bytes, ...]:
        return self.program.block(number)

    def slot(self, number: int) -> tuple[Bytes, ...]:
        return self.program.slot(number)

    def adapt(self, at: int, adapter: Adapter | None) -> None:
        self.program.adapt(at, adapter)

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        return self.program.choose(logits, recent, params, drawn)

    def referenced(self) -> frozenset[str]:
        return self.program.referenced()

    def _compare(self, op: Op, context: reference.Context, found: Mapping[int, Floats], got: Floats) -> None:
        inputs = {v.id: self._as_read(op, v, found[v.id]) for v in op.inputs}
        weights = {w.name: self._floats(w) for w in op.weights}
        if isinstance(op, ops.Linear) and op.adapted:  # adapters read activations as they are
            expected = reference.run(replace(op, adapted=False), context, inputs, weights)
            expected = reference.low_rank(op, context, found[op.x.id], expected)
        else:
            expected = reference.run(op, context, inputs, weights)
        if expected.size == 0:
            return
        limit = CLOSE_EXPERTS if isinstance(op, ops.Experts) and self._rounds(op.down) else CLOSE
        with np.errstate(invalid="ignore"):
            apart = np.abs(got - expected)
        apart[np.isnan(apart)] = np.inf
        apart[(got == expected) | (np.isnan(got) & np.isnan(expected))] = 0
        off = float(apart.max() / np.abs(expected[np.isfinite(expected)]).max(initial=1e-6))
        if off > limit:
            row, column = np.unravel_index(int(apart.argmax()), apart.shape)
            raise Bug(
                f"{self.plan.name}: {op.scope}{op.kind} {op.out} differs from its reference by {off:.2g}: "
                f"row {row}, column {column} is {got[row, column]:.6g} and not {expected[row, column]:.6g}"
            )

    def _as_read(self, op: Op, v: Value, x: Floats) -> Floats:
        """An input of a product as its kernel reads it: in blocks of int8 where the weights are quantized."""
        if not isinstance(op, ops.Linear | ops.Experts) or v != op.x:
            return x
        weight = op.weight if isinstance(op, ops.Linear) else op.gate
        if not self._rounds(weight):
            return x
        t = self.weights[weight.name]
        native = self.program.backend.kernels
        matrix = native.pack(t.format.name, np.ascontiguousarray(t.raw[:8]), weight.shape[-1])
        return np.asarray(native.prepared(matrix, np.ascontiguousarray(x)))

    def _rounds(self, w: Weight) -> bool:
        return self.weights[w.name].format.name not in FLOAT_FORMATS

    def _floats(self, w: Weight) -> Floats:
        if w.name not in self.decoded:
            self.decoded[w.name] = self.weights[w.name].floats()
        return self.decoded[w.name]


class CheckedBackend:
    """The CPU backend with its reference beside it (KVASIR_CHECK=1)."""

    name = "cpu"

    def __init__(self, backend: CpuBackend) -> None:
        self.backend = backend

    def compile(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> CheckedProgram:
        states = reference.ReferenceProgram(plan, memory, {}).states
        return CheckedProgram(plan, memory, self.backend.compile(plan, weights, memory), weights, states)
