"""A pytest plugin that puts the address-sanitizer build of the extension in place of the installed one.

`cmake -B build/asan -G Ninja -DKVASIR_ASAN=ON && cmake --build build/asan`, then
`LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 pytest -p tests.kernels.sanitized tests/kernels`
"""  # noqa: E501

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "asan"

for path in BUILD.glob("_cpu_*.so"):
    name = f"kvasir.{path.name.partition('.')[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
