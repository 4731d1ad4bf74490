"""Models of no family that is known here: a call is JSON with a tool's name and arguments.

It stands alone, in a fence of Markdown, or between marks that several models use:

    {"name": "get_weather", "arguments": {"city": "Rome"}}

The name must be one of the tools', so that an answer in JSON stays an answer.
"""

from __future__ import annotations

from kvasir.parsers.answer import Calls, Family
from kvasir.parsers.bare import json_calls
from kvasir.parsers.parts import Tools
from kvasir.parsers.reader import Reader, Steps

_CLOSES = {
    "<tool_call>": "</tool_call>",
    "<function_call>": "</function_call>",
    "<|tool_call|>": "<|/tool_call|>",
    "```json\n": "```",
    "```tool_call\n": "```",
}


def calls(reader: Reader, mark: str, tools: Tools) -> Steps[Calls]:
    """JSON behind a mark; the mark that closes it may be absent."""
    yield from reader.space()
    found = yield from json_calls(reader, tools)
    if found is None:
        return None
    begun = reader.begin()
    yield from reader.space()
    if (yield from reader.closes(_CLOSES[mark])):
        reader.commit(begun)
        return found
    reader.undo(begun)
    return found if not mark.startswith("`") else None


GENERIC = Family(
    "json", tuple(_CLOSES), calls, json_calls, marks=(*_CLOSES, "</tool_call>", "<|/tool_call|>")
)
