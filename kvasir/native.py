"""The C++ extension: which of its builds runs here."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from typing import Any

import numpy as np

from kvasir.errors import UsageError
from kvasir.settings import read_settings

WIDE = ("amx", "avx512", "avxvnni")  # must give the bits of "avx2", and are asked to before they are used
BUILDS = (*WIDE, "avx2", "portable")  # best first; CMakeLists.txt makes them

# Formats whose products the wide builds make by instructions of their own: weights and bytes of a block.
CHECKED = {
    **{"Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34)},
    **{"Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)},
    **{"IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17)},
}

log = logging.getLogger("kvasir")


@cache
def usable() -> tuple[str, ...]:
    """The builds that are installed and that this CPU and its system run, best first.

    Raises UsageError where not even the portable one is built.
    """
    try:
        portable = importlib.import_module("kvasir._cpu_portable")
    except ImportError as error:
        raise UsageError(f"the CPU kernels are not built: {error}", hint="run `pip install -e .`") from None
    return tuple(name for name in BUILDS if portable.supports(name) and _is_built(name))


@cache
def load(isa: str) -> Any:
    """The extension module built for `isa`: one of BUILDS, or "auto" for the best this CPU runs.

    A build wider than AVX2 multiplies a little first (5 ms): where its bits differ from the AVX2 build's,
    "auto" warns and takes the next one.  Raises UsageError for a build that this CPU or this installation
    lacks, or that differs.
    """
    runs = usable()
    if isa not in ("auto", *runs):
        raise UsageError(f"KVASIR_ISA={isa}: this machine runs {', '.join(runs)}")
    for name in runs if isa == "auto" else (isa,):
        module = _import(name)
        wrong = differing(module, _import("avx2")) if name in WIDE and "avx2" in runs else []
        if not wrong:
            return module
        what = f"the {name} build of the CPU kernels multiplies {', '.join(wrong)} wrongly on this CPU"
        if isa != "auto":
            raise UsageError(what, hint="unset KVASIR_ISA, and please report this with the CPU's name")
        log.warning("%s and is not used; please report this with the CPU's name", what)
    raise UsageError("no build of the CPU kernels works here", hint="build them again: `pip install -e .`")


def differing(module: Any, reference: Any) -> list[str]:
    """The formats whose products are not those of `reference`, bit for bit: one row, some, a tile of 16."""
    rng = np.random.default_rng(0)
    rows, width = 24, 512  # three panels: a pair, and one alone
    x = rng.standard_normal((26, width)).astype(np.float32)
    found = []
    for name, (block, block_bytes) in CHECKED.items():
        raw = rng.integers(0, 256, (rows, width // block * block_bytes), dtype=np.uint8)
        # With either bit cleared no float16 scale is infinite; what codes one case lacks the other has.
        for weights in (raw & np.uint8(0xBF), raw & np.uint8(0xFB)):
            ours, theirs = (m.pack(name, weights, width) for m in (module, reference))
            if not all(
                np.array_equal(module.linear(ours, x[:n]), reference.linear(theirs, x[:n]), equal_nan=True)
                for n in (1, 9, len(x))
            ):
                found.append(name)
                break
    return found


def _import(name: str) -> Any:
    return importlib.import_module(f"kvasir._cpu_{name}")


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
