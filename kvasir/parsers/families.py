"""Which family a model is of, by the text of its chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvasir.parsers.answer import Family
from kvasir.parsers.hermes import HERMES
from kvasir.parsers.marks import pair_of

# What a template must hold; the first that fits counts.
_FAMILIES: tuple[tuple[tuple[str, ...], Family], ...] = ((("<tool_call>",), HERMES),)
_PLAIN = Family("plain")


def family_of(template: str, has_token: Callable[[str], bool] = lambda piece: False) -> Family:
    """The family, with the marks of thoughts that the template writes or the vocabulary has."""
    found = next((family for marks, family in _FAMILIES if all(m in template for m in marks)), _PLAIN)
    pair = pair_of(lambda mark: mark in template) or pair_of(has_token) or found.pair
    return replace(found, pair=pair, marks=tuple(dict.fromkeys((*found.marks, *pair))))


ALL = (*(family for _, family in _FAMILIES), _PLAIN)
