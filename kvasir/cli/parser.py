"""argparse with our manners: one line on errors, near misses, options anywhere among the words."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

from kvasir.errors import UsageError

NEAR = 0.65  # how like a word must be to be what was meant
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
        """argparse's message in our words."""
        hint = f"`kvasir help {self._command}` shows the options"
        if missing := re.fullmatch(r"the following arguments are required: ([^,]+)(, .*)?", message):
            name, *others = missing[1].split("|")
            what = f"one of {', '.join((name, *others))}" if others else f"a {name.upper()}"
            raise UsageError(f"`kvasir {self._command}` needs {what}", hint=hint)
        if wrong := re.match(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w.-]+", wrong[3])
            near = difflib.get_close_matches(wrong[2], choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(choices)}"
            raise UsageError(f"`kvasir {self._command}` knows no {wrong[2][:60]!r}", hint=hint)
        message = re.sub(r"argument (\S+): invalid int value: ", r"\1 takes a whole number, not ", message)
        raise UsageError(message, hint=hint)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values in `words`.  Raises UsageError for what is unknown, missing or ill-typed."""
        if list(words) == [OPTIONS]:
            raise Options([o for action in self._actions for o in action.option_strings if o[:2] == "--"])
        values, extra = self.parse_known_intermixed_args(list(words))
        if extra:
            known = [o for action in self._actions for o in action.option_strings if o.startswith("--")]
            near = difflib.get_close_matches(extra[0].split("=")[0], known, 1, NEAR)
            hint = f"did you mean {near[0]}?" if near else "words that begin with - go behind --"
            kind = "option" if extra[0].startswith("-") else "word"
            raise UsageError(f"unknown {kind} {extra[0][:60]!r}", hint=hint)
        return values
