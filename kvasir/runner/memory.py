"""How much memory there is for models, and how much of it one will need."""

from __future__ import annotations

import math
import os
from pathlib import Path

from kvasir.backends.base import BLOCK, Memory
from kvasir.errors import CapacityError, UsageError
from kvasir.plan import Plan
from kvasir.plan.show import KV_BYTES
from kvasir.settings import KV_FORMATS
from kvasir.store.files import parts

MAX_SEQUENCES = 64  # answers computed at the same time; more wait their turn
DEFAULT_CONTEXT = 32768  # positions, for models that name no limit
CACHE_SEQUENCES = 8  # the cache is sized for as many sequences of full length, if memory allows
SHARE = 0.85  # of the machine's memory: the rest is for everybody else
PROCESS_BYTES = 64 << 20  # of a model's process, before any weight
CACHE_SHARE = 0.1  # of the weights: what a few answers under way take; the cache grows as they do


def machine_bytes(root: Path = Path("/")) -> int:
    """The memory of this machine, or of the container that we are in, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def memory_for(plan: Plan, kv_format: str, n_blocks: int | None, cache_gb: float | None = None) -> Memory:
    """Room for the plan's states: eight sequences of full length, in at most half of the free memory.

    `cache_gb` or `n_blocks` set the cache's size instead.  Pages of the cache are touched only when a
    sequence grows into them, so what is not used costs nothing.  Raises CapacityError when none fits.
    """
    if kv_format not in KV_FORMATS:
        raise UsageError(f"KV cache format {kv_format!r} is unknown", hint=f"one of {', '.join(KV_FORMATS)}")
    room = int(cache_gb * 1e9) if cache_gb else available_bytes() // 2
    slot_bytes = sum(s.width for s in plan.states.values() if s.kind == "slot") * 4
    n_slots = max(1, min(MAX_SEQUENCES, room // 4 // slot_bytes)) if slot_bytes else 1
    token_numbers = sum(s.width for s in plan.states.values() if s.kind == "paged")
    block_bytes = math.ceil(token_numbers * KV_BYTES[kv_format] * BLOCK)
    if n_blocks is None:
        each = -(-(plan.context or DEFAULT_CONTEXT) // BLOCK)
        n_blocks = each * (MAX_SEQUENCES if cache_gb else CACHE_SEQUENCES)
        if block_bytes:  # an encoder keeps nothing, and its blocks cost nothing
            n_blocks = min(n_blocks, (room - n_slots * slot_bytes) // block_bytes)
    if n_blocks < 1:
        raise CapacityError(
            f"one block of the KV cache needs {block_bytes:,} bytes and {room:,} may be used",
            hint="close other programs, raise KVASIR_CACHE_GB, or choose a smaller model",
        )
    return Memory(n_blocks, n_slots, kv_format)


def budget_bytes() -> int:
    """What all models together may take, unless somebody says otherwise."""
    return int(machine_bytes() * SHARE)


def expected_bytes(path: Path) -> int:
    """What the model at `path` will take, from the sizes of its files alone."""
    weights = sum(part.stat().st_size for part in parts(path) if part.is_file())
    return int(weights * (1 + CACHE_SHARE)) + PROCESS_BYTES
