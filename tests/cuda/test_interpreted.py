"""Every kernel in Triton's interpreter: tests/cuda/interpreted/check_*.py, in a process of their own.

The variable that chooses the interpreter is read when a kernel is defined, so this process cannot run them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

HERE = Path(__file__).parent


def test_kernels_equal_the_reference():
    files = sorted((HERE / "interpreted").glob("check_*.py"))
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
