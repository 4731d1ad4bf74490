"""What form an answer must have: `response_format`, vLLM's `structured_outputs`, and its old `guided_*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kvasir.api.words import json_name, short
from kvasir.errors import UsageError
from kvasir.structured import StructuredOutputsParams

KINDS = ("json", "regex", "choice", "grammar", "json_object")


class Formed(Protocol):
    """A body's fields that say it."""

    response_format: dict[str, Any] | None
    structured_outputs: dict[str, Any] | None
    guided_json: Any
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def form(body: Formed) -> StructuredOutputsParams | None:
    """The form that the body asks for.  Raises UsageError, also where it asks in two ways."""
    guided = {name: value for name in KINDS if (value := getattr(body, f"guided_{name}", None)) is not None}
    asked = {
        "response_format": of_format(body.response_format, "response_format"),
        "structured_outputs": _structured(body.structured_outputs),
        **{f"guided_{name}": _made(f"guided_{name}", {name: value}) for name, value in guided.items()},
    }
    found = {name: made for name, made in asked.items() if made}
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found)} cannot both say what form the answer has")
    return next(iter(found.values()), None)


def of_format(given: Mapping[str, Any] | None, where: str) -> StructuredOutputsParams | None:
    """A `response_format`.  Its schema stands under `json_schema`, or beside the type, as in responses."""
    kind = (given or {}).get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind != "json_schema":
        told = short(kind) if isinstance(kind, str) else json_name(kind)
        raise UsageError(f"{where}.type must be text, json_object or json_schema, got {told}")
    held = given.get("json_schema", given)
    if not isinstance(held, Mapping) or held.get("schema", held.get("schema_")) is None:
        raise UsageError(f"{where}.json_schema.schema is required")
    return _made(where, {"json": held.get("schema", held.get("schema_"))})


def _structured(given: Mapping[str, Any] | None) -> StructuredOutputsParams | None:
    kinds = {name: value for name, value in (given or {}).items() if value is not None}
    kinds.pop("disable_any_whitespace", None)
    if unknown := kinds.keys() - set(KINDS):
        name = short(sorted(unknown)[0])[1:-1]
        raise UsageError(f"structured_outputs.{name} is not supported", hint=f"there are {', '.join(KINDS)}")
    return _made("structured_outputs", kinds) if kinds else None


def _made(where: str, kinds: Mapping[str, Any]) -> StructuredOutputsParams:
    choice = kinds.get("choice")
    if choice is not None and not isinstance(choice, list):
        raise UsageError(f"{where}.choice must be an array of strings")
    try:
        return StructuredOutputsParams(**kinds)
    except UsageError as error:
        if where == "structured_outputs":
            raise
        reason = error.message.split(": ", 1)[-1]
        raise UsageError(f"{where}: {reason}", hint=error.hint) from None
