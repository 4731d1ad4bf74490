#!/bin/sh
# Builds the extension with the address and undefined-behaviour sanitizers in build/asan and runs the kernel tests on it.
# Further arguments go to pytest.  libstdc++ is loaded first, or the sanitizer finds no __cxa_throw in a C program.
set -e
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
cmake -S . -B build/asan -G Ninja -DKVASIR_ASAN=ON -DPython_EXECUTABLE="$PWD/.venv/bin/python" >/dev/null
cmake --build build/asan
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    python -m pytest -q -s -p tests.kernels.sanitized tests/kernels "$@"
