"""How much memory there is for models, and how much of it one will need."""

from __future__ import annotations

import os
from pathlib import Path

from kvasir.store.files import parts

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


def budget_bytes() -> int:
    """What all models together may take, unless somebody says otherwise."""
    return int(machine_bytes() * SHARE)


def expected_bytes(path: Path) -> int:
    """What the model at `path` will take, from the sizes of its files alone."""
    weights = sum(part.stat().st_size for part in parts(path) if part.is_file())
    return int(weights * (1 + CACHE_SHARE)) + PROCESS_BYTES
