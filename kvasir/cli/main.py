"""Chooses the command and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import difflib
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import kvasir
from kvasir.errors import KvasirError, UsageError
from kvasir.settings import SWITCHES, Settings, misspelled, read_settings

COMMANDS = {
    "run": "ask a model, or chat with it",
    "serve": "answer over HTTP, as Ollama does",
    "show": "what a model is, its plan, what this machine allows",
    "list": "the models there are",
    "cache": "the prefixes kept on disk: ls, pin, unpin, purge",
    "keys": "API keys for the server: add, ls, rm",
    "ps": "the models that the server has in memory",
    "stop": "have the server free a model",
    "top": "what the server is doing, live",
    "tune": "measure which kernels are fastest on this GPU",
    "create": "make a model of another, as a Modelfile says",
    "cp": "give a model a further name",
    "rm": "delete models",
    "pull": "(not yet) download a model",
    "push": "(not yet) upload a model",
    "completion": "completion for bash, zsh or fish",
}
ALIASES = {"ls": "list", "start": "serve"}
LATER = ("signin", "signout", "launch")
BROKEN_PIPE, INTERRUPTED = 141, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (the process's by default); its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        settings = read_settings()
        for line in misspelled():
            print(f"kvasir: {line}", file=sys.stderr)
        code = _dispatch(words, settings)
        sys.stdout.flush()
        return code
    except KvasirError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more; the interpreter's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("KVASIR_DEBUG", "0") != "0":
            raise
        return _fail(f"internal error: {type(error).__name__}: {error} (KVASIR_DEBUG=1 shows where)")


def _dispatch(words: list[str], settings: Settings) -> int:
    if not words or words[0] in ("help", "-h", "--help"):
        if len(words) < 2:
            print(overview())
            return 0
        words = [words[1], "--help"]
    if words[0] in ("--version", "-v", "version"):
        print(f"kvasir {kvasir.__version__}")
        return 0
    name = ALIASES.get(words[0], words[0])
    if name in LATER:
        raise UsageError(f"`kvasir {name}` is Ollama's and not here", hint="`kvasir help` shows what is")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "`kvasir help` shows the commands"
        raise UsageError(
            f"unknown {'option' if name.startswith('-') else 'command'} {name[:60]!r}", hint=hint
        )
    gc.disable()  # nothing that an import makes is garbage, and looking for some takes a tenth of the start
    module = import_module(f"kvasir.cli.{name}")
    gc.freeze()
    gc.enable()
    code: int = module.command(words[1:], settings)
    return code


def overview() -> str:
    """The help text."""
    from shutil import get_terminal_size  # noqa: PLC0415  only this text needs the two
    from textwrap import wrap  # noqa: PLC0415

    lines = [
        "Kvasir runs language models.",
        "",
        "  kvasir run mead                  chat with the built-in model",
    ]
    lines += ['  kvasir run mead "What is DNS?"   ask it one thing', "", "Commands:"]
    lines += [f"  {name:12}{what}" for name, what in COMMANDS.items()]
    lines += ["  help        this text; `kvasir help COMMAND` for a command's options", "", "Environment:"]
    at = max(len(s.name) for s in SWITCHES) + 4
    columns = max(60, get_terminal_size().columns)
    for s in SWITCHES:
        told = f"  {s.name:{at - 2}}{s.form}: {s.help}"
        lines += wrap(told, columns, subsequent_indent=" " * at, break_on_hyphens=False)
    return "\n".join(lines)


def _fail(message: str) -> int:
    try:
        print(f"kvasir: {' '.join(message.split())}", file=sys.stderr)
    except (BrokenPipeError, UnicodeEncodeError):
        print(f"kvasir: {message!a}", file=sys.stderr)
    return 1
