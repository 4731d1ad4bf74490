"""Kvasir runs language models.  `from kvasir import LLM, SamplingParams`."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["LLM", "LoRARequest", "SamplingParams", "StructuredOutputsParams", "__version__"]


def __getattr__(name: str) -> Any:
    # Names are looked up on first use, so that `import kvasir` costs milliseconds (the bar is 0.15 s).
    if name == "LLM":
        from kvasir.llm import LLM  # noqa: PLC0415

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
