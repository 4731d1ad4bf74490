"""What all kernels share: a launch as a value, its configuration, waiting for the kernel before, activations.

A kernel's file has its `@triton.jit` functions and one or more functions that make a `Call` of tensors.  The
program runs calls; the tests compile the very same calls for GPUs that are not there, and run them in
Triton's interpreter.

Programmatic dependent launch: with `PDL` (sm_90 and later) a kernel may start while the one before still
runs. What the one before writes may be read after `wait` only; weights are never written, so they are
loaded before. Every program of every kernel waits, also where it has nothing to do: a kernel that is
complete then says that all before it are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PDL_SINCE = 90  # compute capability


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: its block sizes by the names of its constants, warps, and stages of its loops."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    n_warps: int = 4
    n_stages: int = 1


@dataclass(frozen=True)
class Call:
    """One launch: a kernel, its grid, its arguments by name (tensors, numbers, None), its constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    config: Config = Config()

    def constants_for(self, capability: int) -> dict[str, Any]:
        """All constants; `PDL` among them where the GPU has it."""
        sizes = {name: n for name, n in self.config.sizes.items() if name in self.kernel.arg_names}
        return {**self.constants, **sizes, "PDL": capability >= PDL_SINCE}

    def run(self) -> None:
        if 0 in self.grid:
            return
        first = next(a for a in self.arguments.values() if isinstance(a, torch.Tensor))
        capability = _capability(first.device)
        launch: dict[str, Any] = {"num_warps": self.config.n_warps, "num_stages": self.config.n_stages}
        if capability >= PDL_SINCE:
            launch["launch_pdl"] = True
        self.kernel[self.grid](**self.arguments, **self.constants_for(capability), **launch)


@cache
def _capability(device: torch.device) -> int:
    """90 for an H100; 0 in the interpreter."""
    if INTERPRETED or device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return int(major) * 10 + int(minor)


def cdiv(n: int, by: int) -> int:
    return -(-n // by)


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


# -- in kernels -----------------------------------------------------------------------------------


@triton.jit
def wait(PDL: tl.constexpr):
    """Until all that earlier kernels wrote can be read."""
    if PDL:
        gdc_wait()


@triton.jit
def release(PDL: tl.constexpr):
    """The next kernel may start: it will wait for this one's end before it reads what this one writes."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))  # at most 1: nothing overflows
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def activated(x, FN: tl.constexpr):
    """FN(x) in float32: `reference.ACTIVATIONS`."""
    if FN == "silu":
        y = x * sigmoid(x)
    elif FN == "sigmoid":
        y = sigmoid(x)
    elif FN == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FN == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif FN == "relu":
        y = tl.maximum(x, 0.0)
    else:
        tl.static_assert(FN == "tanh", "an activation that no kernel knows")
        y = tanh(x)
    return y


@triton.jit
def gated(gate, up, limit, FN: tl.constexpr, LIMITED: tl.constexpr):
    """FN(gate) * up, or gpt-oss's form with a limit: `reference.gated`."""
    if LIMITED:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        y = gate * sigmoid(1.702 * gate) * (up + 1.0)
    else:
        y = activated(gate, FN) * up
    return y
