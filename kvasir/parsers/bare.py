"""Calls that stand in a text unmarked: JSON, which counts only if it names a tool that there is."""

from __future__ import annotations

from kvasir.parsers.answer import Calls
from kvasir.parsers.parts import Call, Tools
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.values import call_of, json_text, loads

_FIRST_KEYS = frozenset({"name", "type", "function", "id", "arguments", "parameters"})
_QUOTE = Marks(('"',))


def json_calls(reader: Reader, tools: Tools | None) -> Steps[Calls]:
    """The calls of the JSON object that comes next, or of an array of them.

    With `tools` it must look like a call from its first key on, so that other JSON is text at once.
    """
    if tools is not None and not (yield from _looks_like_a_call(reader)):
        return None
    text = yield from json_text(reader)
    if text is None:
        return None
    value = loads(text)
    found = [call_of(each, tools) for each in (value if isinstance(value, list) else [value])]
    calls = tuple(call for call in found if call)
    return calls if calls and len(calls) == len(found) else None


def separated(reader: Reader, tools: Tools, separator: str) -> Steps[Calls]:
    """Unmarked calls, one behind the other."""
    found: tuple[Call, ...] = ()
    while True:
        begun = reader.begin()
        if found:
            yield from reader.space()
            if not (yield from reader.accept(separator)):
                reader.undo(begun)
                return found
            yield from reader.space()
        calls = yield from json_calls(reader, tools)
        if calls is None:
            reader.undo(begun)
            return found or None
        reader.commit(begun)
        found += calls


def _looks_like_a_call(reader: Reader) -> Steps[bool]:
    begun = reader.begin()
    if (yield from reader.accept("[")):
        yield from reader.space()
    key = ""
    if (yield from reader.accept("{")):
        yield from reader.space()
        if (yield from reader.accept('"')):
            key, _ = yield from reader.before(_QUOTE, 12)
    reader.undo(begun)
    return key in _FIRST_KEYS
