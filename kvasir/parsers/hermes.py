"""Hermes, Qwen2.5, Qwen3, mead, and whoever learned from them.

    <think>
    ...
    </think>

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Rome"}}
    </tool_call>

Source: the chat templates of Hermes 2 Pro and Qwen3; docs/mead.md.
"""

from __future__ import annotations

from kvasir.parsers.answer import Calls, Family
from kvasir.parsers.parts import Tools
from kvasir.parsers.reader import Reader, Steps
from kvasir.parsers.syntax import ARGUMENTS, JSON_NAME, Pieces, Syntax
from kvasir.parsers.values import call_of, json_text, loads

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def calls(reader: Reader, mark: str, tools: Tools) -> Steps[Calls]:
    """One call and the mark behind it, which models forget at the end and before the next call."""
    yield from reader.space()
    text = yield from json_text(reader)
    call = call_of(loads(text)) if text else None
    if call is None:
        return None
    yield from reader.space()
    if (yield from reader.closes(CLOSE)):
        return (call,)
    begun = reader.begin()
    follows = yield from reader.accept(OPEN)
    reader.undo(begun)
    return (call,) if follows else None


FORM: Pieces = (OPEN + '\n{"name": ', JSON_NAME, ', "arguments": ', ARGUMENTS, "}\n" + CLOSE)
HERMES = Family("hermes", (OPEN,), calls, marks=(OPEN, CLOSE), syntax=Syntax(FORM, between="\n"))
