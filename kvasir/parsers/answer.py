"""One answer taken apart as it comes: thoughts, text and calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import field

from kvasir.chat import ToolPiece
from kvasir.parsers.marks import PAIRS, Pair, State
from kvasir.parsers.parts import Call, Part, Said, Thought, Tools, Writer
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.syntax import ARGUMENTS, JSON_NAME, Syntax
from kvasir.records import dataclass

JSON_CALL = Syntax(('{"name": ', JSON_NAME, ', "arguments": ', ARGUMENTS, "}"), single=True)
Calls = tuple[Call, ...] | None  # None: what came is no call


@dataclass(frozen=True)
class Family:
    """How the models of a family write their answers.

    `calls` reads what stands behind one of the marks `opens`; `bare`, what may be a call without a mark at
    the beginning of a text.  A family that is unlike the others has a `run` of its own.
    `marks`: all marks that may be special tokens, and must be seen.  `call_id` makes the id of a call.
    `valid_id`: what ids the template takes, all if empty.  `levels`: other words for how hard to think.
    `syntax`: how calls look that the model is made to write; `variants`, where a template holds a text.
    """

    name: str
    opens: tuple[str, ...] = ()
    calls: Callable[[Reader, str, Tools], Steps[Calls]] | None = None
    bare: Callable[[Reader, Tools], Steps[Calls]] | None = None
    marks: tuple[str, ...] = ()
    run: Callable[[Reader, Writer, Tools, State], Steps[None]] | None = None
    pair: Pair = PAIRS[0]
    syntax: Syntax = JSON_CALL
    valid_id: str = ""
    levels: tuple[tuple[str, str], ...] = ()
    variants: tuple[tuple[str, Syntax], ...] = ()
    call_id: Callable[[], str] = field(default=lambda: "call_" + letters(8))


def letters(count: int, of: str = string.ascii_lowercase + string.digits) -> str:
    """That many letters by chance."""
    return "".join(secrets.choice(of) for _ in range(count))


class Answer:
    """The parts of one answer (mutable).

    `push` takes text as it comes, with the family's marks in it, and gives the parts that are certain;
    `finish` gives the rest.  All parts, joined, are the same for every cutting of the text.  Nothing is lost:
    what looked like a call and is none is text.  Without tools nothing is a call.
    """

    def __init__(self, family: Family, tools: Tools, state: State, max_calls: int | None = None):
        self._reader, self._writer = Reader(), Writer(max_calls)
        run = family.run or _plain(family)
        self._steps = run(self._reader, self._writer, tools, state)
        self._family = family
        self._advance()

    @property
    def n_calls(self) -> int:
        return self._writer.n_calls

    @property
    def full(self) -> bool:
        """Whether the answer has all calls that it may have; nothing follows then."""
        return self._writer.full

    def push(self, text: str) -> list[Part]:
        if text:
            self._reader.feed(text)
            self._advance()
        return self._writer.taken()

    def finish(self, cut: bool = False) -> list[Part]:
        """`cut`: the answer did not end by itself."""
        if not self._reader.ended:
            self._reader.ended, self._reader.cut = True, cut
            self._advance()
            self._writer.flush()
        return self._writer.taken()

    def _advance(self) -> None:
        next(self._steps, None)


def piece(number: int, call: Call, id: str) -> ToolPiece:
    """A whole call as one piece."""
    return ToolPiece(number, id, call.name, call.arguments, last=True)


def _plain(family: Family) -> Callable[[Reader, Writer, Tools, State], Steps[None]]:
    """A family whose answers are a thought, then text with calls in it."""

    def run(reader: Reader, writer: Writer, tools: Tools, state: State) -> Steps[None]:
        thinking = state == "open"
        while thinking or (yield from _begins(reader, family.pair)):
            yield from _thought(reader, writer, family, tools)
            thinking = False
        yield from _text(reader, writer, family, tools)

    return run


def _begins(reader: Reader, pair: Pair) -> Steps[bool]:
    """Whether a thought comes next; its mark is read."""
    begun = reader.begin()
    yield from reader.space()
    if (yield from reader.accept(pair.open)):
        reader.commit(begun)
        return True
    reader.undo(begun)
    return False


def _thought(reader: Reader, writer: Writer, family: Family, tools: Tools) -> Steps[None]:
    """A thought to its end, and the space behind it.

    A call in a thought counts when the answer ends with it; else the model only thinks of calling.
    """
    yield from reader.space()
    marks = Marks((family.pair.close, *(family.opens if tools else ())))
    while True:
        text, mark = yield from reader.until(marks)
        writer.text(Thought, text)
        if mark == family.pair.close:
            writer.drop()
            yield from reader.space()
            return
        if mark:
            kept = yield from _last_calls(reader, family, mark, tools)
            if isinstance(kept, str):
                writer.text(Thought, kept)
                continue
            writer.drop()
            writer.calls(kept)
            return
        if not text:
            writer.flush()
            return


def _last_calls(reader: Reader, family: Family, mark: str, tools: Tools) -> Steps[Iterable[Call] | str]:
    """The calls with which the answer ends; if it goes on, or they are none, what was read, as text."""
    found: list[Call] = []
    begun, opened = reader.begin(), mark
    while opened:
        inner = reader.begin()
        calls = yield from _calls(reader, family, opened, tools)
        if calls is None:
            reader.undo(inner)
            break
        reader.commit(inner)
        found += calls
        yield from reader.space()
        opened = yield from reader.accept(*family.opens)
    else:
        ended = not (yield from reader.peek()) and not reader.cut
        if ended and family.pair.close not in reader.read(begun):
            reader.commit(begun)
            return found
    if family.pair.close in reader.read(begun):  # the thought ends within
        reader.undo(begun)
        return mark
    return mark + reader.commit(begun)


def _calls(reader: Reader, family: Family, mark: str, tools: Tools) -> Steps[Calls]:
    return (yield from family.calls(reader, mark, tools)) if family.calls else None


def _text(reader: Reader, writer: Writer, family: Family, tools: Tools) -> Steps[None]:
    """Text with calls in it, to the end of the answer."""
    if tools and family.bare:
        begun = reader.begin()
        yield from reader.space()
        calls = yield from family.bare(reader, tools)
        if calls is None:
            reader.undo(begun)
        else:
            reader.commit(begun)
            writer.calls(calls)
            yield from reader.space()
    marks = Marks(family.opens if tools else ())
    while True:
        text, mark = yield from reader.until(marks)
        writer.text(Said, text, trim=bool(tools))
        if mark:
            begun = reader.begin()
            calls = yield from _calls(reader, family, mark, tools)
            if calls is None:
                reader.undo(begun)
                writer.text(Said, mark, trim=bool(tools))
                continue
            reader.commit(begun)
            writer.drop()
            writer.calls(calls)
            yield from reader.space()
        elif not text:
            return
