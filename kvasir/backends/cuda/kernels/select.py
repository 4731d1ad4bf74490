"""Which kernels compute on a device: Triton's on a GPU where they are installed, torch's elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from kvasir.backends.cuda.kernels.face import Kernels
from kvasir.backends.cuda.kernels.torch_ops import TorchOps
from kvasir.backends.cuda.tune import Tables, key_of

OWN = "kvasir.backends.cuda.kernels.triton_ops"  # has TritonOps(chosen), a Kernels
TRIALS = "kvasir.backends.cuda.trials"


def kernels_for(device: torch.device) -> Kernels:
    """The best kernels for the device, configured by its table."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return TorchOps()
    tables, cut_of = Tables(torch.cuda.get_device_name(device)), importlib.import_module(TRIALS).cut_of

    def chosen(kernel: str, shape: tuple[int, ...]) -> Any:
        config = tables.chosen(kernel, key_of(shape))
        return cut_of(config) if config else None

    made: Kernels = importlib.import_module(OWN).TritonOps(chosen)
    return made
