"""The grammar of an answer that must call a tool: the family's form, and arguments that fit the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from kvasir.errors import UsageError
from kvasir.grammar.compile import JSON_OPTIONS
from kvasir.grammar.schema import narrowed
from kvasir.parsers.answer import Family
from kvasir.parsers.parts import Tools
from kvasir.parsers.qwen_coder import types_of
from kvasir.parsers.syntax import Hole, Pieces
from kvasir.structured import Constraint, schema

OBJECT = '{"type": "object"}'
# A space at most between the parts of a call's JSON: what was not asked for is not padded.
CALL_OPTIONS = {**JSON_OPTIONS, "whitespace_pattern": r"\x20"}
_NOT_PLAIN = frozenset(
    {"pattern", "format", "minLength", "maxLength", "const", "not", "if", "anyOf", "oneOf", "allOf"}
)


def tool_constraint(
    family: Family,
    tools: Tools,
    choice: str,
    parallel: bool,
    token_id: Callable[[str], int | None],
    form: Constraint | None = None,
) -> Constraint | None:
    """The form of an answer that calls `choice`, once, or for "required" one or more of `tools`.

    For "auto" and "none" that of a text, `form`: JSON may then give way to calls, where they may be made.
    Marks that the vocabulary has are those tokens and no text.  Raises UsageError for a tool that is not
    there, and for schemas that are malformed.
    """
    may_call = choice == "auto" and tools and form is not None and form.kind in ("json", "schema")
    if choice in ("auto", "none") and not may_call:
        return form
    if not tools:
        raise UsageError("tool_choice asks for a call, and there are no tools")
    any_of_them = choice in ("required", "auto")
    if not any_of_them and choice not in tools:
        raise UsageError(f"tool_choice names {choice[:80]!r}, which is none of the tools")
    named = tools if any_of_them else {choice: tools[choice]}
    syntax, made = family.syntax, _Lark(family, token_id)
    calls = " | ".join(made.call(n, name, parameters) for n, (name, parameters) in enumerate(named.items()))
    many = parallel and any_of_them and not syntax.single
    pieces = [
        made.pieces(syntax.begin),
        f"( {calls} )" if not many else f"call ({made.pieces(syntax.between)} call)*",
        made.pieces(syntax.end),
    ]
    if many:
        made.rules.append(f"call: {calls}")
    before = f"({made.written(syntax.prelude)})? " if syntax.prelude else "SPACE? "
    answer = ""
    if may_call and form is not None:
        answer = (
            f" | {made.written(syntax.text_begin)} "
            f"{made.json('answer', json.loads(form.text or OBJECT), JSON_OPTIONS)}"
        )
    made.rules += [f"start: {before}({' '.join(pieces)}{answer})", "SPACE: /[ \\n]{1,3}/"]
    return Constraint("tools", "\n".join(reversed(made.rules)))


class _Lark:
    """The rules of one grammar (mutable)."""

    def __init__(self, family: Family, token_id: Callable[[str], int | None]):
        self.rules: list[str] = []
        self._form = family.syntax
        self._marks = {mark: token_id(mark) for mark in family.marks}
        self._cut = re.compile("|".join(map(re.escape, sorted(self._marks, key=len, reverse=True))) or "(?!)")

    def pieces(self, text: str) -> str:
        """A text of the form, its marks as tokens."""
        made, at = list[str](), 0
        for found in self._cut.finditer(text):
            token = self._marks[found[0]]
            if token is not None:
                made += [_literal(text[at : found.start()]), f"<[{token}]>"]
                at = found.end()
        return " ".join(piece for piece in (*made, _literal(text[at:])) if piece)

    def call(self, number: int, name: str, parameters: Mapping[str, Any]) -> str:
        """One tool's call; its rules are added."""
        checked = json.loads(schema({**parameters, "type": "object"}).text)
        if not parameters:
            checked["properties"] = {}
        form: Pieces = self._form.call
        if Hole.PARAMETERS in form and not _listable(checked):
            form = self._form.plain
        return self.written(form, number, name, checked)

    def written(self, form: Pieces, number: int = 0, name: str = "", parameters: Any = None) -> str:
        made = list[str]()
        for piece in form:
            if isinstance(piece, str):
                made.append(self.pieces(piece))
            elif piece is Hole.NAME:
                made.append(_literal(name))
            elif piece is Hole.JSON_NAME:
                made.append(_literal(json.dumps(name, ensure_ascii=False)))
            elif piece is Hole.ARGUMENTS:
                made.append(self.json(f"args_{number}", parameters))
            elif piece is Hole.PARAMETERS:
                made.append(self._parameters(number, parameters))
            else:
                terminal = "ID: /[a-zA-Z0-9]{9}/" if piece is Hole.ID else "THOUGHT: /(?s:.+)/"
                if terminal not in self.rules:
                    self.rules.append(terminal)
                made.append(terminal.partition(":")[0])
        return " ".join(piece for piece in made if piece)

    def json(self, rule: str, parameters: Any, options: Mapping[str, Any] = CALL_OPTIONS) -> str:
        """A rule for values of a JSON schema; its name."""
        if isinstance(parameters, bool):
            parameters = {} if parameters else {"not": {}}
        whole = {"x-guidance": options, **json.loads(narrowed(json.dumps(parameters)))}
        self.rules.append(f"{rule}: %json {json.dumps(whole)}")
        return rule

    def _parameters(self, number: int, parameters: Mapping[str, Any]) -> str:
        required = parameters.get("required") or ()
        made = list[str]()
        for n, (name, each) in enumerate(parameters["properties"].items()):
            value, begin = f"value_{number}_{n}", _literal(f"<parameter={name}>\n")
            if types_of(each, 0) != {"string"}:
                line = f'{begin} {self.json(value, each)} "\\n</parameter>\\n"'
            elif choices := each.get("enum"):
                one = " | ".join(_literal(text) for text in choices)
                line = f'{begin} ({one}) "\\n</parameter>\\n"'
            else:
                self.rules.append(f'{value}[suffix="</parameter>"]: /(?s:.*)/')
                line = f'{begin} {value} "\\n"'
            made.append(line if name in required else f"({line})?")
        return " ".join(made)


def _listable(parameters: Mapping[str, Any]) -> bool:
    """Whether values as text keep to the schema: each is a plain text, one of some, or never a text."""
    properties = parameters.get("properties", {})
    if not isinstance(properties, Mapping) or set(parameters) - {
        "type", "properties", "required", "additionalProperties", "title", "description", "$schema",
    }:  # fmt: skip
        return False
    return all(">" not in name and _plain(each) for name, each in properties.items())


def _plain(each: Any) -> bool:
    kinds = types_of(each, 0)
    if not kinds or not isinstance(each, Mapping) or "$ref" in json.dumps(each):
        return False
    if "string" not in kinds:
        return not ({"enum", "const"} & set(each))
    choices = each.get("enum")
    fits = isinstance(choices, list) and all(isinstance(c, str) and c and c == c.strip() for c in choices)
    return kinds == {"string"} and (fits or "enum" not in each) and not _NOT_PLAIN & set(each)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
