"""Which backend runs: a GPU only where the driver, torch and the user agree, and a sentence where not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from kvasir.backends import devices, nvml
from kvasir.cli.ps import gpu_line, processor
from kvasir.errors import UsageError
from tests.pure.test_nvml import FakeLibrary


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing remembered from the machine that the tests run on."""
    devices.gpu.cache_clear()
    devices._tell.cache_clear()
    yield
    devices.gpu.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, *, driver: bool, torch: bool, sees: bool = True) -> None:
    found = nvml.Nvml(FakeLibrary()) if driver else None
    monkeypatch.setattr(devices, "open_nvml", lambda: (found, "" if driver else "no NVIDIA driver: none"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if torch else None)
    fake = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: sees))
    monkeypatch.setattr(devices.importlib, "import_module", lambda name: fake)


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, driver=True, torch=True)
    assert devices.chosen("auto") == "cuda" and devices.chosen("cpu") == "cpu"


def test_without_a_driver_torch_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, driver=False, torch=True)
    monkeypatch.setattr(devices.importlib, "import_module", lambda name: pytest.fail("imported"))
    assert devices.chosen("auto") == "cpu"


def test_a_gpu_without_torch_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, driver=True, torch=False)
    assert devices.chosen("auto") == devices.chosen("auto") == "cpu"
    (line,) = capsys.readouterr().err.splitlines()
    assert "NVIDIA H100 0" in line and "pip install 'kvasir-llm[cuda]'" in line


def test_a_torch_that_sees_no_gpu_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, driver=True, torch=True, sees=False)
    assert devices.chosen("auto") == "cpu" and "built for CUDA?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has", "said"),
    [
        ({"driver": True, "torch": False}, "needs torch"),
        ({"driver": False, "torch": True, "sees": False}, "no NVIDIA driver"),
        ({"driver": True, "torch": True, "sees": False}, "built without CUDA"),
    ],
)
def test_cuda_that_was_asked_for_and_cannot_be_is_an_error(
    has: dict[str, bool], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **has)
    with pytest.raises(UsageError, match=said) as caught:
        devices.cuda_backend()
    assert caught.value.hint


def test_kvasir_does_not_import_torch() -> None:
    told = "import sys, kvasir, kvasir.runner.model; print('torch' in sys.modules, 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_ps_tells_of_a_gpu() -> None:
    reading = nvml.Nvml(FakeLibrary()).all()
    first, second = (vars(r) for r in reading)
    assert gpu_line(first).startswith("GPU 0 NVIDIA H100 0: ") and "93 % busy, 412 W" in gpu_line(first)
    assert "kWh" in gpu_line(first) and " W" not in gpu_line(second)
    assert processor(100, 52) == "48%/52% CPU/GPU"
