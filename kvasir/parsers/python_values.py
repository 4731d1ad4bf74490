"""Calls in Python's notation, read and never evaluated: get_weather(city="Rome", days=[1, 2])."""

from __future__ import annotations

import re
from typing import Any

from kvasir.parsers.parts import Call
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.values import MAX_NAME, named_call

MAX_DEPTH = 16
_OPEN, _EQUAL = Marks(("(",)), Marks(("=",))
_STRING_ENDS = {quote: Marks((quote, "\\")) for quote in "\"'"}
_AFTER_WORD = Marks(tuple(",)]}:; \t\r\n"))
_NAME = re.compile(r"[A-Za-z_][\w.\-]*\Z", re.ASCII)
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,2})?\Z")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}


class _Bad(Exception):
    """What comes is no value."""


def python_call(reader: Reader, drop: str = "") -> Steps[Call | None]:
    """The call that comes next; `drop`: what may end its name and is no part of it."""
    name, opened = yield from reader.before(_OPEN, MAX_NAME)
    if not opened or not _NAME.match(name):
        return None
    try:
        arguments = yield from _arguments(reader)
    except _Bad:
        return None
    return named_call(name.removesuffix(drop) if drop else name, arguments)


def python_calls(reader: Reader) -> Steps[tuple[Call, ...] | None]:
    """A list of calls: [f(a=1), g()]."""
    if not (yield from reader.accept("[")):
        return None
    found: list[Call] = []
    while True:
        yield from reader.space()
        call = yield from python_call(reader)
        if call is None:
            return None
        found.append(call)
        yield from reader.space()
        after = yield from reader.accept(",", "]")
        if after != ",":
            return tuple(found) if after else None


def _arguments(reader: Reader) -> Steps[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield from reader.space()
    while not (yield from reader.accept(")")):
        name, equal = yield from reader.before(_EQUAL, MAX_NAME)
        if not equal or not _NAME.match(name.strip()):
            raise _Bad
        yield from reader.space()
        found[name.strip()] = yield from _value(reader, 0)
        if not (yield from _comma(reader, ")")):
            break
    return found


def _value(reader: Reader, depth: int) -> Steps[Any]:
    if depth > MAX_DEPTH:
        raise _Bad
    opened = yield from reader.accept('"', "'", "[", "(", "{")
    if opened in ('"', "'"):
        return (yield from _string(reader, opened))
    if opened == "{":
        return (yield from _dict(reader, depth))
    if opened:
        return (yield from _list(reader, "]" if opened == "[" else ")", depth))
    begun = reader.begin()
    word, mark = yield from reader.before(_AFTER_WORD, 500)
    reader.undo(begun)
    if not mark:
        raise _Bad
    reader.take(len(word))
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.match(word):
        return int(word)
    if _FLOAT.match(word):
        return float(word)
    raise _Bad


def _list(reader: Reader, close: str, depth: int) -> Steps[list[Any]]:
    found = list[Any]()
    yield from reader.space()
    while not (yield from reader.accept(close)):
        value = yield from _value(reader, depth + 1)
        found.append(value)
        if not (yield from _comma(reader, close)):
            break
    return found


def _dict(reader: Reader, depth: int) -> Steps[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield from reader.space()
    while not (yield from reader.accept("}")):
        key = yield from _value(reader, depth + 1)
        yield from reader.space()
        if not isinstance(key, str) or not (yield from reader.accept(":")):
            raise _Bad
        yield from reader.space()
        found[key] = yield from _value(reader, depth + 1)
        if not (yield from _comma(reader, "}")):
            break
    return found


def _comma(reader: Reader, close: str) -> Steps[bool]:
    """True behind a comma, False behind `close`, both read."""
    yield from reader.space()
    found = yield from reader.accept(",", close)
    if not found:
        raise _Bad
    yield from reader.space()
    return found == ","


def _string(reader: Reader, quote: str) -> Steps[str]:
    parts = list[str]()
    while True:
        part, mark = yield from reader.before(_STRING_ENDS[quote])
        parts.append(part)
        if mark == quote:
            return "".join(parts)
        letter = yield from reader.peek()
        if not mark or not letter:
            raise _Bad
        reader.take(1)
        if letter in _HEX:
            parts.append((yield from _hex(reader, _HEX[letter])))
        else:
            parts.append(_ESCAPES.get(letter, letter if letter in "\\'\"" else "\\" + letter))


def _hex(reader: Reader, count: int) -> Steps[str]:
    digits = ""
    for _ in range(count):
        digits += yield from reader.peek()
        reader.take(1)
    try:
        return chr(int(digits, 16)) if len(digits) == count and digits.isalnum() else "\ufffd"
    except (ValueError, OverflowError):
        return "\ufffd"
