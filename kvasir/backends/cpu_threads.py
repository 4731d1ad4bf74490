"""How many threads are worth starting: physical cores that this process may use."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def cores() -> int:
    """Physical cores in this process's affinity mask, no more than its cgroup's CPU quota; at least 1."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(1, min(len({_siblings(cpu) for cpu in mine}), _quota()))


def _siblings(cpu: int) -> str:
    """The logical CPUs that share this one's core, as the kernel writes them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Whole CPUs that cgroup v2 grants, rounded up; many where nothing limits."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(limit) // int(period)))
    except (OSError, ValueError):
        return 1 << 16
