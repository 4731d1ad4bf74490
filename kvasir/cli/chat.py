"""The chat in a terminal: what is typed, what slash commands do, and the conversation so far."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from kvasir.api.catalog import modelfile
from kvasir.api.create import Wish, make
from kvasir.api.options import NUMBERS, over_defaults, parse_options
from kvasir.chat import ChatRequest, Message
from kvasir.cli.answer import answer, sum_up
from kvasir.cli.list import table
from kvasir.cli.show import summary
from kvasir.cli.terminal import Waiting, Writer, width_of
from kvasir.errors import KvasirError, UsageError
from kvasir.runner.model import Model
from kvasir.settings import Settings
from kvasir.store.made import Made, Turn
from kvasir.store.modelfile import parameters_text
from kvasir.structured import StructuredOutputsParams

PLACEHOLDER = "Send a message (/? for help)"
FENCE = '"""'
HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load another model
  /save <model>   Keep this session as a model
  /list           List the models there are
  /clear          Forget the conversation
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin and to end a message of several lines.
"""
HELP_SET = """\
Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set the system message
  /set history           Keep what is typed
  /set nohistory         Do not keep what is typed
  /set wordwrap          Break lines between words
  /set nowordwrap        Do not
  /set verbose           Show timings after answers
  /set quiet             Do not
  /set format json       Answer in JSON
  /set noformat          Answer as the model likes
  /set think [level]     Let the model think first
  /set nothink           Do not
"""
HELP_SHOW = """\
Available Commands:
  /show info         What the model is
  /show license      The model's license
  /show modelfile    What makes the model again
  /show parameters   The parameters of this session
  /show system       The system message
  /show template     The model's chat template
"""
HELP_KEYS = """\
Available keyboard shortcuts:
  Ctrl + a / e      To the beginning / the end of the line
  Alt  + b / f      Back / forward a word
  Ctrl + k / u      Delete behind / before the cursor
  Ctrl + w          Delete the word before the cursor
  Ctrl + l          Clear the screen
  Ctrl + c          Stop the answer
  Ctrl + d          Exit
"""
COMMANDS = ("/set", "/show", "/load", "/save", "/list", "/clear", "/bye", "/exit", "/help", "/?")
TEXTS = {"set": HELP_SET, "show": HELP_SHOW, "shortcuts": HELP_KEYS}


class Keyboard(Protocol):
    """Where lines come from.  Raises EOFError at the end and KeyboardInterrupt on Ctrl-C."""

    def ask(self, continued: bool) -> str: ...
    def keep(self, on: bool) -> None: ...


class Typed:
    """A person at a terminal: line editing, and a history that outlives the program.  Mutable."""

    def __init__(self, history: Path):
        self._history, self._session = history, self._open(history)

    def ask(self, continued: bool) -> str:
        shown = HTML("" if continued else f'<style color="ansigray">{PLACEHOLDER}</style>')

        def placeholder() -> HTML:
            return HTML("") if get_app().is_done else shown  # what stays on the screen is what was typed

        return str(self._session.prompt("... " if continued else ">>> ", placeholder=placeholder))

    def keep(self, on: bool) -> None:
        self._session = self._open(self._history if on else None)

    def _open(self, path: Path | None) -> PromptSession[str]:
        bindings = KeyBindings()

        @bindings.add("c-d")
        def _leave(event: KeyPressEvent) -> None:
            if not event.current_buffer.text:
                event.app.exit(exception=EOFError)
            else:
                event.current_buffer.delete()

        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
            history = FileHistory(str(path)) if path else InMemoryHistory()
        except OSError:  # a home that cannot be written to must not prevent a chat
            history = InMemoryHistory()
        return PromptSession(history=history, key_bindings=bindings, reserve_space_for_menu=0)


def keyboard() -> Keyboard:
    """The terminal, with the user's history."""
    return Typed(Path.home() / ".kvasir" / "history")


