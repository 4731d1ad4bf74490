"""The items of /v1/responses as messages, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvasir.api import seal
from kvasir.api.openai.messages import call_of, text_of, with_tool_names
from kvasir.api.words import json_name, short
from kvasir.chat import Message
from kvasir.errors import UsageError

ROLES = ("system", "developer", "user", "assistant")
MAX_ITEMS = 10_000


def messages_of(given: str | Sequence[Any] | None) -> tuple[Message, ...]:
    """An `input` as messages: a thought, a text and calls that follow each other are one turn.

    Raises UsageError that names the item and what is wrong with it.
    """
    if isinstance(given, str):
        return (Message("user", given),)
    if len(given or ()) > MAX_ITEMS:
        raise UsageError(f"input must hold at most {MAX_ITEMS:,} items")
    made: list[Message] = []
    for i, item in enumerate(given or ()):
        message = _message(item, f"input[{i}]")
        if made and message.role == "assistant" and (joined := _joined(made[-1], message)):
            made[-1] = joined
        else:
            made.append(message)
    return with_tool_names(made)


def opened(instructions: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with its instructions; system messages at its beginning become one, since many
    templates know no second.
    """
    texts, rest = [instructions] if instructions else [], list(messages)
    while rest and rest[0].role == "system":
        texts.append(rest.pop(0).content)
    return (*((Message("system", "\n\n".join(texts)),) if texts else ()), *rest)


def answered(output: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """An answer's items as the turn that a later request goes on from."""
    return messages_of(list(output))


def _joined(before: Message, after: Message) -> Message | None:
    """Two items of the assistant as one turn; None if they are two."""
    if before.role != "assistant" or (before.content and after.content):
        return None
    if (before.content or before.tool_calls) and after.thinking:
        return None
    return replace(
        before,
        content=before.content or after.content,
        thinking=before.thinking + after.thinking,
        tool_calls=before.tool_calls + after.tool_calls,
    )


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise UsageError(f"{where} must be an object, got {json_name(item)}")
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        return _said(item, where)
    if kind == "reasoning":
        return Message("assistant", "", thinking=_thought(item, where))
    if kind == "function_call":
        name, call_id = _text(item, "name", where), _text(item, "call_id", where)
        call = call_of(name, _text(item, "arguments", where), call_id, where)
        return Message("assistant", "", tool_calls=(call,))
    if kind == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str | list):
            raise UsageError(f"{where}.output must be of type string, got {json_name(output)}")
        call_id = _text(item, "call_id", where)
        return Message("tool", text_of(output, f"{where}.output"), tool_call_id=call_id)
    if kind == "item_reference":
        raise UsageError(f"{where}.type is item_reference: items are not kept", hint="send the item itself")
    told = short(kind) if isinstance(kind, str) else json_name(kind)
    raise UsageError(f"{where}.type is not supported: {told}")


def _said(item: Mapping[str, Any], where: str) -> Message:
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        told = short(role) if isinstance(role, str) else json_name(role)
        raise UsageError(f"{where}.role must be one of {', '.join(ROLES)}, got {told}")
    if not isinstance(content, str | list):
        raise UsageError(f"{where}.content must be a text or an array of parts, got {json_name(content)}")
    return Message("system" if role == "developer" else str(role), text_of(content, f"{where}.content"))


def _thought(item: Mapping[str, Any], where: str) -> str:
    """The text of a reasoning item: what it shows, or what we put into `encrypted_content`."""
    for name in ("content", "summary"):
        held = item.get(name)
        if isinstance(held, list) and held:
            return text_of(held, f"{where}.{name}")
    sealed = item.get("encrypted_content")
    return seal.opened(sealed) if isinstance(sealed, str) else ""


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{where}.{name} must be of type string, got {json_name(value)}")
    return value
