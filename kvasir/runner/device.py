"""Where a model runs: the backend by its name, the KV cache that it has room for, what it takes of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, cast

from kvasir.backends.base import Ahead, Backend, Memory, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.backends.cpu_check import CheckedBackend
from kvasir.backends.devices import chosen, cuda_backend
from kvasir.backends.packed import Packed
from kvasir.backends.reference import Reference
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import UsageError
from kvasir.plan import Plan
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.memory import memory_for
from kvasir.settings import Settings

ON_DEVICE = ("cuda", "cuda-invariant", "torch")


class Placed(Protocol):
    """What of a model lies on a GPU, and why."""

    @property
    def gpu_bytes(self) -> int: ...
    @property
    def cpu_bytes(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def share(self) -> str: ...


class DeviceBackend(Backend, Protocol):
    """A backend with memory of its own.  `placed`: what the last compiled plan takes of it."""

    @property
    def placed(self) -> Placed | None: ...

    def memory(
        self, plan: Plan, weights: Mapping[str, Tensor], kv_format: str, n_blocks: int | None,
        cache_gb: float | None,
    ) -> Memory: ...  # fmt: skip

    def placement(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> Placed: ...


def backend_named(
    name: str, threads: int | None, check: bool = False, packed: Packed | None = None
) -> Backend:
    """The backend called `name`: cpu, cuda, torch or reference.  `check`: the CPU's ops are held to their
    reference.
    """
    if check and name in ON_DEVICE:
        raise UsageError(
            "KVASIR_CHECK compares the CPU backend with its reference", hint="KVASIR_BACKEND=cpu"
        )
    if name == "cpu":
        backend = CpuBackend(threads=threads, packed=packed)
        return CheckedBackend(backend) if check else backend
    if name == "reference":
        return Reference()
    if name == "cuda":
        return cast(Backend, cuda_backend(threads=threads))
    if name == "cuda-invariant":
        return cast(Backend, cuda_backend(threads=threads, invariant=True))
    if name == "torch":
        return cast(Backend, cuda_backend("cpu", compute="f32", threads=threads))
    raise UsageError(
        f"unknown backend {name!r}", hint="the backends are cpu, cuda, cuda-invariant, torch and reference"
    )


def memory_on(
    backend: Backend, plan: Plan, weights: Mapping[str, Tensor], kv_format: str, n_blocks: int | None,
    cache_gb: float | None,
) -> Memory:  # fmt: skip
    """The KV cache: by what a GPU has free beside the weights, or by the machine's memory."""
    if backend.name in ON_DEVICE:
        return cast(DeviceBackend, backend).memory(plan, weights, kv_format, n_blocks, cache_gb)
    return memory_for(plan, kv_format, n_blocks, cache_gb)


def where(plan: Plan, weights: Mapping[str, Tensor], switches: Settings) -> str:
    """Where a model would run now, as `kvasir show` says it: "48%/52% CPU/GPU", and why."""
    name = chosen(switches.backend)
    if name not in ON_DEVICE:
        return "100% CPU"
    backend = cast(DeviceBackend, backend_named(name, switches.threads))
    memory = backend.memory(plan, weights, switches.kv, None, switches.cache_gb)
    placed = backend.placement(plan, weights, memory)
    return f"{placed.share} ({placed.reason})"


def ahead_of(backend: Backend, program: Program, draft: str | None, debug: int) -> Ahead | None:
    """The program, if its steps can be begun ahead; not where a draft model guesses or somebody watches."""
    plain = backend.name in ON_DEVICE and not draft and not debug
    return cast(Ahead, program) if plain else None


def with_place(info: ModelInfo, backend: Backend) -> ModelInfo:
    """What is known of the model that the backend compiled last, and how much of it lies on a GPU."""
    placed = cast(DeviceBackend, backend).placed if backend.name == "cuda" else None
    if placed is None:
        return info
    own = placed.gpu_bytes / max(placed.gpu_bytes + placed.cpu_bytes, 1)
    return replace(info, gpu_share=own, placement=placed.reason)
