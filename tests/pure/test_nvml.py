"""Readings of a GPU through a library that answers as NVML does."""

from __future__ import annotations

import ctypes

from kvasir.backends import nvml


class FakeLibrary:
    """Two GPUs; the second tells neither energy nor power."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.shut = status, False

    def nvmlInit_v2(self) -> int:
        return self.status

    def nvmlShutdown(self) -> int:
        self.shut = True
        return 0

    def nvmlDeviceGetCount_v2(self, out: object) -> int:
        out._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, out: object) -> int:
        if index.value > 1:
            return 2
        out._obj.value = 0xA0 + index.value
        return 0

    def nvmlDeviceGetName(self, device: ctypes.c_void_p, into: object, size: ctypes.c_uint) -> int:
        into.value = f"NVIDIA H100 {device.value - 0xA0}".encode()
        assert size.value == 96
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, out: object) -> int:
        out._obj.total, out._obj.used, out._obj.free = 80 << 30, 20 << 30, 60 << 30
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: ctypes.c_void_p, out: object) -> int:
        out._obj.gpu, out._obj.memory = 93, 40
        return 0

    def nvmlDeviceGetPowerUsage(self, device: ctypes.c_void_p, out: object) -> int:
        out._obj.value = 412_500
        return 0 if device.value == 0xA0 else 3

    def nvmlDeviceGetTotalEnergyConsumption(self, device: ctypes.c_void_p, out: object) -> int:
        out._obj.value = 7_000_500_000_000
        return 0 if device.value == 0xA0 else 3


def test_a_gpu_is_read() -> None:
    library = FakeLibrary()
    found, why = nvml.open_nvml(lambda name: library)
    assert found and not why
    first, second = found.all()
    assert (first.name, first.total_bytes, first.used_bytes) == ("NVIDIA H100 0", 80 << 30, 20 << 30)
    assert first.free_bytes == 60 << 30
    assert (first.utilization, first.power_w, first.energy_j) == (0.93, 412.5, 7_000_500_000.0)
    assert (second.power_w, second.energy_j) == (None, None)
    assert found.read(7) is None
    found.close()
    assert library.shut


def test_without_a_driver_there_is_no_reading_and_a_reason() -> None:
    def absent(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    assert nvml.open_nvml(absent) == (
        None,
        "no NVIDIA driver: libnvidia-ml.so.1: cannot open shared object file",
    )
    found, why = nvml.open_nvml(lambda name: FakeLibrary(9))
    assert found is None and "NVML error 9" in why
