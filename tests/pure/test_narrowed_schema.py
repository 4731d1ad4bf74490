"""What is added to a schema: that objects have no other properties, and that integers end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvasir.grammar.schema import LARGEST, narrowed

OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (OPEN, CLOSED),
        ({**OPEN, "additionalProperties": True}, {**OPEN, "additionalProperties": True}),
        ({**OPEN, "patternProperties": {"^x": {}}}, {**OPEN, "patternProperties": {"^x": {}}}),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"d": OPEN}, "$ref": "#/$defs/d"}, {"$defs": {"d": CLOSED}, "$ref": "#/$defs/d"}),
        ({**OPEN, "anyOf": [OPEN, {"required": ["b"]}]}, {**OPEN, "anyOf": [OPEN, {"required": ["b"]}]}),
        ({"allOf": [OPEN, OPEN]}, {"allOf": [OPEN, OPEN]}),
        ({"const": OPEN}, {"const": OPEN}),
        ({"enum": [OPEN]}, {"enum": [OPEN]}),
        (
            {"type": "object", "properties": {"properties": OPEN}},
            {"type": "object", "properties": {"properties": CLOSED}, "additionalProperties": False},
        ),
        (True, True),
        ({"type": "integer"}, {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST}),
        (
            {"type": ["integer", "null"], "minimum": 1},
            {"type": ["integer", "null"], "minimum": 1, "maximum": LARGEST},
        ),
        ({"type": "integer", "minimum": 10**20}, {"type": "integer", "minimum": 10**20}),
        ({"type": "integer", "enum": [10**20]}, {"type": "integer", "enum": [10**20]}),
        ({"type": "number"}, {"type": "number"}),
    ],
)  # fmt: skip
def test_narrowed(given: Any, made: Any) -> None:
    assert json.loads(narrowed(json.dumps(given))) == made
