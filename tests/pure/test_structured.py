"""Descriptions of constraints: what is taken, and what is refused before anything is compiled."""

from __future__ import annotations

import json

import pytest

from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams
from kvasir.structured import MAX_BYTES, Constraint, StructuredOutputsParams, grammar, schema


def test_each_of_vllms_fields_becomes_a_constraint() -> None:
    object_schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    made = StructuredOutputsParams(json=object_schema).constraint
    assert made.kind == "schema" and list(json.loads(made.text)["properties"]) == ["b", "a"]
    assert StructuredOutputsParams(json='{"type": "object"}').constraint.text == '{"type": "object"}'
    assert StructuredOutputsParams(json_object=True).constraint == Constraint("json")
    assert StructuredOutputsParams(regex="a+").constraint == Constraint("regex", "a+")
    assert StructuredOutputsParams(choice=["é", 'a"b']).constraint.choices == ["é", 'a"b']
    assert StructuredOutputsParams(grammar='start: "a"').constraint.kind == "lark"
    assert StructuredOutputsParams(grammar='root ::= "a"').constraint.kind == "gbnf"
    assert SamplingParams(structured_outputs=StructuredOutputsParams(regex="a")).constraint is not None
    assert SamplingParams().constraint is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "takes one of json, regex, choice, grammar, json_object; none is given"),
        ({"json": {}, "regex": "a"}, "got json, regex"),
        ({"json": []}, r"structured_outputs.json: the JSON schema must be an object, got list"),
        ({"json": "[1]"}, "structured_outputs.json: the JSON schema must be a JSON object"),
        ({"json": "{"}, "structured_outputs.json: the JSON schema is not JSON"),
        ({"json": '{"minimum": NaN}'}, "NaN is not a JSON number"),
        ({"json": {"minimum": float("nan")}}, "the JSON schema is not JSON"),
        ({"json": {"const": object()}}, "the JSON schema is not JSON"),
        ({"json": '{"a":' * 65 + "1" + "}" * 65}, "65 levels deep, the limit is 64"),
        ({"json": '{"a":' * 40_000}, "40,000 levels deep"),
        ({"json": '{"minimum": 1' + "0" * 10_000 + "}"}, "not JSON"),
        ({"json": json.dumps({"description": "x" * MAX_BYTES})}, "the limit is 262,144"),
        ({"regex": ""}, "structured_outputs.regex: the regular expression is empty"),
        ({"regex": 7}, "structured_outputs.regex: the regular expression must be text, got int"),
        ({"regex": "\ud800"}, "lone surrogate at character 0"),
        ({"choice": []}, "structured_outputs.choice: the choices must be 1 to 10,000 texts"),
        ({"choice": ["a", ""]}, "that are not empty"),
        ({"choice": "ab"}, "must be an array of texts"),
        ({"choice": [1]}, "must be an array of texts"),
        ({"choice": ["x"] * 10_001}, "1 to 10,000 texts"),
        ({"grammar": " "}, "structured_outputs.grammar: the grammar is empty"),
        ({"grammar": 1}, "the grammar must be text, got int"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(given, message) -> None:
    with pytest.raises(UsageError, match=message):
        StructuredOutputsParams(**given)


def test_a_constraint_is_checked_however_it_is_made() -> None:
    with pytest.raises(UsageError, match="'yaml' is unknown"):
        Constraint("yaml")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be an object, got int"):
        schema(5)
    with pytest.raises(UsageError, match="structured_outputs must be"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]
    assert schema(True).text == "true"
    assert grammar('start: "x::=y"').kind == "lark"
