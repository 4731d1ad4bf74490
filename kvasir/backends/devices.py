"""Which backend runs a model: asked for, or a GPU where torch sees one, else the CPU.

torch is looked for only when a model is loaded, and imported only when a GPU is to be used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

from kvasir.backends.nvml import open_nvml
from kvasir.errors import UsageError

INSTALL = "pip install 'kvasir-llm[cuda]'"


def chosen(wanted: str) -> str:
    """The backend to use: `wanted`, or for "auto" cuda where a GPU can be used and cpu elsewhere.

    A GPU that cannot be used for want of torch is told of once, on standard error.
    """
    if wanted != "auto":
        return wanted
    usable, why = gpu()
    if why and not usable:
        _tell(f"kvasir: {why}; the CPU is used (KVASIR_BACKEND=cpu says so without this line)")
    return "cuda" if usable else "cpu"


@cache
def gpu() -> tuple[bool, str]:
    """Whether a GPU can be used, and if not though there is one, why."""
    nvml, _ = open_nvml()
    if nvml is None or not (found := nvml.all()):
        return False, ""
    if importlib.util.find_spec("torch") is None:
        return False, f"there is a GPU ({found[0].name}), and torch is not installed: {INSTALL}"
    if not importlib.import_module("torch").cuda.is_available():
        return (
            False,
            f"there is a GPU ({found[0].name}), and torch cannot use it: is this torch built for CUDA?",
        )
    return True, ""


@cache
def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cuda_backend(device: str = "cuda", **more: Any) -> Any:
    """The CUDA backend on `device`.  Raises UsageError without torch, or a GPU that torch can use."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("the cuda backend needs torch, which is not installed", hint=INSTALL)
    torch = importlib.import_module("torch")
    if device == "cuda" and not torch.cuda.is_available():
        _, why = open_nvml()
        why = why or "torch was built without CUDA, or cannot reach the driver"
        raise UsageError(
            f"the cuda backend needs a GPU: {why}",
            hint="KVASIR_BACKEND=cpu runs models on this machine's cores",
        )
    return importlib.import_module("kvasir.backends.cuda.backend").CudaBackend(device, **more)
