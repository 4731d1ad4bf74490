"""Tools that take a program, which models write as it is."""

from __future__ import annotations

from collections.abc import Mapping

from kvasir.parsers.parts import Call, Tools
from kvasir.parsers.values import named_call

NAMES = ("code_interpreter", "ipython", "python")


def code_tool(tools: Tools) -> str | None:
    """The tool for code, if there is one."""
    return next((name for name in NAMES if name in tools), None)


def code_call(name: str, code: str, tools: Tools) -> Call | None:
    """A call with `code` as the first of the tool's arguments; None for tools that are not for code."""
    if name not in NAMES or name not in tools or not code.strip():
        return None
    properties = tools[name].get("properties")
    argument = next(iter(properties), "code") if isinstance(properties, Mapping) else "code"
    return named_call(name, {str(argument): code})
