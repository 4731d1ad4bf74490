"""Mistral, Magistral, Devstral.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}}, ...]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}[TOOL_CALLS]now[ARGS]{}
    [TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Rome"}

The first is that of tokenizers before v11; v11 brought the names before the arguments, and for a while ids.
Ids have nine letters and digits: the models' templates refuse others.  Source: mistral-common.
"""

from __future__ import annotations

import re
import string

from kvasir.parsers.answer import Calls, Family, letters
from kvasir.parsers.bare import json_calls
from kvasir.parsers.parts import Tools
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.syntax import ARGUMENTS, ID, JSON_NAME, NAME, Syntax
from kvasir.parsers.values import MAX_NAME, json_text, loads, named_call

OPEN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_AFTER_NAME, _AFTER_ID = Marks((ARGS, CALL_ID, "{")), Marks((ARGS, "{"))
_NAME = re.compile(r'[^\s{}\[\]",]+\Z')


def calls(reader: Reader, mark: str, tools: Tools) -> Steps[Calls]:
    """The calls behind one mark."""
    yield from reader.space()
    if (yield from reader.peek()) in ("[", "{"):
        return (yield from json_calls(reader, None))
    name, after = yield from reader.before(_AFTER_NAME, MAX_NAME)
    if after == CALL_ID:
        _, after = yield from reader.before(_AFTER_ID, MAX_NAME)
    if not _NAME.match(name.strip()):
        return None
    if after == "{":
        reader.back(after)
    yield from reader.space()
    text = yield from json_text(reader)
    call = named_call(name.strip(), loads(text)) if text else None
    return (call,) if call else None


def call_id() -> str:
    """An id as the templates want it."""
    return letters(9, string.ascii_letters + string.digits)


_LISTED = ('{"name": ', JSON_NAME, ', "arguments": ', ARGUMENTS, "}")
MISTRAL = Family(
    "mistral",
    (OPEN,),
    calls,
    marks=(OPEN, ARGS, CALL_ID),
    call_id=call_id,
    valid_id="[a-zA-Z0-9]{9}",
    syntax=Syntax(_LISTED, begin=OPEN + "[", between=", ", end="]"),
    variants=(
        (CALL_ID, Syntax((OPEN, NAME, CALL_ID, ID, ARGS, ARGUMENTS))),
        (ARGS, Syntax((OPEN, NAME, ARGS, ARGUMENTS))),
        (OPEN + " [", Syntax(_LISTED, begin=OPEN + " [", between=", ", end="]")),
    ),
)
