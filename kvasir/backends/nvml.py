"""What the driver tells of a GPU: memory, utilization, power and energy, through NVML's C library.

Nothing is loaded before it is asked for, and a machine without the library, or without a GPU, has no reading:
`open_nvml` gives None and says why.  No torch is needed here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from kvasir.records import dataclass

LIBRARY = "libnvidia-ml.so.1"
NAME_BYTES = 96
OK = 0


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Utilization(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in ("gpu", "memory")]


@dataclass(frozen=True)
class Reading:
    """One GPU at one moment.  What a GPU does not tell is None."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    utilization: float | None  # share of the last sampling period in which a kernel ran, 0 to 1
    power_w: float | None
    energy_j: float | None  # since the driver was loaded

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes


class Nvml:
    """The library, initialized.  Thread-safe, as NVML is."""

    def __init__(self, library: Any) -> None:
        self._nvml = library

    def count(self) -> int:
        found = ctypes.c_uint()
        status = self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(found))
        return found.value if status == OK else 0

    def read(self, index: int) -> Reading | None:
        """GPU `index` now; None if the driver does not know it (any more)."""
        nvml, device = self._nvml, ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != OK:
            return None
        name = ctypes.create_string_buffer(NAME_BYTES)
        memory = _Memory()
        if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != OK:
            return None
        named = nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(NAME_BYTES)) == OK
        use = _Utilization()
        used = nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(use)) == OK
        return Reading(
            index,
            name.value.decode("utf-8", "replace") if named else f"GPU {index}",
            int(memory.total),
            int(memory.used),
            use.gpu / 100 if used else None,
            self._thousandths(nvml.nvmlDeviceGetPowerUsage, device, ctypes.c_uint()),
            self._thousandths(nvml.nvmlDeviceGetTotalEnergyConsumption, device, ctypes.c_ulonglong()),
        )

    def all(self) -> list[Reading]:
        return [r for i in range(self.count()) if (r := self.read(i))]

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _thousandths(self, ask: Callable[..., int], device: Any, into: Any) -> float | None:
        return into.value / 1000 if ask(device, ctypes.byref(into)) == OK else None


def open_nvml(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[Nvml | None, str]:
    """The driver's library, ready, or None and why there is none."""
    try:
        library = load(LIBRARY)
    except OSError as error:
        return None, f"no NVIDIA driver: {error}"
    status = library.nvmlInit_v2()
    if status != OK:
        return None, f"the NVIDIA driver does not answer: NVML error {status}"
    return Nvml(library), ""


@cache
def _opened() -> Nvml | None:
    return open_nvml()[0]


def readings() -> list[Reading]:
    """Every GPU of this machine now; none where there is no driver.  Thread-safe."""
    own = _opened()
    return own.all() if own else []
