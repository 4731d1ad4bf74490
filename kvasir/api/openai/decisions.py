"""/v1/decisions and /v1/systemone: closed questions about one input, answered by probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from kvasir.api import ollama
from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.labels import LETTERS, Question, Read, Reader, request
from kvasir.api.openai.messages import text_of
from kvasir.api.openai.parts import JSON, Stamp, broken, encode, name_of
from kvasir.api.words import json_name, short
from kvasir.chat import ChatRequest, Event
from kvasir.errors import KvasirError, UsageError

MAX_QUESTIONS = 400
MAX_OPTIONS = len(LETTERS)
Kind = Literal["predicate", "choice", "score"]


@dataclass(frozen=True)
class Option:
    """An answer that may be given.  `told`: how the client wrote its value, if not as text."""

    value: str
    description: str = ""
    told: bool | float | None = None


@dataclass(frozen=True)
class Asking:
    """One question: a predicate (two options, the first of which is "it holds"), a choice, or a score, whose
    options are levels from the lowest up.  `name`: what its answer is filed under.
    """

    kind: Kind
    name: str | None
    instructions: str
    options: tuple[Option, ...]

    def text(self, state: str) -> str:
        """What the model reads.  The state goes first, so that it is computed once for all questions."""
        lines = [
            f"{letter}. {option.value}{f': {option.description}' if option.description else ''}"
            for letter, option in zip(LETTERS, self.options, strict=False)
        ]
        options = "\n".join(lines)
        return (
            f"{state}\n\n---\n{self.instructions}\n\n{options}\n\nAnswer with the letter of one option only."
        )


@dataclass(frozen=True)
class Asked:
    """Decisions that are wanted.  `systemone`: in which of the two shapes they are told."""

    model: str
    state: str
    questions: tuple[Asking, ...]
    systemone: bool
    instructions: str = ""
    tenant: str = ""
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()
    stream: bool = False
    media_type: str = JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """A question each."""
        return tuple(each for each, _ in self._made(model))

    def reply(self, model: Loaded, load_s: float) -> Reply:
        asked = replace(self, model=self.model or name_of(model))
        return Reply(asked, Reader([ids for _, ids in self._made(model)]), Stamp.new("decision-"))

    def _made(self, model: Loaded) -> list[tuple[ChatRequest, tuple[int, ...]]]:
        known: dict[str, int] = {}
        return [request(model, self._question(asking), known) for asking in self.questions]

    def _question(self, asking: Asking) -> Question:
        letters = LETTERS[: len(asking.options)]
        return Question(asking.text(self.state), letters, self.instructions, self.tenant)


class Reply:
    """Decisions on their way out.  Mutable: it gathers what the reader reads."""

    def __init__(self, asked: Asked, reader: Reader, stamp: Stamp):
        self._asked, self._reader, self._stamp = asked, reader, stamp

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        return b""

    def line(self, event: Event) -> bytes:
        self._reader.take(event)
        return b""

    def end(self) -> bytes:
        return self.whole()

    def broken(self, error: KvasirError) -> bytes:
        return broken(error)

    def take(self, event: Event) -> None:
        self._reader.take(event)

    def whole(self) -> bytes:
        reads = self._reader.reads()
        pairs = list(zip(self._asked.questions, reads, strict=True))
        n_input, n_cached = sum(r.n_prompt for r in reads), sum(r.n_cached for r in reads)
        usage: dict[str, Any] = {
            "input_tokens": n_input,
            "input_tokens_details": {"cached_tokens": n_cached, "cache_write_tokens": n_input - n_cached},
            "output_tokens": 0,
        }
        head: dict[str, Any] = {"id": self._stamp.id, "model": self._asked.model}
        if not self._asked.systemone:
            details = {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": n_input}
            return encode(
                {**head, "answers": [listed(q, r) for q, r in pairs], "usage": {**usage, **details}}
            )
        diagnostics = {q.name: {"label_mass": r.mass, "argmax_is_label": r.is_label} for q, r in pairs}
        answers = {q.name: filed(q, r) for q, r in pairs}
        return encode(
            {**head, "object": "systemone", "answers": answers, "usage": usage, "diagnostics": diagnostics}
        )


def listed(asking: Asking, read: Read) -> dict[str, Any]:
    """An answer as /v1/decisions tells it."""
    head = {"type": asking.kind, "name": asking.name}
    if asking.kind == "predicate":
        return {**head, "probability": read.probabilities[0]}
    pairs = list(zip(asking.options, read.probabilities, strict=True))
    if asking.kind == "choice":
        values = [o.value if o.told is None else o.told for o in asking.options]
        shares = [{"value": v, "probability": p} for v, p in zip(values, read.probabilities, strict=True)]
        return {**head, "choice": values[read.best], "probabilities": shares, "confidence": read.confidence}
    levels = [{"value": i, "label": o.value, "probability": p} for i, (o, p) in enumerate(pairs)]
    return {**head, "score": expected(read), "probabilities": levels, "confidence": read.confidence}


def filed(asking: Asking, read: Read) -> dict[str, Any]:
    """An answer as /v1/systemone tells it."""
    if asking.kind == "predicate":
        return {"type": "noul", "noul": read.probabilities[0]}
    if asking.kind == "choice":
        shares = {o.value: p for o, p in zip(asking.options, read.probabilities, strict=True)}
        head: dict[str, Any] = {"type": "choice", "choice": asking.options[read.best].value}
    else:
        shares = {str(i): p for i, p in enumerate(read.probabilities)}
        legend = {str(i): option.value for i, option in enumerate(asking.options)}
        head = {"type": "score", "score": expected(read), "legend": legend}
    return {**head, "probabilities": shares, "confidence": read.confidence}


def expected(read: Read) -> float:
    """The level to be expected: it may lie between two."""
    return sum(i * p for i, p in enumerate(read.probabilities))


# -- bodies ---------------------------------------------------------------------------------------


class SystemoneBody(msgspec.Struct):
    state: Any = None
    questions: dict[str, Any] | None = None
    model: str | None = None
    instructions: str | None = None
    cache_salt: str | None = None
    keep_alive: int | float | str | None = None


class DecisionsBody(msgspec.Struct):
    input: Any = None
    questions: list[Any] | None = None
    model: str | None = None
    instructions: str | None = None
    cache_salt: str | None = None
    keep_alive: int | float | str | None = None


def parse_systemone(sent: Sent) -> Asked:
    """What the body of /v1/systemone asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, SystemoneBody)
    if body.state is None:
        raise UsageError("state is required")
    asked = body.questions or {}
    questions = tuple(_systemone(name, q, f"questions.{short(name)[1:-1]}") for name, q in asked.items())
    return _asked(body, values, SystemoneBody, shown(body.state, "state"), questions, True)


