"""The C++ extension: which of its builds runs here."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

from kvasir.errors import UsageError
from kvasir.settings import read_settings

BUILDS = ("avx2", "portable")  # best first; CMakeLists.txt makes them


@cache
def load(isa: str) -> Any:
    """The extension module built for `isa`: one of BUILDS, or "auto" for the best this CPU runs.

    Raises UsageError for a build that this CPU or this installation lacks.
    """
    try:
        portable = importlib.import_module("kvasir._cpu_portable")
    except ImportError as error:
        raise UsageError(f"the CPU kernels are not built: {error}", hint="run `pip install -e .`") from None
    usable = [name for name in BUILDS if portable.supports(name) and _is_built(name)]
    if isa == "auto":
        isa = usable[0]
    if isa not in usable:
        raise UsageError(f"KVASIR_ISA={isa}: this machine runs {', '.join(usable)}")
    return importlib.import_module(f"kvasir._cpu_{isa}")


def _is_built(name: str) -> bool:
    return importlib.util.find_spec(f"kvasir._cpu_{name}") is not None


def kernels() -> Any:
    """The extension module that KVASIR_ISA asks for: `pack`, `linear`, `prepared`, `decode`, `sample`, ..."""
    return load(read_settings().isa)


@cache
def extension() -> Any:
    """The best build, or None where none is: for what Python can do too, only slower."""
    try:
        return load("auto")
    except UsageError:
        return None
