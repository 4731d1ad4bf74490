"""The CPU backend: plans compiled for the C++ extension, which runs a step in one call without the GIL."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from time import perf_counter
from typing import Any

import numpy as np

from kvasir.backends.base import BLOCK, Adapter, Batch, Bytes, Floats, Ints, Memory, Seen, values_of
from kvasir.backends.choice import choose
from kvasir.backends.cpu_compile import Compiled, build
from kvasir.backends.cpu_threads import cores
from kvasir.backends.packed import Packed
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import Bug, CapacityError
from kvasir.native import kernels, load
from kvasir.plan import Op, Plan
from kvasir.records import dataclass
from kvasir.sampling import SamplingParams
from kvasir.settings import read_settings

__all__ = ["CpuBackend", "CpuProgram", "kernels", "load"]

log = logging.getLogger("kvasir.cpu")


class CpuBackend:
    """Runs plans on this machine's cores.  Programs of one backend share its threads.

    `threads`: at most one a physical core (KVASIR_THREADS, else all); `oversubscribe`: more (tests).
    `as_reference`: kinds of ops to run as their reference although they have kernels.
    `packed`: where the repacked weights of the model that is compiled first are kept on disk.
    """

    name = "cpu"

    def __init__(
        self, threads: int | None = None, isa: str | None = None, *, oversubscribe: bool = False,
        as_reference: Collection[type[Op]] = (), packed: Packed | None = None,
    ) -> None:  # fmt: skip
        settings = read_settings()
        self.kernels = load(isa or settings.isa)
        self.most = 1 << 10 if oversubscribe else cores()
        self.as_reference = frozenset(as_reference)
        self.packed = packed
        wanted = threads or settings.threads or cores()
        try:
            self.pool = self.kernels.Pool(threads=max(1, min(wanted, self.most)))
        except RuntimeError as error:
            raise CapacityError(str(error), hint="set KVASIR_THREADS lower, or raise the limit") from None

    def compile(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> CpuProgram:
        """The plan ready to run: weights repacked, memory reserved.  Raises CapacityError."""
        packed, self.packed = self.packed, None
        try:
            compiled = build(self.kernels, self.pool, plan, weights, memory, self.as_reference, packed)
        except MemoryError:
            raise CapacityError(
                f"no memory for {plan.name} with {memory.n_blocks} cache blocks",
                hint="ask for a smaller KV cache (KVASIR_CACHE_GB) or a smaller model",
            ) from None
        if compiled.referenced:
            log.warning("no kernel, runs as its reference: %s", ", ".join(sorted(compiled.referenced)))
        return CpuProgram(plan, memory, self, compiled)


@dataclass
class CpuProgram:
    """A compiled plan.  Mutable: holds the KV cache and the recurrent states.  One caller at a time."""

    plan: Plan
    memory: Memory
    backend: CpuBackend
    compiled: Compiled = field(repr=False)
    _second: Any = field(default=None, repr=False)  # the native program of steps in pieces
    _begun: tuple[Batch, Floats] | None = field(default=None, repr=False)

    def step(self, batch: Batch) -> Floats:
        """The plan's output for this batch: logits [R, V] or an embedding a sequence [N, D].  Raises Bug."""
        return self._step(batch, None)

    def values(self, batch: Batch) -> Iterator[tuple[Op, Floats]]:
        """One step, and then each op with a copy of what it wrote, in order."""
        return values_of(self, batch)

    def watch(self, batch: Batch, seen: Seen) -> Floats:
        """A step that calls `seen` after each group of ops that runs as one, with its ops, its seconds and
        views of what they wrote.
        """
        native, places = self.compiled.native, self.compiled.values
        waiting = dict[int, list[Op]]()
        for i, at in self.compiled.emitted.items():
            waiting.setdefault(at, []).append(self.plan.ops[i])
        last = perf_counter()

        def passed(at: int) -> None:
            nonlocal last
            took_s = perf_counter() - last
            if done := waiting.get(at):
                seen(done, took_s, [native.value(places[op.out.id]) for op in done])
            last = perf_counter()

        return self._step(batch, passed)

    def _step(self, batch: Batch, seen: Any) -> Floats:
        arrays, adapters, output = self._checked(batch)
        self.compiled.seat.batch = batch
        self._must(self.compiled.native.step(*arrays, output, seen, adapters))
        return output

    def begin_aside(self, batch: Batch) -> None:
        """A step that `go_on` runs, in pieces; one that was begun before is forgotten.  Raises Bug."""
        if self._second is None:
            self._second = self.compiled.again()
            self._second.poison = self.compiled.native.poison
        arrays, adapters, output = self._checked(batch)
        self._must(self._second.begin(*arrays, adapters, output))
        self._begun = batch, output

    def go_on(self, seconds: float) -> Floats | None:
        """Some `seconds` more of the step that was begun; its output when it is done."""
        assert self._begun is not None and self._second is not None, "no step was begun"
        batch, output = self._begun
        self.compiled.seat.batch = batch
        if not self._second.go_on(seconds):
            return None
        self._begun = None
        return output

    def _checked(self, batch: Batch) -> tuple[tuple[Ints, ...], Ints, Floats]:
        """The arrays of a batch as the extension wants them, the adapters, and room for the output."""
        b = batch
        given = (b.tokens, b.positions, b.starts, b.blocks, b.slots, b.logit_rows, b.adapters)
        arrays = tuple(np.ascontiguousarray(a, np.int32) for a in given)
        if [a.ndim for a in arrays] != [1, 1, 1, 2, 1, 1, 1]:
            self._must("an array has not the dimensions it should")
        if missing := set(b.adapters.tolist()) - {-1, *self.compiled.seat.adapters}:
            self._must(f"no adapter is at {min(missing)}")
        assert self.plan.output is not None
        n_rows = {"T": len(arrays[0]), "R": len(arrays[5]), "N": len(arrays[2]) - 1}[self.plan.output.rows]
        output = np.empty((max(n_rows, 0), self.plan.output.width), np.float32)
        return arrays[:-1], arrays[-1], output

    def _must(self, fault: str) -> None:
        if fault:
            raise Bug(f"a batch for {self.plan.name} breaks its law: {fault}")

    def copy_slot(self, source: int, target: int) -> None:
        """The recurrent states of slot `source` into slot `target`."""
        for name, state in self.plan.states.items():
            if state.kind == "slot":
                own = self.compiled.states[name]
                if isinstance(own, np.ndarray):  # of an op that runs as its reference
                    own[target] = own[source]
                else:
                    own.copy(source, target)

    def block(self, number: int) -> tuple[Bytes, ...]:
        """The memory of a cache block."""
        return self._memory("paged", number, BLOCK)

    def slot(self, number: int) -> tuple[Bytes, ...]:
        """The memory of a recurrent slot."""
        return self._memory("slot", number, 1)

    def _memory(self, kind: str, number: int, n_rows: int) -> tuple[Bytes, ...]:
        found = list[Bytes]()
        for name, state in self.plan.states.items():
            own = self.compiled.states.get(name)
            if state.kind != kind or own is None:
                continue
            if isinstance(own, np.ndarray):  # of an op that runs as its reference
                found.append(own[number * n_rows : (number + 1) * n_rows].reshape(-1).view(np.uint8))
            else:
                found.append(own.bytes[number])
        return tuple(found)

    def adapt(self, at: int, adapter: Adapter | None) -> None:
        """Sequences that name adapter `at` get this one from the next step on; None: it is gone."""
        kernels, seat = self.backend.kernels, self.compiled.seat
        for table in self.compiled.adapted.values():
            table.drop(at)
        seat.adapters.pop(at, None)
        if adapter is None:
            return
        for name, low in adapter.items():
            if table := self.compiled.adapted.get(name):  # none where products run as their reference
                a, b = (kernels.pack(t.format.name, np.array(t.raw), t.shape[-1]) for t in (low.a, low.b))
                table.put(at, a, b, low.scale)
        seat.adapters[at] = adapter

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        """The next token for logits [V] (changed in place).  Raises Bug when no logit is above -inf."""
        return choose(self.backend.kernels, self.plan.name, logits, recent, params, drawn)

    def poison(self, on: bool = True) -> None:
        """Fills the arena with NaN before each step, so that an op that reads what nobody wrote shows."""
        for native in (self.compiled.native, self._second):
            if native:
                native.poison = on

    def set_threads(self, n: int) -> None:
        """Threads of all programs of this backend from now on, at most one a core.  Results do not change."""
        self.backend.pool.resize(max(1, min(n, self.backend.most)))

    def referenced(self) -> frozenset[str]:
        return self.compiled.referenced
