"""Every kernel in Triton's interpreter: tests/cuda/interpreted/check_*.py, in processes of their own.

The variable that chooses the interpreter is read when a kernel is defined, so this process cannot run them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

HERE = Path(__file__).parent


def test_kernels_equal_the_reference():
    files = sorted((HERE / "interpreted").glob("check_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    running = [  # side by side: each is busy on one core
        subprocess.Popen([*command, *files[n::2]], env=env, cwd=HERE.parent.parent, stdout=PIPE, text=True)
        for n in range(2)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)[-4000:]
