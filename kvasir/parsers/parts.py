"""What an answer consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kvasir.parsers.reader import SPACE
from kvasir.records import dataclass

Tools = Mapping[str, Mapping[str, Any]]  # a tool's name -> the JSON schema of its arguments


@dataclass(frozen=True)
class Said:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Text of a thought."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call of a tool; `arguments`: a JSON object as text."""

    name: str
    arguments: str


Part = Said | Thought | Call


def tools_of(tools: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The tools of a request by name; those that are no functions with a name are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str) and name:
            schema = function.get("parameters")
            found[name] = schema if isinstance(schema, Mapping) else {}
    return found


class Writer:
    """Gathers parts (mutable).  Space at the end of a text or thought waits for what follows it."""

    def __init__(self, max_calls: int | None = None):
        self._parts: list[Part] = []
        self._kind: type[Said] | type[Thought] = Said
        self._space: list[str] = []
        self._max_calls = max_calls
        self.n_calls = 0

    @property
    def full(self) -> bool:
        """Whether there are as many calls as may be."""
        return self._max_calls is not None and self.n_calls >= self._max_calls

    def text(self, kind: type[Said] | type[Thought], text: str, trim: bool = True) -> None:
        """A piece of text.  `trim`: `drop` may take the space at its end back."""
        if not text or self.full:
            return
        assert not self._space or kind is self._kind
        self._kind = kind
        bare = text.rstrip(SPACE) if trim else text
        if bare:
            self._add("".join((*self._space, bare)))
            self._space = []
        if len(bare) < len(text):
            self._space.append(text[len(bare) :])

    def drop(self) -> None:
        """The space at the end is between two parts, and goes."""
        self._space = []

    def flush(self) -> None:
        """The space at the end belongs to the text."""
        if self._space:
            self._add("".join(self._space))
            self._space = []

    def calls(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if not self.full:
                self._parts.append(call)
                self.n_calls += 1

    def taken(self) -> list[Part]:
        """The parts since the last time."""
        parts, self._parts = self._parts, []
        return parts

    def _add(self, text: str) -> None:
        last = self._parts[-1] if self._parts else None
        if isinstance(last, self._kind):
            self._parts[-1] = self._kind(last.text + text)
        else:
            self._parts.append(self._kind(text))
