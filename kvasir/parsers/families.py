"""Which family a model is of, by the text of its chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from kvasir.parsers.answer import Family
from kvasir.parsers.marks import pair_of

# What a template must hold, and the file of the family, which is loaded when one of its models is; the first
# that fits counts.
_FAMILIES = (
    (("<|channel|>", "<|message|>"), "harmony"),
    (("<function=", "<parameter="), "qwen_coder"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁call▁begin｜>",), "deepseek"),
    (("<tool_call>",), "hermes"),
    (("<|python_tag|>",), "llama3"),
    (("ipython", "parameters"), "llama3"),
    ((), "generic"),
)


def _written_in(file: str) -> Family:
    family: Family = getattr(import_module(f"kvasir.parsers.{file}"), file.upper())
    return family


def all_families() -> tuple[Family, ...]:
    """Each family once."""
    return tuple(_written_in(file) for file in dict.fromkeys(file for _, file in _FAMILIES))


def family_of(template: str, has_token: Callable[[str], bool] = lambda piece: False) -> Family:
    """The family, with the marks of thoughts that the template writes or the vocabulary has."""
    found = _written_in(next(file for marks, file in _FAMILIES if all(mark in template for mark in marks)))
    pair = pair_of(lambda mark: mark in template) or pair_of(has_token) or found.pair
    syntax = next((form for mark, form in found.variants if mark in template), found.syntax)
    return replace(found, pair=pair, syntax=syntax, marks=tuple(dict.fromkeys((*found.marks, *pair))))