def parse_decisions(sent: Sent) -> Asked:
    """What the body of /v1/decisions asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, DecisionsBody)
    if body.input is None:
        raise UsageError("input is required")
    questions = tuple(_decision(q, f"questions[{i}]") for i, q in enumerate(body.questions or ()))
    return _asked(body, values, DecisionsBody, shown(body.input, "input"), questions, False)


def _asked(
    body: SystemoneBody | DecisionsBody,
    values: Mapping[str, Any],
    shape: type[msgspec.Struct],
    state: str,
    questions: tuple[Asking, ...],
    systemone: bool,
) -> Asked:
    if not 0 < len(questions) <= MAX_QUESTIONS:
        raise UsageError(f"questions must hold 1 to {MAX_QUESTIONS} questions")
    return Asked(
        model=body.model or "",
        state=state,
        questions=questions,
        systemone=systemone,
        instructions=body.instructions or "",
        tenant=body.cache_salt or "",
        keep_alive_s=None if body.keep_alive is None else ollama.keep_alive(body.keep_alive),
        warnings=wishes.told(values, shape),
    )


def shown(content: Any, where: str) -> str:
    """An input as the model reads it: a text as it is, messages or parts by their text, the rest as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(isinstance(e, Mapping) and "type" in e for e in content):
        parts = [e for e in content if e.get("type") != "message"]
        if len(parts) == len(content):
            return text_of(content, where)
    if isinstance(content, list) and content and all(_is_message(e) for e in content):
        turns = (
            f"{e['role']}: {text_of(e['content'], f'{where}[{i}].content')}" for i, e in enumerate(content)
        )
        return "\n\n".join(turns)
    return json.dumps(content, ensure_ascii=False, indent=2)


