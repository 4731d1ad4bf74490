"""Answers taken apart in every cutting, for the tests of the families."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from kvasir.parsers.answer import Answer, Family
from kvasir.parsers.marks import State
from kvasir.parsers.parts import Call, Part, Said, Thought, tools_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "units": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = (WEATHER, NOW)
Found = list[tuple[Any, ...]]


def joined(parts: Iterable[Part]) -> Found:
    """("text", t), ("thinking", t), ("call", name, arguments as an object); neighbours are joined."""
    found: Found = []
    for part in parts:
        if isinstance(part, Call):
            found.append(("call", part.name, json.loads(part.arguments)))
            continue
        kind = "text" if isinstance(part, Said) else "thinking"
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + part.text)
        else:
            found.append((kind, part.text))
    assert all(isinstance(part, Call) or part.text for part in parts), "no empty parts"
    assert all(isinstance(part, Call | Said | Thought) for part in parts)
    return found


def taken(
    family: Family,
    pieces: Sequence[str],
    state: State = "may",
    tools: Sequence[dict[str, Any]] = TOOLS,
    max_calls: int | None = None,
) -> Found:
    """What the family makes of an answer that comes in these pieces."""
    answer = Answer(family, tools_of(tools), state, max_calls)
    parts = [part for piece in pieces for part in answer.push(piece)]
    return joined([*parts, *answer.finish()])


def whole(family: Family, text: str, **more: Any) -> Found:
    """What the family makes of `text`, in one piece, by letters and by threes, which must agree."""
    found = taken(family, [text], **more)
    for size in (1, 3):
        assert taken(family, [text[i : i + size] for i in range(0, len(text), size)], **more) == found
    return found
