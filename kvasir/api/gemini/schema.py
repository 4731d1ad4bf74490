"""Google's Schema, a part of OpenAPI 3.0 with types in capitals, to JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvasir.api.words import short
from kvasir.errors import UsageError

TYPES = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")
SIZES = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
PLAIN = ("title", "description", "default", "pattern", "minimum", "maximum", "required")
# Formats of JSON Schema; Google's others (int32, float, enum) say nothing about the text.
FORMATS = ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
MAX_DEPTH = 64


def json_schema(schema: Mapping[str, Any], where: str, depth: int = 0) -> dict[str, Any]:
    """The JSON schema that says what `schema` says, its properties in `propertyOrdering`.

    Raises UsageError with the place of what cannot be.
    """
    if depth > MAX_DEPTH:
        raise UsageError(f"{where} is nested over {MAX_DEPTH} levels deep")
    made: dict[str, Any] = {name: schema[name] for name in PLAIN if schema.get(name) is not None}
    made |= {name: _count(schema[name], f"{where}.{name}") for name in SIZES if schema.get(name) is not None}
    if kind := _type(schema.get("type"), f"{where}.type"):
        made["type"] = kind
    if schema.get("format") in FORMATS:
        made["format"] = schema["format"]
    if (values := schema.get("enum")) is not None:
        if not isinstance(values, list):
            raise UsageError(f"{where}.enum must be an array")
        made["enum"] = list(values)
    if (items := schema.get("items")) is not None:
        made["items"] = _inner(items, f"{where}.items", depth)
    if (options := schema.get("anyOf")) is not None:
        if not isinstance(options, list):
            raise UsageError(f"{where}.anyOf must be an array")
        made["anyOf"] = [_inner(each, f"{where}.anyOf[{i}]", depth) for i, each in enumerate(options)]
    if (more := schema.get("additionalProperties")) is not None:
        place = f"{where}.additionalProperties"
        made["additionalProperties"] = more if isinstance(more, bool) else _inner(more, place, depth)
    if (named := schema.get("properties")) is not None:
        made["properties"] = _named(named, schema.get("propertyOrdering"), f"{where}.properties", depth)
    for ours, theirs in (("$defs", "defs"), ("$defs", "$defs")):
        if (named := schema.get(theirs)) is not None:
            made[ours] = _named(named, None, f"{where}.{theirs}", depth)
    if reference := schema.get("ref") or schema.get("$ref"):
        made["$ref"] = reference
    return _nullable(made) if schema.get("nullable") is True else made


def _type(value: object, where: str) -> str | list[str] | None:
    if value is None or value == "TYPE_UNSPECIFIED":
        return None
    if isinstance(value, list):
        return [kind for each in value if isinstance(kind := _type(each, where), str)]
    if not isinstance(value, str) or value.upper() not in TYPES:
        said = short(value) if isinstance(value, str) else "something else"
        raise UsageError(f"{where} must be one of {', '.join(TYPES)}, got {said}")
    return value.lower()


def _count(value: object, where: str) -> int:
    """Google writes 64-bit numbers as strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise UsageError(f"{where} must be an integer from 0")


def _inner(value: object, where: str, depth: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be an object")
    return json_schema(value, where, depth + 1)


def _named(named: object, order: object, where: str, depth: int) -> dict[str, Any]:
    if not isinstance(named, Mapping):
        raise UsageError(f"{where} must be an object")
    first = [name for name in order if name in named] if isinstance(order, list) else []
    names = dict.fromkeys([*first, *named])
    return {name: _inner(named[name], f"{where}.{name}", depth) for name in names}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if "anyOf" in schema or kind is None:
        return {"anyOf": [schema, {"type": "null"}]}
    kinds = kind if isinstance(kind, list) else [kind]
    made = {**schema, "type": list(dict.fromkeys([*kinds, "null"]))}
    if "enum" in schema and None not in schema["enum"]:
        made["enum"] = [*schema["enum"], None]
    return made
