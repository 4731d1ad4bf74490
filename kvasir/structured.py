"""What form an answer must have: JSON, a schema, a regular expression, one of several texts, a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kvasir.errors import UsageError

Kind = Literal["json", "schema", "regex", "choice", "lark", "gbnf", "tools"]

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_CHOICES = 10_000
_NOUNS = {
    "json": "JSON", "schema": "the JSON schema", "regex": "the regular expression", "choice": "the choices",
    "lark": "the grammar", "gbnf": "the grammar", "tools": "what the tools take",
}  # fmt: skip


@dataclass(frozen=True)
class Constraint:
    """One form, as plain text: `json` any JSON object (no text), `schema` a JSON schema, `regex` what the
    whole answer matches, `choice` a JSON array of texts, `lark` and `gbnf` a grammar,
    `tools` the one of calls of tools (`grammar/tools.py`).

    Raises UsageError for what is malformed or too large; what only a compiler can tell comes when the answer
    is asked for.
    """

    kind: Kind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"the constraint {self.kind!r} is unknown", hint=", ".join(get_args(Kind)))
        if not isinstance(self.text, str):
            raise UsageError(f"{self.noun} must be text, got {type(self.text).__name__}")
        try:
            n_bytes = len(self.text.encode())
        except UnicodeEncodeError as error:
            raise UsageError(f"{self.noun} has a lone surrogate at character {error.start}") from None
        if n_bytes > MAX_BYTES:
            raise UsageError(f"{self.noun} has {n_bytes:,} bytes, the limit is {MAX_BYTES:,}")
        if self.kind == "schema" and not isinstance(_json(self.text, self.noun), dict | bool):
            raise UsageError(f"{self.noun} must be a JSON object")
        if self.kind == "choice":
            _check_choices(_json(self.text, self.noun))
        if self.kind in ("regex", "lark", "gbnf") and not self.text.strip():
            raise UsageError(f"{self.noun} is empty")

    @property
    def noun(self) -> str:
        """What errors call it."""
        return _NOUNS[self.kind]

    @property
    def choices(self) -> list[str]:
        """The texts of a `choice`."""
        return [str(text) for text in json.loads(self.text)]


@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form of an answer as vLLM spells it: exactly one of these.

    `json`: a schema, as a mapping or as text; `json_object`: any JSON object; `regex`: what the whole answer
    matches; `choice`: one of these texts; `grammar`: Lark, or GBNF (with ::=).
    Raises UsageError that names the field.
    """

    json: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        if self.choice is not None and not isinstance(self.choice, str):
            object.__setattr__(self, "choice", tuple(self.choice))
        given = [name for name in ("json", "regex", "choice", "grammar") if getattr(self, name) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            told = f"got {', '.join(given)}" if given else "none is given"
            raise UsageError(
                f"structured_outputs takes one of json, regex, choice, grammar, json_object; {told}"
            )
        try:
            object.__setattr__(self, "_constraint", self._made())
        except UsageError as error:
            raise UsageError(f"structured_outputs.{given[0]}: {error.message}", hint=error.hint) from None

    @property
    def constraint(self) -> Constraint:
        made = self.__dict__["_constraint"]
        assert isinstance(made, Constraint)
        return made

    def _made(self) -> Constraint:
        if self.json is not None:
            return schema(self.json)
        if self.regex is not None:
            return Constraint("regex", self.regex)
        if self.choice is not None:
            _check_choices(self.choice if isinstance(self.choice, str) else list(self.choice))
            return Constraint("choice", json.dumps(list(self.choice), ensure_ascii=False))
        if self.grammar is not None:
            return grammar(self.grammar)
        return Constraint("json")


def schema(given: object) -> Constraint:
    """A JSON schema, as text or as what JSON decodes to.  Raises UsageError."""
    if isinstance(given, str):
        return Constraint("schema", given)
    if not isinstance(given, Mapping | bool):
        raise UsageError(f"the JSON schema must be an object, got {type(given).__name__}")
    try:
        text = json.dumps(dict(given) if isinstance(given, Mapping) else given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from None
    return Constraint("schema", text)


def ollamas(form: object) -> StructuredOutputsParams | None:
    """Ollama's `format`: "json", or a JSON schema; null and "" ask for nothing.  Raises UsageError."""
    if form is None or form == "":
        return None
    if form != "json" and not isinstance(form, dict):
        raise UsageError('invalid format: it must be "json" or a JSON schema')
    try:
        return (
            StructuredOutputsParams(json_object=True)
            if form == "json"
            else StructuredOutputsParams(json=form)
        )
    except UsageError as error:
        reason = error.message.removeprefix("structured_outputs.json: ")
        raise UsageError(f"invalid format: {reason}", hint=error.hint) from None


def grammar(text: object) -> Constraint:
    """A grammar: GBNF where a line defines a rule by ::=, else Lark.  Raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"the grammar must be text, got {type(text).__name__}")
    return Constraint("gbnf" if re.search(r"(?m)^\s*[\w-]+[ \t]*::=", text) else "lark", text)


def _check_choices(given: object) -> None:
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise UsageError("the choices must be an array of texts")
    if not 0 < len(given) <= MAX_CHOICES or not all(given):
        raise UsageError(f"the choices must be 1 to {MAX_CHOICES:,} texts that are not empty")


def _json(text: str, noun: str) -> Any:
    depth = deepest = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise UsageError(f"{noun} is nested {deepest:,} levels deep, the limit is {MAX_DEPTH}")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{noun} is not JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
