"""JSON schemas as they are meant: an object has the properties that its schema names, an integer ends."""

from __future__ import annotations

import json
from typing import Any

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_ONES = ("items", "additionalProperties")
LARGEST = 10**15 - 1
_COMBINING = ("anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties", "additionalProperties")


def narrowed(text: str) -> str:
    """The schema with `additionalProperties: false` wherever `properties` stand and no word on others, and
    with 15 digits where an integer has no bound: models that are lost write digits without end.

    The standard allows any others, and a small model, once it may, goes on inventing them; who writes the
    schema of an answer means those it names, and every other engine takes it so.  What is valid for this
    schema is valid for the other.  A schema that combines others (allOf, or alternatives beside properties)
    stays as it is: closed parts of a whole exclude each other.
    """
    schema = json.loads(text)
    return text if '"allOf"' in text else json.dumps(_narrowed(schema), ensure_ascii=False)


def _narrowed(schema: Any, part: bool = False) -> Any:
    """`part`: one of several that describe the same value."""
    if not isinstance(schema, dict):
        return schema
    mixed = "properties" in schema and any(name in schema for name in ("anyOf", "oneOf", "$ref"))
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _MAPS and isinstance(value, dict):
            made[name] = {key: _narrowed(inner) for key, inner in value.items()}
        elif name in _LISTS and isinstance(value, list):
            made[name] = [_narrowed(inner, part or mixed) for inner in value]
        elif name in _ONES:
            made[name] = _narrowed(value)
        else:
            made[name] = value
    if isinstance(schema.get("properties"), dict) and not part and not any(n in schema for n in _COMBINING):
        made["additionalProperties"] = False
    kinds = schema.get("type")
    if kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds and "number" not in kinds):
        _bound(made)
    return made


def _bound(schema: dict[str, Any]) -> None:
    """In place: bounds for an integer, unless those it has, or what else is said of it, leave no room."""
    if any(
        name in schema for name in ("multipleOf", "enum", "const", "exclusiveMinimum", "exclusiveMaximum")
    ):
        return
    low, high = schema.get("minimum", -LARGEST), schema.get("maximum", LARGEST)
    if isinstance(low, int | float) and isinstance(high, int | float) and low <= LARGEST and high >= -LARGEST:
        schema["minimum"], schema["maximum"] = low, high
