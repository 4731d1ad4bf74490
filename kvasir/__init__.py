"""Kvasir runs language models.  `from kvasir import LLM, SamplingParams`."""

from __future__ import annotations

import gc
import os
from typing import Any

# Each thread of numpy's BLAS spins for some 30 ms, unless told otherwise before numpy is imported, and then
# sleeps: on few cores half of what numpy's import takes.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

__version__ = "0.1.0"
__all__ = ["LLM", "LoRARequest", "SamplingParams", "StructuredOutputsParams", "__version__"]


def __getattr__(name: str) -> Any:
    # Names are looked up on first use, so that `import kvasir` costs milliseconds (the bar is 0.15 s).
    if name == "LLM":
        collects = gc.isenabled()
        gc.disable()  # nothing that an import makes is garbage, and looking for some takes a tenth of it
        try:
            from kvasir.llm import LLM  # noqa: PLC0415
        finally:
            if collects:
                gc.enable()
        return LLM
    if name == "LoRARequest":
        from kvasir.llm import LoRARequest  # noqa: PLC0415

        return LoRARequest
    if name == "SamplingParams":
        from kvasir.sampling import SamplingParams  # noqa: PLC0415

        return SamplingParams
    if name == "StructuredOutputsParams":
        from kvasir.structured import StructuredOutputsParams  # noqa: PLC0415

        return StructuredOutputsParams
    raise AttributeError(f"module 'kvasir' has no attribute {name!r}")
