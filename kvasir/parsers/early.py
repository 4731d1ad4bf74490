"""Calls that must be made, told while their arguments are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from kvasir.chat import ToolPiece
from kvasir.parsers.answer import Family
from kvasir.parsers.parts import Tools
from kvasir.parsers.syntax import ARGUMENTS, Hole, Pieces
from kvasir.parsers.values import Scan

_HEX = "[0-9a-fA-F]"
_HIGH = rf"\\u[dD][89abAB]{_HEX}{{2}}"
_PLAIN = rf"[^\\]|\\[^u]|\\u(?![dD][89abAB]){_HEX}{{4}}"
_WHOLE = re.compile(rf"(?:{_PLAIN}|{_HIGH}(?:\\u{_HEX}{{4}}|[^\\]|\\[^u]))*", re.DOTALL)
_HALVES = re.compile(rf"({_HIGH}\\u[dD][c-fC-F]{_HEX}{{2}})|\\u[dD][89a-fA-F]{_HEX}{{2}}|(\\.)", re.DOTALL)
MAX_BEFORE = 2000  # letters before the arguments of a call


class Early:
    """Reads an answer that a grammar holds to calls, as its family writes them (mutable).

    What `push` gives are pieces of calls, as soon as they are certain.  An answer that begins otherwise, as
    with a thought, is none of its business: nothing has `begun` then, and the family's parser tells all.
    """

    def __init__(self, family: Family, tools: Tools, call_id: Callable[[], str]):
        syntax, self._call_id = family.syntax, call_id
        head = _before(syntax.call, tools)
        self._active = head is not None
        rest = syntax.call[syntax.call.index(ARGUMENTS) + 1 :] if head is not None else ()
        after = "".join(piece for piece in rest if isinstance(piece, str))
        self._first = re.compile(rf"[ \n]{{0,3}}{re.escape(syntax.begin)}{head}")
        self._next = re.compile(f"{re.escape(after + syntax.between)}{head}")
        self._text, self._n_fed = "", 0  # what is not told yet, and how much of it the scan has seen
        self._scan: Scan | None = None  # of the arguments that are being written
        self.n_calls = 0

    @property
    def begun(self) -> bool:
        """Whether it told of a call; then it tells of all, and what the family's parser finds is known."""
        return self.n_calls > 0

    def push(self, text: str) -> list[ToolPiece]:
        """What is certain with this further text."""
        self._text += text
        pieces: list[ToolPiece] = []
        while self._active and self._text:
            if self._scan is None:
                found = (self._next if self.begun else self._first).match(self._text)
                if not found:
                    self._active = len(self._text) < MAX_BEFORE
                    break
                name = next(each for each in found.groups() if each)
                name = str(json.loads(name)) if name.startswith('"') else name
                self._text, self._scan = self._text[found.end() :], Scan()
                pieces.append(ToolPiece(self.n_calls, self._call_id(), name))
                self.n_calls += 1
                continue
            stop, whole = self._scan.feed(self._text, self._n_fed)
            pieces += self._told(stop, whole is not None)
            if not whole:
                self._active = whole is None
                break
        return pieces

    def _told(self, stop: int, last: bool) -> list[ToolPiece]:
        """The arguments up to `stop`, without the half of an escape; all of them if they are whole."""
        found = _WHOLE.match(self._text, 0, stop)
        end = stop if last or found is None else found.end()
        shown = _HALVES.sub(lambda m: m[0] if m[1] or m[2] else "\\ufffd", self._text[:end])
        self._text, self._n_fed = self._text[end:], stop - end
        if last:
            self._scan = None
        return [ToolPiece(self.n_calls - 1, arguments=shown, last=last)] if shown or last else []


def _before(call: Pieces, tools: Tools) -> str | None:
    """A pattern for what stands before a call's arguments, its name a group; None for calls without any."""
    made: list[str] = []
    for piece in call:
        if piece is ARGUMENTS:
            return "".join(made)
        if isinstance(piece, str):
            made.append(re.escape(piece))
        elif piece is Hole.ID:
            made.append("[a-zA-Z0-9]{9}")
        elif piece in (Hole.NAME, Hole.JSON_NAME):
            names = [json.dumps(n, ensure_ascii=False) if piece is Hole.JSON_NAME else n for n in tools]
            made.append(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})")
        else:
            return None
    return None
