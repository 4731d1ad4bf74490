"""`kvasir run MODEL [PROMPT...]`: one answer, or a chat."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvasir.api.options import NUMBERS, Options, over_defaults, parse_options
from kvasir.chat import ChatRequest, Message, normalized
from kvasir.cli.answer import answer, sum_up
from kvasir.cli.parser import Parser
from kvasir.cli.terminal import Waiting, Writer, width_of
from kvasir.durations import keep_alive_s
from kvasir.errors import UsageError
from kvasir.runner.model import Model
from kvasir.settings import Settings
from kvasir.structured import MAX_BYTES, StructuredOutputsParams, ollamas

THINK: dict[str, bool | str] = {
    "true": True,
    "false": False,
    **{n: n for n in ("low", "medium", "high", "max")},
}
MAX_STDIN = 64 << 20
ADAPTER = "adapter"  # the name of the one that --adapter brings


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises KvasirError."""
    values = parser().read(_think_with_value(words))
    options = parse_options(_given(values))
    options = replace(options, params=replace(options.params, structured_outputs=form_of(values.format)))
    think = _checked(values)
    prompt = _prompt(values)
    if prompt is None and not sys.stdin.isatty():
        raise UsageError(
            "there is no prompt", hint="give one, or standard input, or run it in a terminal to chat"
        )
    waiting = Waiting(f"loading {values.model}")
    try:
        model = load(values.model, settings, waiting, values.draft, values.adapter)
    except BaseException:
        waiting.stop()
        raise
    try:
        options = with_own(model, values, options)
        if prompt is None:
            waiting.stop()
            return _chat(model, values, settings, think)
        return _once(model, values, options, prompt, think, waiting)
    finally:
        model.close()


def with_own(model: Model, values: argparse.Namespace, options: Options) -> Options:
    """`options` over what the model's own parameters say, if it was made with some."""
    if not model.info.made:
        return options
    given = {name: value for name, value in _given(values).items() if value is not None}
    own = parse_options(over_defaults(model.info.made.parameters, given))
    form = options.params.structured_outputs
    return replace(own, params=replace(own.params, structured_outputs=form))


def load(
    name: str, settings: Settings, waiting: Waiting, draft: str | None = None, adapter: str | None = None
) -> Model:
    """The model called `name`, with the settings' threads and cache format, and the adapter at a path."""

    def progress(stage: str) -> None:
        waiting.say(f"loading {name}: {stage}")

    adapters = {ADAPTER: adapter} if adapter else {}
    return Model.load(
        name,
        threads=settings.threads,
        kv_format=settings.kv,
        draft=draft,
        adapters=adapters,
        progress=progress,
    )


def parser() -> Parser:
    """The options of `kvasir run`."""
    it = Parser("run", "Ask a model, or chat with it.  Text on standard input goes before PROMPT.")
    it.add_argument("model", help="a name from `kvasir list`, a GGUF file, or a folder with safetensors")
    it.add_argument("prompt", nargs="*", help="what to ask; without it, a chat")
    it.add_argument("--system", help="the system message")
    it.add_argument(
        "--raw", action="store_true", help="the prompt goes in as it is, without the chat template"
    )
    it.add_argument(
        "--draft", metavar="MODEL", help="a smaller model with the same vocabulary that guesses ahead"
    )
    it.add_argument(
        "--adapter", metavar="PATH", help="a LoRA adapter of the model: a PEFT folder or a GGUF file"
    )
    it.add_argument("--verbose", action="store_true", help="print timings after the answer")
    it.add_argument("--think", metavar="LEVEL", help="think first: true, false, low, medium, high or max")
    it.add_argument("--nowordwrap", action="store_true", help="do not break lines between words")
    it.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before TEXT; may be repeated"
    )
    for name, option in NUMBERS.items():
        flag = "--" + name.replace("_", "-")
        kind = "N" if option.whole else "X"
        it.add_argument(
            flag, dest=name, metavar=kind, type=_number, help=f"{option.help} (default {option.default})"
        )
    it.add_argument(
        "--keepalive", metavar="DURATION", help="taken for Ollama's sake; the model goes with the program"
    )
    it.add_argument("--format", metavar="FORM", help="answer in JSON: `json`, or a file with a JSON schema")
    it.add_argument("--hidethinking", action="store_true", help="do not show the model's thoughts")
    it.add_argument(
        "--dimensions", type=int, metavar="N", help="of an embedding model: the first N numbers, length one"
    )
    it.add_argument(
        "--truncate",
        nargs="?",
        const="true",
        choices=("true", "false"),
        help="of an embedding model: cut a text over the context",
    )
    it.add_argument("--insecure", action="store_true", help=argparse.SUPPRESS)
    return it


def _number(text: str) -> float | int:
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None


