"""What a model takes on the device, before anything is loaded; and how fast memory is, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from time import perf_counter

import torch

from kvasir.backends.base import BLOCK, Memory
from kvasir.backends.cuda.place import GB, Speeds
from kvasir.backends.cuda.states import heads_of, state_bytes
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CapacityError
from kvasir.plan import Plan, ops
from kvasir.plan.passes import fuse, layout

# Bytes on the device for 256 weights: codes, scales, minima, and float16s of 256; see weights.py.
OF_256 = {
    "Q4_0": 144, "Q4_1": 160, "IQ4_NL": 144, "MXFP4": 136, "Q4_K": 148, "IQ4_XS": 138,
    "Q2_K": 164, "Q3_K": 146, "Q8_0": 272, "Q5_0": 272, "Q5_1": 288, "Q5_K": 276, "Q6_K": 274,
}  # fmt: skip
STEP_ROWS = 512  # rows that the arena is sized for
SPARE = 0.92  # of what is free: the rest is for cuBLAS, graphs and fragments
MOST_SEQUENCES = 256
DEFAULT_CONTEXT = 32768
LEAST_TOKENS = 4096  # of KV cache that a model gets before layers are left to the CPU for more of it
SWEEP_BYTES = 1 << 28
MEASURED = 3


def weight_bytes(plan: Plan, tensors: Mapping[str, Tensor], compute: torch.dtype) -> dict[str, int]:
    """What each weight takes on the device."""
    found = dict[str, int]()
    for w in plan.weights.values():
        form, n = tensors[w.name].format.name, prod(w.shape)
        small = 4 if len(w.shape) == 1 else compute.itemsize  # vectors are float32
        found[w.name] = n * OF_256[form] // 256 if form in OF_256 else n * small
    return found


def buffer_bytes(plan: Plan, n_positions: int) -> int:
    """The arena for a step, its logits, and tables of rope."""
    placed = layout(plan, fuse(plan))
    assert plan.output is not None
    logits = MOST_SEQUENCES * plan.output.width * 4
    ropes = {(op.inverse_frequencies, op.magnitude) for op in plan.ops if isinstance(op, ops.Rope)}
    turns = sum(2 * len(frequencies) * n_positions * 4 for frequencies, _ in ropes)
    return sum(placed.widths) * STEP_ROWS * 4 + logits + turns


@dataclass(frozen=True)
class Room:
    """Bytes of the device: all, and what is free now."""

    total: int
    free: int


def room_of(device: torch.device) -> Room:
    """What the device has free.  For "cpu", a machine of its own: what the tests say instead."""
    if device.type != "cuda":
        return Room(1 << 62, 1 << 62)
    free, total = torch.cuda.mem_get_info(device)
    return Room(int(total), int(free))


def memory_in(
    plan: Plan, weights: int, room: Room, kv_format: str, n_blocks: int | None, cache_gb: float | None
) -> Memory:
    """The KV cache for what `weights` bytes and buffers leave free.

    As many blocks as there is room for, at most those of 256 sequences of full length; at least those of one
    sequence of 4,096 tokens, for which layers then go to the CPU.  Raises CapacityError where a cache of
    `n_blocks` or `cache_gb` that was asked for does not fit on the device at all.
    """
    block, slot = state_bytes(plan, kv_format)
    each = -(-(plan.context or DEFAULT_CONTEXT) // BLOCK)
    left = int(room.free * SPARE) - weights - buffer_bytes(plan, each * BLOCK)
    n_slots = max(1, min(64, max(left, 0) // 4 // slot)) if slot else 1
    if n_blocks is None and cache_gb:
        n_blocks = int(cache_gb * GB) // max(block, 1)
    if n_blocks is not None:
        most = int(room.free * SPARE) // max(block, 1)
        if n_blocks * block + n_slots * slot > room.free * SPARE:
            raise CapacityError(
                f"a KV cache of {n_blocks * BLOCK:,} tokens needs {n_blocks * block / GB:.1f} GB and the GPU "
                f"has {room.free / GB:.1f} GB free, room for {most * BLOCK:,} tokens without any weight",
                hint="lower KVASIR_CACHE_GB or num_ctx, or take KVASIR_KV=q8_0",
            )
        return Memory(max(n_blocks, 1), n_slots, kv_format)
    least = min(each, LEAST_TOKENS // BLOCK)
    fits = (left - n_slots * slot) // block if block else each
    return Memory(max(least, min(fits, each * MOST_SEQUENCES), 1), n_slots, kv_format)


def state_sizes(plan: Plan, memory: Memory) -> dict[str, int]:
    """By state: bytes of a block, or of all slots."""
    found = {name: heads.block_bytes(memory.kv_format) for name, heads in heads_of(plan).items()}
    slots = {s.name: s.width * 4 * (memory.n_slots + 1) for s in plan.states.values() if s.kind == "slot"}
    return {**dict.fromkeys(plan.states, 0), **found, **slots}


def measured(device: torch.device) -> Speeds:
    """Reads 256 MB of the machine's memory and of the device's, and hands them over: the best of three."""
    own = torch.ones(SWEEP_BYTES // 4)
    there = own.to(device)

    def best(what: str) -> float:
        took = list[float]()
        for _ in range(MEASURED + 1):
            begun = perf_counter()
            if what == "link":
                own.to(device, copy=True)
            else:
                float((there if what == "gpu" else own).sum())  # the value comes back when it is done
            took.append(perf_counter() - begun)
        return SWEEP_BYTES / min(took[1:])

    return Speeds(best("gpu"), best("cpu"), best("link"))
