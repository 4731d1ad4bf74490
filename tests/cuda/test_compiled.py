"""Every kernel compiles for GPUs that are not here, and into what its head says that it counts on.

Each kernel as an 8B model asks for it; `make gpu-kernels` tries all candidates (`tests/cuda/candidates.py`).
"""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kvasir.backends.cuda.kernels.common import Call
from tests.cuda.compiling import CAPABILITIES, SHARED, Compiled, compiled
from tests.cuda.specimens import SPECIMENS

WAIT = r"griddepcontrol\.wait"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", SPECIMENS)
def test_compiles(name, capability):
    specimen = SPECIMENS[name]
    made = compiled(specimen.call(), capability)
    assert made.spilled == 0, f"{made.spilled} bytes a thread spilled"
    assert made.registers <= specimen.registers, made.registers
    assert made.registers * made.n_warps * 32 <= 65536, "a program's registers fit into a multiprocessor"
    assert made.shared <= min(specimen.shared, SHARED[capability]), made.shared
    for instruction in specimen.needs + (specimen.hopper if capability == 90 else ()):
        assert made.has(instruction), f"no {instruction}"
    check_dependent_launch(made, specimen.early, capability)


def check_dependent_launch(made: Compiled, early: str, capability: int) -> None:
    """Where there is such a thing a kernel waits, and what it may load before that is loaded before."""
    assert made.has(WAIT) == (capability >= 90)
    if early and capability >= 90:
        assert made.place(early) < made.place(WAIT), f"{early} after the wait"


def test_a_call_is_what_its_name_says():
    assert all(isinstance(specimen.call(), Call) for specimen in SPECIMENS.values())
