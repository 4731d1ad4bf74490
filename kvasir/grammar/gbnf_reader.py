"""GBNF as a tree: rules of letters, sequences, alternatives and repetitions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvasir.errors import UsageError
from kvasir.records import dataclass

MAX_NESTING = 40
MAX_RULES = 1_000
MAX_LETTERS = 64 << 10
MAX_TIMES = 10_000
_LAST = 0x10FFFF
_SKIPPED = re.compile(r"(?:[ \t]|#[^\n\r]*)*")
_SKIPPED_LINES = re.compile(r"(?:\s|#[^\n\r]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TIMES = re.compile(r"\{\s*(\d{1,9})\s*(,\s*(\d{1,9})?\s*)?\}")
_ESCAPES = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "\\": "\\",
    '"': '"',
    "[": "[",
    "]": "]",
    "-": "-",
    "^": "^",
    "/": "/",
}
_HEX = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class Chars:
    """One letter out of ranges of code points, ordered and apart."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Ref:
    name: str


@dataclass(frozen=True)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Rep:
    """`low` to `high` times; None: without end."""

    node: Node
    low: int
    high: int | None


Node = Chars | Ref | Seq | Alt | Rep
Rules = Mapping[str, Node]
ANY = Chars(((0, _LAST),))


def read_rules(text: str) -> Rules:
    """The rules by name.  Raises UsageError with the line and what was expected."""
    if len(text) > MAX_LETTERS:
        raise UsageError(f"the grammar has {len(text):,} letters, the limit for GBNF is {MAX_LETTERS:,}")
    rules = _Reader(text).rules()
    used = {name for node in rules.values() for name in _names(node)}
    if missing := sorted(({"root"} | used) - set(rules)):
        raise UsageError(f"the grammar has no rule {missing[0][:60]!r}")
    return rules


class _Reader:
    """A place in a text (mutable)."""

    def __init__(self, text: str):
        self.text, self.at = text, 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(lines=True)
        while self.at < len(self.text):
            name = self._take(_NAME, "the name of a rule")[0]
            self._skip()
            if not self.text.startswith("::=", self.at):
                raise self._wrong("::=")
            self.at += 3
            self._skip(lines=True)
            if name in found:
                raise UsageError(f"the grammar has two rules {name[:60]!r}")
            found[name] = self._alternatives(0)
            if len(found) > MAX_RULES:
                raise UsageError(f"the grammar has over {MAX_RULES:,} rules")
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                raise self._wrong("the end of the rule")
            self._skip(lines=True)
        return found

    def _alternatives(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            raise UsageError(f"the grammar is nested more than {MAX_NESTING} levels deep")
        parts = [self._sequence(depth)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self._skip(lines=True)
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while True:
            node = self._one(depth)
            if node is None:
                return parts[0] if len(parts) == 1 else Seq(tuple(parts))
            self._skip(lines=depth > 0)
            while (times := self._times()) is not None:
                node = Rep(node, *times)
                self._skip(lines=depth > 0)
            parts.append(node)

    def _one(self, depth: int) -> Node | None:
        mark = self.text[self.at : self.at + 1]
        if mark == '"':
            return self._literal()
        if mark == "[":
            return self._class()
        if mark == ".":
            self.at += 1
            return ANY
        if mark == "(":
            self.at += 1
            self._skip(lines=True)
            node = self._alternatives(depth + 1)
            if not self.text.startswith(")", self.at):
                raise self._wrong(")")
            self.at += 1
            return node
        if mark in ("<", "!"):
            raise self._wrong("letters (tokens by name or number are not supported)")
        named = _NAME.match(self.text, self.at)
        if named is None:
            return None
        self.at = named.end()
        return Ref(named[0])

    def _literal(self) -> Node:
        self.at += 1
        letters: list[Node] = []
        while not self.text.startswith('"', self.at):
            code = self._letter('"')
            letters.append(Chars(((code, code),)))
        self.at += 1
        return letters[0] if len(letters) == 1 else Seq(tuple(letters))

    def _class(self) -> Chars:
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        ranges = []
        while not self.text.startswith("]", self.at):
            low = high = self._letter("]")
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self._letter("]")
            if high < low:
                raise self._wrong("a range of letters in order")
            ranges.append((low, high))
        self.at += 1
        joined = _joined(ranges)
        joined = _others(joined) if negated else joined
        if not joined:
            raise self._wrong("letters between the brackets")
        return Chars(joined)

    def _letter(self, closing: str) -> int:
        if self.at >= len(self.text):
            raise self._wrong(closing)
        letter = self.text[self.at]
        self.at += 1
        if letter != "\\":
            return ord(letter)
        kind = self.text[self.at : self.at + 1]
        self.at += 1
        if kind in _HEX:
            digits = self.text[self.at : self.at + _HEX[kind]]
            self.at += _HEX[kind]
            if (
                len(digits) == _HEX[kind]
                and re.fullmatch("[0-9A-Fa-f]+", digits)
                and int(digits, 16) <= _LAST
            ):
                return int(digits, 16)
        elif kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        raise self._wrong("an escape such as \\n, \\\\, \\x41")

    def _times(self) -> tuple[int, int | None] | None:
        mark = self.text[self.at : self.at + 1]
        if mark in ("*", "+", "?") and mark:
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        if mark != "{":
            return None
        low, more, high = self._take(_TIMES, "{m}, {m,} or {m,n}").groups()
        least, most = int(low), int(high) if high else None if more else int(low)
        if least > MAX_TIMES or (most is not None and not least <= most <= MAX_TIMES):
            raise self._wrong(f"counts in order, at most {MAX_TIMES:,}")
        return least, most

    def _skip(self, lines: bool = False) -> None:
        found = (_SKIPPED_LINES if lines else _SKIPPED).match(self.text, self.at)
        assert found
        self.at = found.end()

    def _take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self._wrong(what)
        self.at = found.end()
        return found

    def _wrong(self, expected: str) -> UsageError:
        line = self.text.count("\n", 0, self.at) + 1
        there = self.text[self.at : self.at + 20]
        return UsageError(f"the grammar, line {line}: expected {expected}, got {there!r}")


def _names(node: Node) -> set[str]:
    if isinstance(node, Ref):
        return {node.name}
    if isinstance(node, Rep):
        return _names(node.node)
    return set() if isinstance(node, Chars) else {name for part in node.parts for name in _names(part)}


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


def _others(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    found, start = [], 0
    for low, high in ranges:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return (*found, *(((start, _LAST),) if start <= _LAST else ()))
