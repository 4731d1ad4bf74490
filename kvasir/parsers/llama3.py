"""Llama 3.1 to 3.3, and Llama 4.

    {"name": "get_weather", "parameters": {"city": "Rome"}}
    <|python_tag|>{"name": "get_weather", "parameters": {"city": "Rome"}}
    <|python_tag|>brave_search.call(query="weather in Rome")
    <function=get_weather>{"city": "Rome"}</function>
    [get_weather(city="Rome"), now()]

Unmarked, a call counts only if it names one of the tools.  Behind the mark anything else is Python, which is
a call of a tool for code, if there is one.  Source: Meta's page on prompt formats, the models' templates.
"""

from __future__ import annotations

from kvasir.parsers.answer import Calls, Family
from kvasir.parsers.bare import json_calls, separated
from kvasir.parsers.code import code_call, code_tool
from kvasir.parsers.parts import Tools
from kvasir.parsers.python_values import python_call, python_calls
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.syntax import ARGUMENTS, JSON_NAME, Syntax
from kvasir.parsers.values import MAX_NAME, json_text, loads, named_call

TAG, FUNCTION, END = "<|python_tag|>", "<function=", "</function>"
_NOTHING, _NAME_ENDS = Marks(()), Marks((">",))


def calls(reader: Reader, mark: str, tools: Tools) -> Steps[Calls]:
    """What stands behind a mark."""
    if mark == FUNCTION:
        return (yield from _function(reader))
    begun = reader.begin()
    yield from reader.space()
    if (yield from reader.peek()) in ("{", "["):
        found: Calls = yield from json_calls(reader, None)
    else:
        call = yield from python_call(reader, drop=".call")
        found = (call,) if call and (call.name in tools or not code_tool(tools)) else None
    if found is not None:
        reader.commit(begun)
        return found
    reader.undo(begun)
    return (yield from _code(reader, tools))


def bare(reader: Reader, tools: Tools) -> Steps[Calls]:
    """A text that begins with calls: JSON, with semicolons between, or Python's notation."""
    begun = reader.begin()
    found = yield from separated(reader, tools, ";")
    if found is not None:
        reader.commit(begun)
        return found
    reader.undo(begun)
    found = yield from python_calls(reader)
    return found if found and all(call.name in tools for call in found) else None


def _function(reader: Reader) -> Steps[Calls]:
    name, _ = yield from reader.before(_NAME_ENDS, MAX_NAME)
    yield from reader.space()
    text = yield from json_text(reader)
    call = named_call(name, loads(text)) if text else None
    if call is None:
        return None
    yield from reader.space()
    return (call,) if (yield from reader.closes(END)) else None


def _code(reader: Reader, tools: Tools) -> Steps[Calls]:
    """All that is left, as a call of the tool for code."""
    name = code_tool(tools)
    code, _ = (yield from reader.before(_NOTHING)) if name else ("", "")
    call = code_call(name, code, tools) if name and not reader.cut else None
    return (call,) if call else None


FORM = ('{"name": ', JSON_NAME, ', "parameters": ', ARGUMENTS, "}")
LLAMA3 = Family("llama3", (TAG, FUNCTION), calls, bare, marks=(TAG,), syntax=Syntax(FORM, between="; "))
