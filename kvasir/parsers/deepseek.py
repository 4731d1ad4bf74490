"""DeepSeek V3, R1, V3.1, and what was distilled from R1.

V3 and R1:

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    ```json
    {"city": "Rome"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1:

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

Source: the models' chat templates.
"""  # noqa: E501

from __future__ import annotations

from kvasir.parsers.answer import Calls, Family
from kvasir.parsers.parts import Call, Tools
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.syntax import ARGUMENTS, NAME, Syntax
from kvasir.parsers.values import MAX_NAME, json_text, loads, named_call

ALL_BEGIN, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE, FENCE_END = "```json", "```"
_SEP, _LINE = Marks((SEP,)), Marks(("\n",))


def calls(reader: Reader, mark: str, tools: Tools) -> Steps[Calls]:
    """All calls to the mark that ends them; behind a call's own mark, that one."""
    found: list[Call] = []
    opened = mark if mark == BEGIN else ""
    while True:
        if not opened:
            yield from reader.space()
            opened = yield from reader.accept(BEGIN, ALL_END)
            if opened != BEGIN:
                ended = opened or not (yield from reader.peek())
                return tuple(found) if found and ended else None
        call = yield from _call(reader)
        if call is None:
            return None
        found.append(call)
        if mark == BEGIN:
            return tuple(found)
        opened = ""


def _call(reader: Reader) -> Steps[Call | None]:
    name, separated = yield from reader.before(_SEP, MAX_NAME)
    if not separated:
        return None
    fenced = name.strip() == "function"
    if fenced:
        name, _ = yield from reader.before(_LINE, MAX_NAME)
        yield from reader.space()
        if not (yield from reader.accept(FENCE)):
            return None
    yield from reader.space()
    text = yield from json_text(reader)
    call = named_call(name, loads(text)) if text else None
    yield from reader.space()
    if call is None or (fenced and not (yield from reader.closes(FENCE_END))):
        return None
    yield from reader.space()
    return call if (yield from reader.closes(END)) else None


_FENCED = (BEGIN + "function" + SEP, NAME, f"\n{FENCE}\n", ARGUMENTS, f"\n{FENCE_END}{END}")
DEEPSEEK = Family(
    "deepseek",
    (ALL_BEGIN, BEGIN),
    calls,
    marks=(ALL_BEGIN, ALL_END, BEGIN, SEP, END),
    syntax=Syntax((BEGIN, NAME, SEP, ARGUMENTS, END), begin=ALL_BEGIN, end=ALL_END),
    variants=((FENCE, Syntax(_FENCED, begin=ALL_BEGIN, between="\n", end=ALL_END)),),
)
