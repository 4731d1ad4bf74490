"""JSON as a model writes it: where a value ends, and what call it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal

from kvasir.parsers.parts import Call
from kvasir.parsers.reader import SPACE, Reader, Steps

MAX_DEPTH = 64
MAX_NAME = 256
_PLAIN = re.compile(r'[^"\\]*')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_WHOLE = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null)\Z")
_CLOSES = {"{": "}", "[": "]"}


class Scan:
    """Where a JSON object or array ends (mutable).  Strings may hold raw line breaks: models write them."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._wants: Literal["value", "first value", "key", "first key", "colon", "next"] = "value"
        self._in_string = self._escaped = False
        self._scalar: list[str] = []

    def feed(self, text: str, at: int) -> tuple[int, bool | None]:
        """Where it stopped: behind the value (True), at what is not JSON (False), or all is read (None)."""
        while at < len(text):
            if self._in_string:
                at = self._string(text, at)
                continue
            if self._scalar:
                found = _SCALAR.match(text, at)
                assert found is not None
                self._scalar.append(found[0])
                at = found.end()
                if at < len(text) and not self._end_scalar():
                    return at, False
                continue
            letter = text[at]
            if letter not in SPACE and not self._letter(letter):
                return at, False
            at += 1
            if not self._stack and letter in "}]":
                return at, True
        return at, None

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _PLAIN.match(text, at)
        assert found is not None
        at = found.end()
        if at < len(text):
            self._in_string, self._escaped = text[at] == "\\", text[at] == "\\"
            at += 1
        return at

    def _end_scalar(self) -> bool:
        scalar, self._scalar = "".join(self._scalar), []
        return _WHOLE.match(scalar) is not None

    def _letter(self, letter: str) -> bool:
        """One letter between the values."""
        wants, top = self._wants, self._stack[-1] if self._stack else ""
        if letter == '"' and top and wants != "colon" and wants != "next":
            self._in_string = True
            self._wants = "colon" if wants in ("key", "first key") else "next"
        elif letter in "{[" and wants in ("value", "first value") and len(self._stack) < MAX_DEPTH:
            self._stack.append(letter)
            self._wants = "first key" if letter == "{" else "first value"
        elif (
            letter in "}]"
            and top
            and _CLOSES[top] == letter
            and wants in ("next", "first key", "first value")
        ):
            if wants != "next" and (wants == "first key") != (letter == "}"):
                return False
            self._stack.pop()
            self._wants = "next"
        elif letter == ":" and wants == "colon":
            self._wants = "value"
        elif letter == "," and wants == "next" and top:
            self._wants = "key" if top == "{" else "value"
        elif top and wants in ("value", "first value") and (letter in "-tfn" or letter.isdecimal()):
            self._scalar.append(letter)
            self._wants = "next"
        else:
            return False
        return True


def json_text(reader: Reader) -> Steps[str | None]:
    """The JSON object or array that comes next, as it stands there; None when there is none, or it does not
    end.
    """
    scan, parts = Scan(), list[str]()
    while True:
        stop, whole = scan.feed(reader.text, reader.at)
        parts.append(reader.take(stop - reader.at))
        if whole or (whole is None and reader.ended) or whole is False:
            return "".join(parts) if whole else None
        yield


def loads(text: str) -> Any:
    """What a JSON text says; None for what is not JSON, or holds numbers that no client could read."""
    try:
        return json.loads(text, strict=False, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        return None


def clean(text: str) -> str:
    """`text` with U+FFFD for halves of surrogate pairs, which no client can read."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def call_of(value: Any, known: Mapping[str, Any] | None = None) -> Call | None:
    """The call that a JSON value stands for: {"name", "arguments"}, and what models make of it.

    With `known` nothing else counts than a known name with arguments: the value stood there unmarked.
    """
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if isinstance(function, dict):
        value = function
    name = function if isinstance(function, str) and "name" not in value else value.get("name")
    key = next((k for k in ("arguments", "parameters") if k in value), None)
    arguments = value.get(key) if key else None
    if isinstance(arguments, str):
        arguments = loads(arguments) if arguments.strip() else {}
        if arguments is None:
            return None
    if known is not None and (key is None or name not in known):
        return None
    if arguments is None:
        arguments = {}
    return named_call(name, arguments)


def named_call(name: object, arguments: object) -> Call | None:
    """A call, if a name and an object of arguments make one."""
    if not isinstance(name, str) or not 0 < len(name.strip()) <= MAX_NAME or not isinstance(arguments, dict):
        return None
    try:
        return Call(clean(name.strip()), clean(json.dumps(arguments, ensure_ascii=False)))
    except RecursionError:
        return None


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value