def _is_message(given: Any) -> bool:
    return (
        isinstance(given, Mapping)
        and isinstance(given.get("role"), str)
        and isinstance(given.get("content"), str | list)
    )


def _systemone(name: str, given: Any, where: str) -> Asking:
    kind, instructions = _head(given, where, ("choice", "score", "noul"))
    criteria = given.get("criteria")
    if kind == "noul":
        told = criteria if isinstance(criteria, Mapping) else {}
        return _predicate(name, instructions, told.get("true"), told.get("false"))
    if kind == "choice":
        if not isinstance(criteria, Mapping):
            raise UsageError(f"{where}.criteria must be an object of options, got {json_name(criteria)}")
        options = [Option(key, _description(value)) for key, value in criteria.items()]
    else:
        if not isinstance(criteria, list):
            raise UsageError(f"{where}.criteria must be an array of levels, got {json_name(criteria)}")
        options = [Option(_description(level)) for level in criteria]
    return Asking(
        "choice" if kind == "choice" else "score", name, instructions, _some(options, f"{where}.criteria")
    )


def _decision(given: Any, where: str) -> Asking:
    kind, instructions = _head(given, where, ("predicate", "choice", "score"))
    name = given.get("name")
    if name is not None and not isinstance(name, str):
        raise UsageError(f"{where}.name must be of type string")
    if kind == "predicate":
        return _predicate(name, instructions, None, None)
    key, label = ("choices", "value") if kind == "choice" else ("levels", "label")
    listed = given.get(key)
    if not isinstance(listed, list):
        raise UsageError(f"{where}.{key} must be an array, got {json_name(listed)}")
    options = []
    for i, each in enumerate(listed):
        held = each if isinstance(each, Mapping) else {label: each}
        value = held.get(label)
        if not isinstance(value, str | bool | int | float):
            raise UsageError(f"{where}.{key}[{i}].{label} must be of type string")
        description = _description(held.get("description"))
        if isinstance(value, str):
            options.append(Option(value, description))
        else:
            options.append(Option(json.dumps(value), description, value))
    return Asking(
        "choice" if kind == "choice" else "score", name, instructions, _some(options, f"{where}.{key}")
    )


def _head(given: Any, where: str, kinds: Sequence[str]) -> tuple[str, str]:
    """The type of a question and what it asks."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} must be an object, got {json_name(given)}")
    kind, instructions = given.get("type"), given.get("instructions")
    if kind not in kinds:
        told = short(kind) if isinstance(kind, str) else json_name(kind)
        raise UsageError(f"{where}.type must be one of {', '.join(kinds)}, got {told}")
    for name in ("images", "files"):
        if given.get(name):
            raise UsageError(f"{where}.{name} is not supported: this model reads text only")
    if not instructions:
        raise UsageError(f"{where}.instructions must be a text that is not empty")
    return str(kind), shown(instructions, f"{where}.instructions")


def _predicate(name: str | None, instructions: str, true: Any, false: Any) -> Asking:
    options = (Option("yes", _description(true)), Option("no", _description(false)))
    return Asking("predicate", name, instructions, options)


def _description(given: Any) -> str:
    return given if isinstance(given, str) else "" if given is None else json.dumps(given, ensure_ascii=False)


def _some(options: Sequence[Option], where: str) -> tuple[Option, ...]:
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise UsageError(f"{where} must hold 2 to {MAX_OPTIONS} options, got {len(options)}")
    if len({option.value for option in options}) < len(options) or not all(o.value for o in options):
        raise UsageError(f"{where} must hold options that differ and are not empty")
    return tuple(options)
