"""gpt-oss: messages in channels.

    <|channel|>analysis<|message|>The user wants weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Rome"}<|call|>
    <|start|>assistant<|channel|>final<|message|>It is sunny.<|return|>

(without the line breaks).  The analysis is thought; a message with a recipient is a call; the final channel
is text, and so is a commentary without recipient: the model means it for the user.
Source: OpenAI's page on the harmony response format.
"""  # noqa: E501

from __future__ import annotations

import re

from kvasir.parsers.answer import Family
from kvasir.parsers.code import code_call
from kvasir.parsers.marks import CHANNEL, MESSAGE, State
from kvasir.parsers.parts import Call, Said, Thought, Tools, Writer
from kvasir.parsers.reader import Marks, Reader, Steps
from kvasir.parsers.syntax import ARGUMENTS, NAME, THOUGHT, Syntax
from kvasir.parsers.values import loads, named_call

START, END, RETURN, CALL, CONSTRAIN = "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"
MAX_HEAD = 512
_BODY_ENDS = Marks((END, RETURN, CALL, START, CHANNEL))
_HEAD_ENDS = Marks((MESSAGE, END, RETURN, CALL, START))
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


def run(reader: Reader, writer: Writer, tools: Tools, state: State) -> Steps[None]:
    """Messages, one after the other."""
    kinds = set[type[Said] | type[Thought]]()
    more = True
    while more:
        begun = reader.begin()
        head = yield from _head(reader)
        recipient = _RECIPIENT.search(head) if head else None
        if recipient is None:
            reader.commit(begun)
            channel = _CHANNEL.search(head) if head else None
            thinks = channel is not None and channel[1] == "analysis"
            if head is None:  # no message begins here, so this is text
                writer.text(Said, (yield from reader.accept(START, CHANNEL)), trim=False)
            more = yield from _body(reader, writer, Thought if thinks else Said, kinds)
            continue
        text, mark = yield from reader.before(_BODY_ENDS)
        if mark in (START, CHANNEL):
            reader.back(mark)
        whole, call = reader.commit(begun), _call(recipient[1], text, tools)
        if call:
            writer.calls((call,))
        else:
            writer.text(Said, whole, trim=False)
        more = mark != ""


def _head(reader: Reader) -> Steps[str | None]:
    """What stands before the text of a message, with the mark behind it; None, and nothing read, where no
    message begins.  A head that the end cuts off is read and says nothing.
    """
    begun = reader.begin()
    yield from reader.space()
    first = yield from reader.accept(START, CHANNEL, "to=", MESSAGE)
    mark = first
    if first and first != MESSAGE:
        _, mark = yield from reader.before(_HEAD_ENDS, MAX_HEAD)
        if not mark and first != "to=" and not (yield from reader.peek()):
            reader.commit(begun)
            return ""
    if mark == MESSAGE:
        return reader.commit(begun)
    reader.undo(begun)
    return None


def _body(
    reader: Reader,
    writer: Writer,
    kind: type[Said] | type[Thought],
    kinds: set[type[Said] | type[Thought]],
) -> Steps[bool]:
    """The text of a message as it comes; False at the end of the answer."""
    fresh = kind in kinds
    while True:
        text, mark = yield from reader.until(_BODY_ENDS)
        if text:
            writer.text(kind, "\n" + text if fresh else text, trim=False)
            kinds.add(kind)
            fresh = False
        if mark in (START, CHANNEL):
            reader.back(mark)
        if mark or not text:
            return mark != ""


def _call(recipient: str, text: str, tools: Tools) -> Call | None:
    """A call of a function of the request.  What is no JSON is code, for a tool that takes it."""
    name = recipient.removeprefix("functions.")
    if not tools or (name == recipient and name not in tools):
        return None
    value = loads(text) if text.strip() else {}
    return code_call(name, text, tools) if value is None else named_call(name, value)


_FORM = (CHANNEL + "commentary to=functions.", NAME, f" {CONSTRAIN}json{MESSAGE}", ARGUMENTS)
_FINAL = (CHANNEL + "final" + MESSAGE,)
_THOUGHT = (CHANNEL + "analysis" + MESSAGE, THOUGHT, END + START + "assistant")
HARMONY = Family(
    "harmony",
    run=run,
    levels=(("max", "high"), ("minimal", "low")),
    marks=(START, END, RETURN, CALL, CONSTRAIN, CHANNEL, MESSAGE),
    syntax=Syntax(_FORM, single=True, prelude=_THOUGHT, text_begin=_FINAL, thinks_within=True),
)
