"""OpenAI's messages and tools as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from kvasir.api.loaded import Loaded
from kvasir.api.words import json_name, short
from kvasir.chat import Message, ToolCall
from kvasir.errors import UsageError

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
MAX_TOOLS = 512


class Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class WireCall(msgspec.Struct):
    function: Function
    id: str | None = None
    type: str | None = None


class WireMessage(msgspec.Struct):
    role: str
    content: str | list[Any] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[WireCall] | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Tools:
    """The tools that may be called, and which must be: as `ChatRequest.tool_choice`."""

    tools: tuple[Mapping[str, Any], ...] = ()
    choice: str = "auto"


def able(
    model: Loaded, tools: Tools, think: bool | str | None, field: str
) -> tuple[tuple[Mapping[str, Any], ...], bool | str | None]:
    """The tools and the thinking that a request to this model has.

    Raises UsageError for a model that can do neither; `field`: what thinking was asked for with.
    """
    can = model.info.capabilities
    if tools.tools and "tools" not in can and tools.choice != "none":
        raise UsageError("tools: this model's template does not support tools")
    if think and "thinking" not in can:
        raise UsageError(f"{field}: this model does not think", hint="leave it out, or say none")
    return tools.tools if "tools" in can else (), think if "thinking" in can else None


def messages_of(sent: Sequence[WireMessage]) -> tuple[Message, ...]:
    """The conversation.  Raises UsageError that names the message and what is wrong with it."""
    if not sent:
        raise UsageError("messages must hold at least one message")
    made = tuple(_message(m, f"messages[{i}]") for i, m in enumerate(sent))
    return with_tool_names(made)


def with_tool_names(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Results of tools with the name of what was called, where only its id was sent."""
    names: dict[str, str] = {}
    made = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls if call.id}
        if message.role == "tool" and not message.tool_name:
            message = replace(message, tool_name=names.get(message.tool_call_id, ""))
        made.append(message)
    return tuple(made)


def text_of(content: str | Sequence[Any] | None, where: str) -> str:
    """A content: a text, or parts of text.  Raises UsageError for parts of anything else, by their type."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind in TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise UsageError(f"{where}[{i}].text must be of type string")
            texts.append(part["text"])
        elif isinstance(kind, str):
            raise UsageError(f"{where}[{i}].type is {short(kind)}: this model reads text only")
        else:
            raise UsageError(f"{where}[{i}] must be an object with a type, got {json_name(part)}")
    return "".join(texts)


def call_of(name: str, arguments: str | Mapping[str, Any] | None, id: str, where: str) -> ToolCall:
    """A call of a tool.  Raises UsageError for arguments that are no JSON object."""
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments) if arguments.strip() else {}
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise UsageError(f"{where}.arguments must be a JSON object as text") from None
    if not isinstance(arguments or {}, Mapping):
        raise UsageError(f"{where}.arguments must be a JSON object as text, got {json_name(arguments)}")
    return ToolCall(name, arguments or {}, id)


def tools_of(given: Sequence[Mapping[str, Any]] | None, choice: Any) -> Tools:
    """`tools` and `tool_choice` of chat completions.  Raises UsageError."""
    if len(given or ()) > MAX_TOOLS:
        raise UsageError(f"tools must hold at most {MAX_TOOLS} tools")
    tools = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(given or ()))
    names = [tool["function"]["name"] for tool in tools]
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    if kind == "allowed_tools" and isinstance(choice, Mapping):
        inner = choice.get("allowed_tools", choice)
        allowed = inner.get("tools") if isinstance(inner, Mapping) else None
        if not isinstance(allowed, list) or not all(isinstance(t, Mapping) for t in allowed):
            raise UsageError("tool_choice.allowed_tools.tools must be an array of tools")
        wanted = [_named(tool) for tool in allowed]
        if missing := [name for name in wanted if name not in names]:
            raise UsageError(f"tool_choice is {short(str(missing[0]))}, which is not among the tools")
        kept = tuple(tool for tool in tools if tool["function"]["name"] in wanted)
        return tools_of(kept, inner.get("mode", "auto"))
    if kind == "function" and isinstance(choice, Mapping):
        name = _named(choice)
        if name not in names:
            raise UsageError(f"tool_choice is {short(str(name))}, which is not among the tools")
        return Tools(tools, str(name))
    if kind not in (None, "none", "auto", "required") or isinstance(choice, Mapping):
        told = short(kind) if isinstance(kind, str) else json_name(kind)
        raise UsageError(f"tool_choice must be none, auto, required or a function, got {told}")
    if kind == "required" and not tools:
        raise UsageError("tool_choice is required, and there are no tools")
    return Tools(tools, kind or "auto")


def _named(given: Mapping[str, Any]) -> Any:
    """The name of a function, which stands inside in chat completions and beside the type in responses."""
    function = given.get("function", given)
    return function.get("name") if isinstance(function, Mapping) else None


def _tool(given: Any, where: str) -> dict[str, Any]:
    kind = given.get("type", "function") if isinstance(given, Mapping) else None
    if kind != "function":
        told = short(kind) if isinstance(kind, str) else json_name(given)
        raise UsageError(f"{where}.type must be function, got {told}")
    function = given.get("function", given)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UsageError(f"{where}.function.name must be of type string, and not empty")
    for name, kinds in (("description", str), ("parameters", Mapping)):
        if not isinstance(function.get(name), kinds | None):
            told = {"description": "string", "parameters": "object"}[name]
            raise UsageError(f"{where}.function.{name} must be of type {told}")
    known = ("name", "description", "parameters", "strict")
    held = {key: function[key] for key in known if function.get(key) is not None}
    return {"type": "function", "function": held}


def _message(sent: WireMessage, where: str) -> Message:
    if sent.role not in ROLES:
        raise UsageError(f"{where}.role must be one of {', '.join(ROLES)}, got {short(sent.role)}")
    calls = tuple(
        call_of(
            call.function.name, call.function.arguments, call.id or "", f"{where}.tool_calls[{i}].function"
        )
        for i, call in enumerate(sent.tool_calls or ())
    )
    if sent.role != "assistant" and calls:
        raise UsageError(f"{where}.tool_calls is only for the assistant's messages")
    if sent.role == "tool" and not sent.tool_call_id:
        raise UsageError(f"{where}.tool_call_id is required in a tool's message")
    return Message(
        role="system" if sent.role == "developer" else sent.role,
        content=text_of(sent.content, f"{where}.content") or sent.refusal or "",
        thinking=sent.reasoning or sent.reasoning_content or "",
        tool_calls=calls,
        tool_name=(sent.name or "") if sent.role == "tool" else "",
        tool_call_id=sent.tool_call_id or "",
    )
