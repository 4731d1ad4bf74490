"""From the bytes of a request to typed values, with errors that name the field and what it should be."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from kvasir.api.words import json_name, short
from kvasir.errors import UsageError

T = TypeVar("T")
QUOTES = "'\""
JSON_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
EXPECTED = re.compile(r"^Expected `([^`]*)`, got `([^`]*)`(?: - at `\$\.?(.*)`)?$")
UNKNOWN = re.compile(r"^Invalid (?:enum )?value (.*?)(?: - at `\$\.?([^`]*)`)?$", re.DOTALL)
MISSING = re.compile(r"^Object missing required field `([^`]*)`(?: - at `\$\.?(.*)`)?$")


def decode(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises UsageError for everything else: no body, no JSON, not UTF-8, half a surrogate pair, NaN, numbers
    out of range, nesting beyond a thousand.
    """
    if not raw:
        raise UsageError("missing request body", hint="send a JSON object")
    try:
        value = msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise UsageError(f"the body is not valid UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"the body is not valid JSON: {str(error).replace(' - at `$`', '')}") from None
    if not isinstance(value, dict):
        raise UsageError(f"the body must be a JSON object, got {json_name(value)}")
    return value


def typed(values: dict[str, Any], shape: type[T]) -> T:
    """`values` as the msgspec type `shape`.  Raises UsageError with the field, its type and what came."""
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise UsageError(_plain(str(error))) from None
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None


def unknown(values: dict[str, Any], shape: type[msgspec.Struct]) -> tuple[str, ...]:
    """A warning for every field that `shape` does not have."""
    extra = [name for name in values if name not in shape.__struct_encode_fields__]
    return tuple(f"unknown field {short(name)}" for name in extra)


def _plain(message: str) -> str:
    if found := EXPECTED.match(message):
        want, got, where = found.groups()
        kinds = " or ".join(JSON_NAMES.get(kind, kind) for kind in want.split(" | ") if kind != "null")
        return f"{where or 'the body'} must be of type {kinds}, got {JSON_NAMES.get(got, got)}"
    if found := MISSING.match(message):
        name, where = found.groups()
        return f"{where + '.' if where else ''}{name} is required"
    if found := UNKNOWN.match(message):
        value, where = found.groups()
        return f"{where or 'the body'} has a value that is not known here: {short(value.strip(QUOTES))}"
    return message.replace("`", "").replace("$.", "")
