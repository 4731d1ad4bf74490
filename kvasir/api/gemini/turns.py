"""Contents and parts to the messages that a chat template takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvasir.api.gemini.body import Content, FunctionCall, FunctionResponse, Part
from kvasir.api.seal import opened
from kvasir.api.words import short
from kvasir.chat import Message, ToolCall
from kvasir.errors import UsageError

BETWEEN = "\n\n"  # between two texts of the user: each is a paragraph of its own
REFUSED = {
    "inline_data": "inlineData is not supported: models read text here",
    "file_data": "fileData is not supported: nothing is fetched, and models read text here",
    "executable_code": "executableCode is not supported: code does not run here",
    "code_execution_result": "codeExecutionResult is not supported: code does not run here",
    "tool_call": "toolCall is not supported: it is for tools that run at Google",
    "tool_response": "toolResponse is not supported: it is for tools that run at Google",
}


def system_text(content: Content | str | None) -> str:
    """The system instruction as one text.  Raises UsageError for parts that are none."""
    if content is None or isinstance(content, str):
        return content or ""
    return _texts(content.parts or (), "systemInstruction.parts")


def plain_text(content: Content, where: str) -> str:
    """A content of nothing but text.  Raises UsageError for other parts."""
    return _texts(content.parts or (), f"{where}.parts")


def turns(contents: Sequence[Content] | Content | None) -> tuple[Message, ...]:
    """The conversation; contents of one role that follow each other become one message.

    Raises UsageError with the place of a part that cannot stand there.
    """
    sent = [contents] if isinstance(contents, Content) else list(contents or ())
    if not any(content.parts for content in sent):
        raise UsageError("contents must hold at least one part")
    calls = _Calls()
    found: list[Message] = []
    for i, content in enumerate(sent):
        where = f"contents[{i}].parts"
        parts = content.parts or ()
        made = iter((_model(parts, where, calls),)) if content.role == "model" else _user(parts, where, calls)
        for each in made:
            if found and found[-1].role == each.role != "tool":
                found[-1] = _joined(found[-1], each)
            else:
                found.append(each)
    return tuple(found)


class _Calls:
    """The calls that no response has answered yet, so that both have one id.  Mutable."""

    def __init__(self) -> None:
        self._open: list[ToolCall] = []
        self._n = 0

    def called(self, call: FunctionCall) -> ToolCall:
        self._n += 1
        made = ToolCall(call.name, call.args or {}, call.id or f"call_{self._n}")
        self._open.append(made)
        return made

    def answered(self, response: FunctionResponse, where: str) -> ToolCall:
        """The call that this answers: the one with its id, else the first of its name."""
        for call in self._open:
            if (response.id == call.id) if response.id else (response.name == call.name):
                self._open.remove(call)
                return call
        which = f"id {short(response.id)}" if response.id else f"name {short(response.name)}"
        raise UsageError(f"{where}: no functionCall before it has the {which}, or it is answered already")


def _model(parts: Sequence[Part], where: str, calls: _Calls) -> Message:
    texts, thoughts, made, kept = [], [], [], ""
    for j, part in enumerate(parts):
        _checked(part, f"{where}[{j}]")
        kept = kept or opened(part.thought_signature or "")
        if part.function_call:
            made.append(calls.called(part.function_call))
        elif part.function_response:
            raise UsageError(f"{where}[{j}]: a functionResponse cannot stand in a model's content")
        elif part.thought:
            thoughts.append(part.text or "")
        else:
            texts.append(part.text or "")
    return Message("assistant", "".join(texts), "".join(thoughts) or kept, tuple(made))


def _user(parts: Sequence[Part], where: str, calls: _Calls) -> Iterator[Message]:
    """One user message, with a tool message in its place for every response of a function."""
    texts: list[str] = []
    n_responses = 0
    for j, part in enumerate(parts):
        place = f"{where}[{j}]"
        _checked(part, place)
        if part.function_call:
            raise UsageError(f"{place}: a functionCall cannot stand in a user's content")
        if part.function_response is None:
            texts.append(part.text or "")
            continue
        if texts:
            yield Message("user", BETWEEN.join(texts))
            texts = []
        call = calls.answered(part.function_response, place)
        content = _response(part.function_response, place)
        yield Message("tool", content, tool_name=call.name, tool_call_id=call.id)
        n_responses += 1
    if texts or not n_responses:
        yield Message("user", BETWEEN.join(texts))


def _response(response: FunctionResponse, where: str) -> str:
    """What a function gave, as text: Google's keys for a lone output are not shown to the model."""
    if response.parts:
        raise UsageError(f"{where}.functionResponse.parts is not supported: models read text here")
    value: object = response.response or {}
    if isinstance(value, dict) and len(value) == 1 and (key := next(iter(value))) in ("output", "result"):
        value = value[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(first: Message, then: Message) -> Message:
    between = BETWEEN if first.role == "user" and first.content and then.content else ""
    return replace(
        first,
        content=first.content + between + then.content,
        thinking=first.thinking + then.thinking,
        tool_calls=first.tool_calls + then.tool_calls,
    )


def _texts(parts: Sequence[Part], where: str) -> str:
    for j, part in enumerate(parts):
        _checked(part, f"{where}[{j}]")
        if part.function_call or part.function_response:
            raise UsageError(f"{where}[{j}] must be text")
    return BETWEEN.join(part.text for part in parts if part.text)


def _checked(part: Part, where: str) -> None:
    """Raises UsageError for a part that no model here can read, and for one that is two things."""
    for name, why in REFUSED.items():
        if getattr(part, name) is not None:
            raise UsageError(f"{where}.{why}", hint="send text")
    given = [each for each in (part.text, part.function_call, part.function_response) if each is not None]
    if len(given) > 1:
        raise UsageError(f"{where} must have one of text, functionCall, functionResponse, not several")
    if not given and not part.thought_signature:
        raise UsageError(f"{where} is empty", hint="give it text, functionCall or functionResponse")