class Chat:
    """A conversation with a model, and what `/set` has changed.  Mutable."""

    def __init__(self, model: Model, settings: Settings, given: dict[str, Any]):
        self.model, self.settings, self.given = model, settings, given
        self.messages: list[Message] = []
        self.system, self.raw = "", False
        self.think: bool | str | None = None
        self.form: StructuredOutputsParams | None = None
        self.verbose, self.wrap, self.hide_thinking = False, True, False
        self.adapter = ""
        self._loaded: Model | None = None  # by /load; ours to close
        self._keyboard: Keyboard | None = None

    @property
    def _made(self) -> Made:
        """What the model adds to its weights."""
        return self.model.info.made or Made("")

    def talk(self, keyboard: Keyboard) -> int:
        """Reads and answers until /bye or the end of the input."""
        self._keyboard = keyboard
        if self.model.prompter.template is None and not self.raw:
            print("This model has no chat template: it continues each text and remembers nothing.")
        try:
            while True:
                try:
                    text = self._read(keyboard)
                except KeyboardInterrupt:
                    print("Use Ctrl + d or /bye to exit.\n")
                    continue
                except EOFError:
                    return 0
                try:
                    if not self._take(text):
                        return 0
                except KvasirError as error:
                    print(f"{error}\n", file=sys.stderr)
        finally:
            if self._loaded:
                self._loaded.close()

    def _read(self, keyboard: Keyboard) -> str:
        """One message: a line, or what stands between two fences."""
        line = keyboard.ask(False)
        start = line.find(FENCE)
        if start < 0 or not (line.startswith(FENCE) or line.startswith("/set system")):
            return line
        head, rest = line[:start], line[start + len(FENCE) :]
        while FENCE not in rest:
            rest += "\n" + keyboard.ask(True)
        return head + rest.partition(FENCE)[0].strip("\n")

    def _take(self, text: str) -> bool:
        """Does what was typed; False to leave."""
        words = text.split()
        if not words:
            return True
        if not words[0].startswith("/"):
            self._say(text)
            return True
        name = words[0]
        if name in ("/bye", "/exit"):
            return False
        actions: dict[str, Callable[[list[str], str], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/list": lambda rest, _: print(table("") + "\n"),
            "/clear": self._clear,
            "/help": lambda rest, _: print(TEXTS.get(rest[0].lstrip("/"), HELP) if rest else HELP),
        }
        actions["/?"] = actions["/help"]
        if name not in actions:
            near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
            known = "is not supported yet" if name in COMMANDS else "is unknown"
            hint = f"did you mean {near[0]}?" if near and name not in COMMANDS else "type /? for help"
            raise UsageError(f"the command {name[:40]!r} {known}", hint=hint)
        actions[name](words[1:], text.partition(" ")[2].strip())
        return True

    # -- talking ----------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        options = parse_options(over_defaults(self._made.parameters, self.given))
        params = replace(options.params, structured_outputs=self.form)
        plain = self.raw or self.model.prompter.template is None
        asked = [*self.messages, Message("user", text)]
        start = [Message("system", self.system)] if self.system else []
        request = ChatRequest(
            params=params,
            messages=() if plain else (*start, *asked),
            prompt=text if plain else None,
            think=self.think,
            parse=not plain,
            max_context=options.max_context,
            adapter=self.adapter,
        )
        writer = Writer(sys.stdout, width_of(sys.stdout) if self.wrap and not self.form else None)
        try:
            said = answer(self.model, request, writer, Waiting("thinking"), self.hide_thinking)
        except UsageError as error:
            raise UsageError(error.message, hint="/clear forgets the conversation") from None
        self.messages = [*asked, Message("assistant", said.text)]
        sum_up(said, 0.0, self.verbose, params)
        print()

    # -- slash commands ---------------------------------------------------------------------------

    def _clear(self, rest: list[str], text: str) -> None:
        self.messages = []
        print("Cleared session context\n")

    def _load(self, rest: list[str], text: str) -> None:
        if len(rest) != 1:
            raise UsageError("/load takes one model", hint="/list shows them")
        waiting = Waiting(f"loading {rest[0]}")
        try:
            model = Model.load(
                rest[0], threads=self.settings.threads, kv_format=self.settings.kv, progress=waiting.say
            )
        finally:
            waiting.stop()
        if self._loaded:
            self._loaded.close()
        self.model = self._loaded = model
        self.messages, self.adapter = [], ""
        print(f"Loaded {model.info.name}\n")

    def _save(self, rest: list[str], text: str) -> None:
        if len(rest) != 1:
            raise UsageError("/save takes a name", hint="/save NAME keeps this session as a model")
        turns = tuple(Turn(m.role, m.content) for m in self.messages)
        wish = Wish(
            name=rest[0],
            base=self.model.info.name,
            system=self.system or None,
            parameters=self.given,
            messages=(*self._made.messages, *turns) or None,
        )
        for _ in make(wish):
            pass
        print(f"Created new model '{rest[0]}'\n")

    def _set(self, rest: list[str], text: str) -> None:
        what = rest[0] if rest else ""
        told = {
            **{
                "verbose": "Set 'verbose' mode.",
                "quiet": "Set 'quiet' mode.",
                "wordwrap": "Set 'wordwrap' mode.",
            },
            **{
                "nowordwrap": "Set 'nowordwrap' mode.",
                "history": "History is kept.",
                "nohistory": "History is off.",
            },
            **{"think": "Set 'think' mode.", "nothink": "Set 'nothink' mode."},
        }
        if what == "parameter":
            self._set_parameter(rest[1:])
        elif what == "system":
            self.system = text.partition(" ")[2].strip().strip('"')
            print("Set system message.\n")
        elif what in ("format", "noformat"):
            if what == "format" and rest[1:] != ["json"]:
                raise UsageError(
                    "/set format takes json", hint="`kvasir run MODEL --format FILE` takes a schema"
                )
            self.form = StructuredOutputsParams(json_object=True) if what == "format" else None
            print(f"Set format to '{rest[1]}' mode.\n" if self.form else "Disabled format.\n")
        elif what in told:
            self._switch(what, rest[1:])
            print(told[what] + "\n")
        else:
            near = difflib.get_close_matches(what, [*told, "parameter", "system"], 1)
            hint = f"did you mean /set {near[0]}?" if near else "type /? set for help"
            raise UsageError(f"/set {what[:40]} is unknown", hint=hint)

    def _switch(self, what: str, rest: list[str]) -> None:
        if what in ("verbose", "quiet"):
            self.verbose = what == "verbose"
        elif what.endswith("wordwrap"):
            self.wrap = what == "wordwrap"
        elif what.endswith("history"):
            if self._keyboard:
                self._keyboard.keep(what == "history")
        else:
            if what == "think" and "thinking" not in self.model.info.capabilities:
                raise UsageError(f"{self.model.info.name} does not support thinking")
            self.think = (rest[0] if rest else True) if what == "think" else False

    def _set_parameter(self, rest: list[str]) -> None:
        if len(rest) < 2:
            names = ", ".join((*NUMBERS, "stop"))
            raise UsageError("/set parameter takes a name and a value", hint=f"the names are {names}")
        name, given = rest[0], rest[1:]
        if name == "stop":
            value: Any = given
        elif name in NUMBERS:
            try:
                value = float(given[0])
            except ValueError:
                raise UsageError(f"{given[0][:40]!r} is not a number") from None
            value = int(value) if value.is_integer() else value
        else:
            near = difflib.get_close_matches(name, NUMBERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join((*NUMBERS, 'stop'))}"
            raise UsageError(f"the parameter {name[:40]!r} is unknown", hint=hint)
        parse_options({**self.given, name: value})
        self.given[name] = value
        print(f"Set parameter '{name}' to '{' '.join(given)}'\n")

    def _show(self, rest: list[str], text: str) -> None:
        info, template = self.model.info, self.model.prompter.template
        what = rest[0] if rest else "info"
        if what == "info":
            print(summary(info))
        elif what == "license":
            print(info.license or "No license is recorded.")
        elif what == "parameters":
            told = parameters_text({**self._made.parameters, **self.given})
            print(told or "None were set; Ollama's defaults hold.")
        elif what == "system":
            print(self.system or self._made.system or "No system message was set.")
        elif what == "template":
            print(template.source if template else "The model has no chat template.")
        elif what == "modelfile":
            print(modelfile(info), end="")
        else:
            raise UsageError(f"/show {what[:40]} is unknown", hint="type /? show for help")
        print()
