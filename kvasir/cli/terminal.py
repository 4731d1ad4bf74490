"""What a person sees: answers as they come, words kept whole, a sign of life while a model loads."""

from __future__ import annotations

import shutil
import sys
import threading
import unicodedata
from collections.abc import Sequence
from typing import TextIO

PATIENCE_S = 0.3  # what is faster needs no sign of life
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Writer:
    """Writes pieces of text as they come.  With a `width` it breaks lines between words.  Mutable."""

    def __init__(self, out: TextIO, width: int | None = None):
        self._out, self._width = out, width
        self._column, self._word = 0, ""
        self.ends_line = True

    def write(self, text: str) -> None:
        if not text:
            return
        self.ends_line = text.endswith("\n")
        if self._width is None:
            self._out.write(text)
        else:
            for letter in text:
                self._letter(letter, self._width)
            if cells(self._word) > 20:  # scripts without spaces, long links: waiting for the end helps nobody
                self._flush_word(self._width)
        self._out.flush()

    def end(self) -> None:
        """Ends the line, if one is begun."""
        if self._width is not None:
            self._flush_word(self._width)
        if not self.ends_line:
            self._out.write("\n")
        self._out.flush()
        self._column, self.ends_line = 0, True

    def _letter(self, letter: str, width: int) -> None:
        if not letter.isspace():
            self._word += letter
            return
        self._flush_word(width)
        if letter == "\n":
            self._out.write("\n")
            self._column = 0
        elif self._column < width:
            self._out.write(letter)
            self._column += 1

    def _flush_word(self, width: int) -> None:
        size = cells(self._word)
        if self._column and self._column + size > width:
            self._out.write("\n")
            self._column = 0
        self._out.write(self._word)
        self._column = (self._column + size) % width if size else self._column
        self._word = ""


class Waiting:
    """A turning sign on standard error, with what is being done; only for a person.  Mutable."""

    def __init__(self, stage: str = "loading"):
        self.stage = stage
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._turn, daemon=True)
            self._thread.start()

    def say(self, stage: str) -> None:
        self.stage = stage

    def stop(self) -> None:
        """Takes the sign away; may be called more than once."""
        self._done.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _turn(self) -> None:
        if self._done.wait(PATIENCE_S):
            return
        n = 0
        while not self._done.wait(0.1):
            sys.stderr.write(f"\r\x1b[K{FRAMES[n % len(FRAMES)]} {self.stage}")
            sys.stderr.flush()
            n += 1
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def width_of(out: TextIO) -> int | None:
    """Columns of the terminal behind `out`; None when it is none."""
    return max(shutil.get_terminal_size().columns, 20) if out.isatty() else None


def cells(text: str) -> int:
    """Terminal columns that a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table: every column as wide as its widest cell, the last one as it is."""
    widths = [max(cells(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for *firsts, last in rows:
        padded = (cell + " " * (width - cells(cell)) for cell, width in zip(firsts, widths, strict=True))
        lines.append("    ".join((*padded, last)))
    return "\n".join(lines)


def human_bytes(n: int) -> str:
    """Bytes as Ollama's list writes them: 9.1 MB, 4.7 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n >= size:
            value = n / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{n} B"


def human_time(seconds: float) -> str:
    """How long ago: "3 weeks ago"."""
    return "Just now" if seconds < 1 else f"{human_span(seconds)} ago"


def human_span(seconds: float) -> str:
    """A length of time in its largest unit: "3 weeks"."""
    if seconds < 60:
        return "Less than a minute"
    for unit, size in (
        ("year", 31536000),
        ("month", 2592000),
        ("week", 604800),
        ("day", 86400),
        ("hour", 3600),
    ):
        if seconds >= size * (1 if unit == "hour" else 2) or (unit == "day" and seconds >= size):
            n = int(seconds // size)
            return f"{n} {unit}{'s' if n > 1 else ''}"
    n = int(seconds // 60)
    return f"{n} minute{'s' if n > 1 else ''}"
