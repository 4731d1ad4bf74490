"""The disk below a loaded model's prefix cache: whose blocks are the same, and where they lie."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from kvasir import __version__
from kvasir.backends.base import Memory, Program
from kvasir.backends.packed import source_of
from kvasir.checkpoint.open import Checkpoint
from kvasir.engine.disk import Disk
from kvasir.engine.shelf import Shelf, cache_folder
from kvasir.native import kernels
from kvasir.plan import Plan
from kvasir.settings import Settings

LEAST_PREFIX_BYTES = 1 << 20  # a quota below keeps nothing worth its files


def disk_for(
    name: str, checkpoint: Checkpoint, plan: Plan, memory: Memory, program: Program, backend: str,
    switches: Settings,
) -> Disk | None:  # fmt: skip
    """Where blocks of this model are kept, as KVASIR_CACHE_DISK_GB says; None where none are: for a model
    without a past, and while ops are compared with their reference, which has a past of its own.
    """
    if backend.startswith("cuda"):  # its blocks lie on the device, where no file can be read into
        return None
    quota = int(switches.cache_disk_gb * 1e9)
    paged = any(s.kind == "paged" for s in plan.states.values())
    if quota < LEAST_PREFIX_BYTES or switches.check or not paged:
        return None
    try:
        source = source_of(checkpoint)
    except OSError:
        return None
    shelf = Shelf(cache_folder(), model_hash(source.identity, plan, backend), quota)
    about: dict[str, object] = {"name": name, "path": str(source.path)}
    return Disk(shelf, program, memory.kv_format, about)


def model_hash(identity: str, plan: Plan, backend: str) -> bytes:
    """SHA-256 over all that the numbers in a cache depend on, but for its format, the adapter and the tokens.

    `identity` is that of the model's files.  The plan may differ with the context; the code that computes is
    taken as it is, so that another build never reads what this one wrote.
    """
    state = hashlib.sha256(f"{identity} {backend} {__version__} {np.__version__}\n".encode())
    state.update(repr([*plan.ops, *plan.states.values()]).encode())
    if backend == "cpu":
        state.update(_build().encode())
    return state.digest()


@cache
def _build() -> str:
    """The native code that runs here: the digest of its file."""
    own = kernels()
    return f"{own.isa} {hashlib.sha256(Path(own.__file__).read_bytes()).hexdigest()}"
