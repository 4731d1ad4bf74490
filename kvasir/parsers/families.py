"""Which family a model is of, by the text of its chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvasir.parsers.answer import Family
from kvasir.parsers.deepseek import DEEPSEEK
from kvasir.parsers.generic import GENERIC
from kvasir.parsers.harmony import HARMONY
from kvasir.parsers.hermes import HERMES
from kvasir.parsers.llama3 import LLAMA3
from kvasir.parsers.marks import pair_of
from kvasir.parsers.mistral import MISTRAL
from kvasir.parsers.qwen_coder import QWEN_CODER

# What a template must hold; the first that fits counts.
_FAMILIES = (
    (("<|channel|>", "<|message|>"), HARMONY),
    (("<function=", "<parameter="), QWEN_CODER),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<｜tool▁call▁begin｜>",), DEEPSEEK),
    (("<tool_call>",), HERMES),
    (("<|python_tag|>",), LLAMA3),
    (("ipython", "parameters"), LLAMA3),
    ((), GENERIC),
)
ALL = tuple({family.name: family for _, family in _FAMILIES}.values())


def family_of(template: str, has_token: Callable[[str], bool] = lambda piece: False) -> Family:
    """The family, with the marks of thoughts that the template writes or the vocabulary has."""
    found = next(family for marks, family in _FAMILIES if all(mark in template for mark in marks))
    pair = pair_of(lambda mark: mark in template) or pair_of(has_token) or found.pair
    syntax = next((form for mark, form in found.variants if mark in template), found.syntax)
    return replace(found, pair=pair, syntax=syntax, marks=tuple(dict.fromkeys((*found.marks, *pair))))
