"""Answers held to a form.  What few forms need is loaded when one of them is asked for."""

from __future__ import annotations


def lark_of(gbnf: str) -> str:
    """`kvasir.grammar.gbnf.lark_of`."""
    from kvasir.grammar import gbnf as room  # noqa: PLC0415

    return room.lark_of(gbnf)
