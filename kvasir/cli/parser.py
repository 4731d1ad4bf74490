"""argparse with our manners: one line on errors, near misses, options anywhere among the words."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from kvasir.errors import UsageError

OPTIONS = "--list-the-options-of-this-command"  # for completion


class Options(Exception):
    """Not an error: the options of a command, for who asked with OPTIONS."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names


class Parser(argparse.ArgumentParser):
    """The options of `kvasir COMMAND`.  Mutable, as argparse is."""

    def __init__(self, command: str, description: str):
        super().__init__(f"kvasir {command}", description=description, allow_abbrev=False)
        self._command = command

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"`kvasir help {self._command}` shows the options")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values in `words`.  Raises UsageError for what is unknown, missing or ill-typed."""
        if list(words) == [OPTIONS]:
            raise Options([o for action in self._actions for o in action.option_strings if o[:2] == "--"])
        values, extra = self.parse_known_intermixed_args(list(words))
        if extra:
            known = [o for action in self._actions for o in action.option_strings if o.startswith("--")]
            near = difflib.get_close_matches(extra[0].split("=")[0], known, 1)
            hint = f"did you mean {near[0]}?" if near else "words that begin with - go behind --"
            kind = "option" if extra[0].startswith("-") else "word"
            raise UsageError(f"unknown {kind} {extra[0][:60]!r}", hint=hint)
        return values
