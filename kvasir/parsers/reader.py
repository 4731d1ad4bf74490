"""Text as it comes, for parsers that are written as if all of it were there."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # a parser: it yields where it needs more text, and returns what it found
SPACE = " \t\r\n"
_SPACE = re.compile(rf"[{SPACE}]*")


class Marks:
    """Texts to look for.  None begins another, so that no more than one letter is ever in doubt."""

    def __init__(self, marks: Iterable[str]):
        self.all = tuple(dict.fromkeys(marks))
        assert not any(a != b and b.startswith(a) for a in self.all for b in self.all), self.all
        self._longest = max(map(len, self.all), default=0)
        self._beginnings = frozenset(mark[:n] for mark in self.all for n in range(1, len(mark)))
        self._pattern = re.compile("|".join(map(re.escape, self.all)) if self.all else r"(?!)")

    def find(self, text: str, start: int) -> re.Match[str] | None:
        return self._pattern.search(text, start)

    def held(self, text: str, start: int) -> int:
        """How many letters at the end may be the beginning of a mark."""
        for at in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[at:] in self._beginnings:
                return len(text) - at
        return 0


class Reader:
    """The text of one answer (mutable).

    Each method that yields waits until what it gives is certain, whatever comes; so a parser finds the same
    in every cutting of a text.  `begin` and `undo` bracket an attempt.
    """

    def __init__(self) -> None:
        self.text, self.at = "", 0  # what is before `at` has been read
        self.ended = self.cut = False  # cut: it ended because it was too long
        self._taken: list[str] = []
        self._attempts = 0

    def feed(self, text: str) -> None:
        self.text, self.at = self.text[self.at :] + text, 0

    def take(self, count: int) -> str:
        """The next `count` letters, which are there."""
        taken = self.text[self.at : self.at + count]
        self.at += count
        if self._attempts:
            self._taken.append(taken)
        return taken

    def back(self, mark: str) -> None:
        """Gives the mark back that was read last."""
        self.at -= len(mark)
        if self._attempts:
            self._taken.pop()

    def begin(self) -> int:
        """From here on what is read can be given back by `undo`, until `commit`."""
        self._attempts += 1
        return len(self._taken)

    def read(self, begun: int) -> str:
        """What was read since `begin`."""
        return "".join(self._taken[begun:])

    def undo(self, begun: int) -> None:
        read = self.read(begun)
        if len(read) <= self.at:
            self.at -= len(read)
        else:
            self.text, self.at = read + self.text[self.at :], 0
        del self._taken[begun:]
        self._attempts -= 1

    def commit(self, begun: int) -> str:
        """Ends an attempt; what was read since."""
        read = self.read(begun)
        self._attempts -= 1
        if not self._attempts:
            self._taken.clear()
        return read

    def until(self, marks: Marks) -> Steps[tuple[str, str]]:
        """What comes before the next mark, and the mark, read too; or a part that holds none, and "".

        Both are empty at the end of the text only.
        """
        while True:
            if found := marks.find(self.text, self.at):
                return self.take(found.start() - self.at), self.take(len(found[0]))
            count = len(self.text) - self.at - (0 if self.ended else marks.held(self.text, self.at))
            if count or self.ended:
                return self.take(count), ""
            yield

    def before(self, marks: Marks, limit: int | None = None) -> Steps[tuple[str, str]]:
        """All that comes before the next mark, and the mark; "" for it when none comes within `limit`."""
        parts, size = list[str](), 0
        while True:
            part, mark = yield from self.until(marks)
            parts.append(part)
            size += len(part)
            if limit is not None and size > limit:
                return "", ""
            if mark or not part:
                return "".join(parts), mark

    def accept(self, *options: str) -> Steps[str]:
        """The one of `options` that comes next, and is read; "" when none does."""
        longest = max(map(len, options))
        while True:
            coming = self.text[self.at : self.at + longest]
            if found := next((option for option in options if coming.startswith(option)), ""):
                return self.take(len(found))
            if self.ended or not any(option.startswith(coming) for option in options):
                return ""
            yield

    def closes(self, mark: str) -> Steps[bool]:
        """Whether `mark` comes next, and is read; a text that ends before or within it counts too."""
        if (yield from self.accept(mark)):
            return True
        rest = self.text[self.at :] if self.ended and len(self.text) - self.at < len(mark) else None
        if rest is None or not mark.startswith(rest):
            return False
        self.take(len(rest))
        return True

    def peek(self) -> Steps[str]:
        """The next letter; "" at the end."""
        while self.at == len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def space(self) -> Steps[str]:
        """The space that comes next, read."""
        parts = list[str]()
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            parts.append(self.take(len(found[0])))
            if self.ended or self.at < len(self.text):
                return "".join(parts)
            yield