def _think_with_value(words: Sequence[str]) -> list[str]:
    """Ollama's --think may stand alone; its value comes behind = only."""
    end = list(words).index("--") if "--" in words else len(words)
    return ["--think=true" if word == "--think" and n < end else word for n, word in enumerate(words)]


def _given(values: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(values, name) for name in NUMBERS}
    return {**given, "stop": values.stop}


def _checked(values: argparse.Namespace) -> bool | str | None:
    """The value of --think.  Raises UsageError for it and for options that are known and not there yet."""
    if values.keepalive is not None:
        keep_alive_s(values.keepalive)
    if values.raw and values.system:
        raise UsageError("--raw sends the prompt as it is, so --system has no place", hint="leave one out")
    if values.think is None:
        return None
    if values.think not in THINK:
        raise UsageError(f"--think={values.think[:40]} is unknown", hint=f"it is one of {', '.join(THINK)}")
    return THINK[values.think]


def form_of(given: str | None) -> StructuredOutputsParams | None:
    """What --format asks for: `json`, a schema, or a file with one.  Raises UsageError."""
    if given is None or given.strip() in ("", "json"):
        return ollamas(given.strip() if given else None)
    if given.lstrip().startswith("{"):
        return StructuredOutputsParams(json=given)
    try:
        with Path(given).expanduser().open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--format {given[:60]!r} is neither `json` nor a file with a JSON schema that can be read",
            hint=getattr(error, "strerror", None) or "it is not UTF-8",
        ) from None
    try:
        return StructuredOutputsParams(json=text)
    except UsageError as error:
        raise UsageError(f"--format {given[:60]!r}: {error.message.partition(': ')[2]}") from None


def _prompt(values: argparse.Namespace) -> str | None:
    """Standard input, if it is no terminal, and the words behind the model; None when there is neither."""
    parts = list(values.prompt)
    if not sys.stdin.isatty():
        raw = sys.stdin.buffer.read(MAX_STDIN + 1)
        if len(raw) > MAX_STDIN:
            raise UsageError(f"standard input is longer than {MAX_STDIN >> 20} MB")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not valid UTF-8 (byte {error.start})", hint="convert it with iconv"
            ) from None
        parts = [text, *parts] if text.strip() else parts
    prompt = " ".join(parts)
    try:
        prompt.encode()
        (values.system or "").encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8") from None
    return prompt if prompt.strip() else None


def _once(
    model: Model,
    values: argparse.Namespace,
    options: Options,
    prompt: str,
    think: bool | str | None,
    waiting: Waiting,
) -> int:
    if model.is_embedding:
        waiting.stop()
        (found,) = model.embeddings([prompt], truncate=values.truncate == "true")
        if values.dimensions is not None and not 0 < values.dimensions <= len(found.values):
            raise UsageError(f"--dimensions must be between 1 and {len(found.values)}")
        cut = found.values[: values.dimensions]
        print(json.dumps(normalized(cut) if values.dimensions else cut))
        return 0
    request = first_request(model, options, prompt, values.system or "", values.raw, think)
    request = replace(request, adapter=ADAPTER if values.adapter else "")
    whole = values.nowordwrap or options.params.constraint is not None
    writer = Writer(sys.stdout, None if whole else width_of(sys.stdout))
    said = answer(model, request, writer, waiting, values.hidethinking)
    sum_up(said, model.load_s, values.verbose, options.params)
    return 0 if said.finished else 130


def first_request(
    model: Model, options: Options, prompt: str, system: str, raw: bool, think: bool | str | None
) -> ChatRequest:
    """A request for one answer.  Raises UsageError when the model cannot do what is wished."""
    if think and "thinking" not in model.info.capabilities:
        raise UsageError(f"{model.info.name} does not support thinking", hint="leave --think out")
    if raw or model.prompter.template is None:
        if system:
            raise UsageError(f"{model.info.name} has no chat template, so it takes no system message")
        return ChatRequest(params=options.params, prompt=prompt, max_context=options.max_context)
    start = (Message("system", system),) if system else ()
    return ChatRequest(
        params=options.params,
        messages=(*start, Message("user", prompt)),
        think=think,
        max_context=options.max_context,
        parse=True,
    )


def _chat(model: Model, values: argparse.Namespace, settings: Settings, think: bool | str | None) -> int:
    from kvasir.cli.chat import Chat, keyboard  # noqa: PLC0415  prompt_toolkit costs 0.2 s, and only a chat needs it

    chat = Chat(model, settings, {k: v for k, v in _given(values).items() if v is not None})
    chat.form = form_of(values.format)
    chat.system, chat.think, chat.raw = values.system or "", think, values.raw
    chat.hide_thinking = values.hidethinking
    chat.verbose, chat.wrap = values.verbose, not values.nowordwrap
    chat.adapter = ADAPTER if values.adapter else ""
    return chat.talk(keyboard())
