"""Qwen3-Coder and Qwen3.5.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Rome
    </parameter>
    </function>
    </tool_call>

Values are text, and become what the tool's schema says.  The outer mark is forgotten at times.
Source: the models' chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvasir.parsers import hermes
from kvasir.parsers.answer import Calls, Family
from kvasir.parsers.parts import Call, Tools
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.syntax import NAME, PARAMETERS, Pieces, Syntax
from kvasir.parsers.values import MAX_NAME, loads, named_call

OPEN, CLOSE = hermes.OPEN, hermes.CLOSE
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_NAME_ENDS, _VALUE_ENDS = Marks((">",)), Marks((PARAMETER_END,))
_INTEGER = re.compile(r"-?[0-9]{1,300}\Z")


def calls(reader: Reader, mark: str, tools: Tools) -> Steps[Calls]:
    """The calls between the outer marks; behind an inner one, that call."""
    found: list[Call] = []
    if mark == OPEN:
        yield from reader.space()
        if (yield from reader.peek()) == "{":
            return (yield from hermes.calls(reader, mark, tools))
        if not (yield from reader.accept(FUNCTION)):
            return None
    while True:
        call = yield from _call(reader, tools)
        if call is None:
            return None
        found.append(call)
        begun = reader.begin()
        yield from reader.space()
        if mark == OPEN and (yield from reader.accept(FUNCTION)):
            reader.commit(begun)
            continue
        if (yield from reader.closes(CLOSE)):
            reader.commit(begun)
            return tuple(found)
        reader.undo(begun)
        return tuple(found) if mark == FUNCTION else None


def _call(reader: Reader, tools: Tools) -> Steps[Call | None]:
    name, _ = yield from reader.before(_NAME_ENDS, MAX_NAME)
    properties = tools.get(name.strip(), {}).get("properties")
    schemas = properties if isinstance(properties, Mapping) else {}
    arguments: dict[str, Any] = {}
    while True:
        yield from reader.space()
        inner = yield from reader.accept(PARAMETER, FUNCTION_END)
        if inner == FUNCTION_END:
            return named_call(name, arguments)
        if not inner:
            return None
        parameter, named = yield from reader.before(_NAME_ENDS, MAX_NAME)
        text = (yield from _value(reader)) if named else None
        if text is None:
            return None
        arguments[parameter.strip()] = value_of(text, schemas.get(parameter.strip()))


def _value(reader: Reader) -> Steps[str | None]:
    """The text of a parameter.  Its end is what stands before another parameter or the function's end: other
    ends belong to the text.
    """
    parts = list[str]()
    while True:
        part, mark = yield from reader.before(_VALUE_ENDS)
        if not mark:
            return None
        parts.append(part)
        begun = reader.begin()
        yield from reader.space()
        follows = yield from reader.accept(PARAMETER, FUNCTION_END)
        reader.undo(begun)
        if follows:
            return "".join(parts).removeprefix("\n").removesuffix("\n")
        parts.append(mark)


def value_of(text: str, schema: object) -> Any:
    """`text` as the schema has it; where nothing fits, and where no schema is known, the text itself."""
    kinds = types_of(schema, 0)
    bare = text.strip()
    if "null" in kinds and bare in ("null", "None"):
        return None
    if "boolean" in kinds and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    if kinds & {"integer", "number"} and _INTEGER.match(bare):
        return int(bare)
    if "number" in kinds and isinstance(number := loads(bare), float):
        return number
    if kinds & {"object", "array"}:
        made = loads(bare)
        if (isinstance(made, dict) and "object" in kinds) or (isinstance(made, list) and "array" in kinds):
            return made
    return text


def types_of(schema: object, depth: int) -> set[str]:
    """The types that a schema allows, as far as it says."""
    if not isinstance(schema, Mapping) or depth > 4:
        return set()
    kinds = schema.get("type")
    found = {kinds} if isinstance(kinds, str) else {k for k in kinds or () if isinstance(k, str)}
    for name in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(name)
        for part in parts if isinstance(parts, list) else ():
            found |= types_of(part, depth + 1)
    return found


FORM: Pieces = (f"{OPEN}\n{FUNCTION}", NAME, ">\n", PARAMETERS, f"{FUNCTION_END}\n{CLOSE}")
QWEN_CODER = Family(
    "qwen coder",
    (OPEN, FUNCTION),
    calls,
    marks=(OPEN, CLOSE),
    syntax=Syntax(FORM, between="\n", plain=hermes.FORM),
)
