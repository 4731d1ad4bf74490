"""The CUDA backend: plans compiled for one GPU, or with `device="cpu"` for torch on this machine's cores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch

from kvasir.backends.base import BLOCK, Memory
from kvasir.backends.cpu import CpuBackend
from kvasir.backends.cuda import weights as device_weights
from kvasir.backends.cuda.emit import Emitter, Loader, Ranks, dtypes, emit
from kvasir.backends.cuda.frame import Arena
from kvasir.backends.cuda.graphs import CudaRecorder, Recorder
from kvasir.backends.cuda.kernels.face import Kernels
from kvasir.backends.cuda.kernels.select import kernels_for
from kvasir.backends.cuda.place import GB, Placement, Speeds, place, stretches, units_of
from kvasir.backends.cuda.program import CudaProgram
from kvasir.backends.cuda.sizes import (
    Room,
    buffer_bytes,
    measured,
    memory_in,
    room_of,
    state_sizes,
    weight_bytes,
)
from kvasir.backends.cuda.split import OnCpu, on_cpu
from kvasir.backends.cuda.states import make_states
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CapacityError
from kvasir.plan import Plan

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
Say = Callable[[str], None]


def say(line: str) -> None:
    print(f"kvasir: {line}", file=sys.stderr, flush=True)


class CudaBackend:
    """Runs plans on one device, and what does not fit there on the CPU.

    `compute`: what activations and plain weights are kept in, bf16, f16 or f32.  `kernels`: what computes.
    `recorder`: how decodes become graphs; `graphs` False: not at all.  `fp8`: matrices are rounded to e4m3
    when they are loaded.  `room` and `speeds`: stated instead of asked for and measured (tests).
    `invariant`: a row's result is the same bits whatever else is in its step, at a price.
    """

    def __init__(
        self, device: str = "cuda", compute: str = "bf16", *, kernels: Kernels | None = None,
        recorder: Recorder | None = None, graphs: bool = True, in_background: bool = True, fp8: bool = False,
        threads: int | None = None, room: Room | None = None, speeds: Speeds | None = None, say: Say = say,
        loads: type[Loader] = Loader, invariant: bool = False,
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.name = "cuda" if self.device.type == "cuda" else "torch"
        self.compute = DTYPES[compute]
        self.kernels = kernels or kernels_for(self.device)
        self.recorder, self.in_background, self.fp8 = recorder, in_background, fp8
        self.threads, self._room, self._speeds, self.say = threads, room, speeds, say
        self._loads, self.invariant = loads, invariant
        self.placed: Placement | None = None  # of the plan compiled last
        if graphs and recorder is None and self.device.type == "cuda":
            self.recorder = CudaRecorder(self.device)

    def memory(
        self, plan: Plan, weights: Mapping[str, Tensor], kv_format: str, n_blocks: int | None = None,
        cache_gb: float | None = None,
    ) -> Memory:  # fmt: skip
        """The KV cache that the device has room for beside the weights.  Raises CapacityError."""
        sizes = weight_bytes(plan, weights, self.compute)
        if self.device.type != "cuda" and self._room is None and n_blocks is None:
            n_blocks = -(-(plan.context or BLOCK) // BLOCK) * 4
        return memory_in(plan, sum(sizes.values()), self.room(), kv_format, n_blocks, cache_gb)

    def room(self) -> Room:
        return self._room or room_of(self.device)

    def placement(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> Placement:
        """What runs where.  Speeds are measured only where something does not fit.  Raises CapacityError."""
        sizes, states = weight_bytes(plan, weights, self.compute), state_sizes(plan, memory)
        units = units_of(plan, sizes, states, memory.n_blocks + 1)
        layers = sum(u.n_bytes for u in units if not u.within)
        paged = {s.name for s in plan.states.values() if s.kind == "paged"}
        kept = sum(n * (memory.n_blocks + 1 if name in paged else 1) for name, n in states.items())
        reach = memory.n_blocks * BLOCK
        total = sum(sizes.values()) + kept + buffer_bytes(plan, min(reach, plan.context or reach))
        room = int(self.room().free * 0.95)
        if self._speeds is None and total > room:
            self._speeds = measured(self.device)
        return place(units, total - layers, room, self._speeds or Speeds(1, 1, 1))

    def compile(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> CudaProgram:
        """The plan ready to run: weights on the device, memory reserved, what does not fit on the CPU, and a
        line that says so.  Raises CapacityError.
        """
        self.placed = placed = self.placement(plan, weights, memory)
        try:
            with torch.inference_mode():
                return self._compile(plan, weights, memory, placed)
        except torch.cuda.OutOfMemoryError as error:
            room = self.room()
            raise CapacityError(
                f"the GPU ran out of memory for {plan.name}: {placed.gpu_bytes / GB:.1f} GB are needed, "
                f"{room.free / GB:.1f} of {room.total / GB:.1f} GB are free ({str(error).splitlines()[0]})",
                hint="end other programs on the GPU, or give the KV cache less (KVASIR_CACHE_GB, num_ctx)",
            ) from None

    def _compile(
        self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory, placed: Placement
    ) -> CudaProgram:
        apart = self._apart(plan, weights, memory, placed)
        gone = {s for each in apart for s in each.sub.plan.states}
        kinds = dtypes(plan, self.compute)
        loader, ranks = self._loads(weights, self.device, self.compute, self.fp8), Ranks()
        states = make_states(plan, memory, self.device, gone)
        reach = min(n for n in (memory.n_blocks * BLOCK, plan.context or None) if n)
        n_positions = reach if plan.states else max(plan.context, 1)
        emitter = Emitter(plan, self.kernels, loader, states, ranks, kinds, n_positions)
        away = [(range(a.stretch.first, a.stretch.last + 1), a.run) for a in apart]
        emitted = emit(emitter, away)
        arena = Arena(emitted.placed, kinds, self.device)
        used: dict[str, int] = {}
        for w in plan.weights.values():
            form = weights[w.name].format.name
            used[form] = used.get(form, 0) + 1
        if wider := device_weights.said(used):
            self.say(wider)
        if apart:
            self.say(f"{placed.share}: {placed.reason}")
        return CudaProgram(
            plan, memory, self.kernels, emitted, states, arena, ranks, self.device, self.recorder,
            self.in_background, apart=tuple(apart), placed=placed, invariant=self.invariant,
        )  # fmt: skip

    def _apart(
        self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory, placed: Placement
    ) -> list[OnCpu]:
        """The stretches that the CPU runs."""
        if not placed.on_cpu:
            return []
        cpu = CpuBackend(threads=self.threads)
        cut = stretches(plan, placed.on_cpu)
        return [on_cpu(plan, s, cpu, weights, memory) for s in cut if s.where == "cpu"]
