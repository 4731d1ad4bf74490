"""Content blocks to the messages that a chat template takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvasir.api.anthropic.body import (
    Block,
    Document,
    Image,
    RedactedThinking,
    SearchResult,
    Shown,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    WireMessage,
)
from kvasir.api.seal import intact, opened
from kvasir.api.words import short
from kvasir.chat import Message, ToolCall
from kvasir.errors import UsageError

BETWEEN = "\n\n"  # between two blocks of a user or system message: each is a paragraph of its own
# Claude Code begins its system prompt with a line that differs in every request, for Anthropic's accounting.
# No model needs it, and with it no request would begin as the last one did.
ACCOUNTING = "x-anthropic-billing-header:"


def system_text(system: str | Sequence[Text] | None) -> str:
    """The system prompt as one text."""
    blocks = [system] if isinstance(system, str) else [block.text for block in system or ()]
    return BETWEEN.join(text for text in blocks if text and not text.startswith(ACCOUNTING))


def turns(sent: Sequence[WireMessage]) -> tuple[Message, ...]:
    """The conversation; messages of one role that follow each other become one.

    Raises UsageError with the place of a block that cannot stand there.
    """
    calls: dict[str, str] = {}  # id -> name of every tool_use so far
    found: list[Message] = []
    for i, message in enumerate(sent):
        where = f"messages[{i}].content"
        if message.role == "assistant":
            made: Iterator[Message] = iter((_assistant(message, where, calls),))
        elif message.role == "system":
            made = iter((Message("system", _plain_text(message, where)),))
        else:
            made = _user(message, where, calls)
        for each in made:
            if found and found[-1].role == each.role and each.role in ("user", "assistant"):
                found[-1] = _joined(found[-1], each)
            else:
                found.append(each)
    return tuple(found)


def _joined(first: Message, then: Message) -> Message:
    between = BETWEEN if first.role == "user" and first.content and then.content else ""
    return replace(
        first,
        content=first.content + between + then.content,
        thinking=first.thinking + then.thinking,
        tool_calls=first.tool_calls + then.tool_calls,
    )


def _assistant(message: WireMessage, where: str, calls: dict[str, str]) -> Message:
    if isinstance(message.content, str):
        return Message("assistant", message.content)
    texts, thoughts, used = [], [], []
    for j, block in enumerate(message.content):
        if isinstance(block, Text):
            texts.append(block.text)
        elif isinstance(block, Thinking):
            thoughts.append(_thought(block, f"{where}[{j}]"))
        elif isinstance(block, ToolUse):
            calls[block.id] = block.name
            used.append(ToolCall(block.name, block.input, block.id))
        elif not isinstance(block, RedactedThinking):  # another model's, which nobody here can read
            raise _misplaced(block, f"{where}[{j}]", "an assistant")
    return Message("assistant", "".join(texts), "".join(thoughts), tuple(used))


def _thought(block: Thinking, where: str) -> str:
    if not block.thinking:
        return opened(block.signature)
    if not intact(block.thinking, block.signature):
        raise UsageError(
            f"{where}: the thinking is not the one that its signature was made for",
            hint="send thinking blocks back as they came, or leave them out",
        )
    return block.thinking


def _user(message: WireMessage, where: str, calls: dict[str, str]) -> Iterator[Message]:
    """One user message, with a tool message in its place for every result of a tool."""
    if isinstance(message.content, str):
        yield Message("user", message.content)
        return
    texts: list[str] = []
    n_results = 0
    for j, block in enumerate(message.content):
        place = f"{where}[{j}]"
        if isinstance(block, ToolResult):
            if texts:
                yield Message("user", BETWEEN.join(texts))
                texts = []
            yield _result(block, place, calls)
            n_results += 1
        elif isinstance(block, Text | SearchResult | Document | Image):
            texts.append(_shown(block, place))
        else:
            raise _misplaced(block, place, "a user")
    if texts or not n_results:
        yield Message("user", BETWEEN.join(texts))


def _result(block: ToolResult, where: str, calls: dict[str, str]) -> Message:
    if block.tool_use_id not in calls:
        raise UsageError(
            f"{where}.tool_use_id {short(block.tool_use_id)} is the id of no tool_use block before it"
        )
    content = block.content or ""
    if not isinstance(content, str):
        content = BETWEEN.join(_shown(each, f"{where}.content[{k}]") for k, each in enumerate(content))
    if block.is_error:
        content = f"Error: {content}"
    return Message("tool", content, tool_name=calls[block.tool_use_id], tool_call_id=block.tool_use_id)


def _plain_text(message: WireMessage, where: str) -> str:
    if isinstance(message.content, str):
        return message.content
    for j, block in enumerate(message.content):
        if not isinstance(block, Text):
            raise _misplaced(block, f"{where}[{j}]", "a system")
    return system_text([block for block in message.content if isinstance(block, Text)])


def _shown(block: Shown, where: str) -> str:
    """A block of text, or one that has text in it.  Raises UsageError for what needs eyes."""
    if isinstance(block, Text):
        return block.text
    if isinstance(block, SearchResult):
        return "\n".join([f"{block.title} ({block.source})", *(each.text for each in block.content)])
    source = block.source or {}
    if isinstance(block, Document) and source.get("type") == "text" and isinstance(source.get("data"), str):
        return str(source["data"])
    what = "images" if isinstance(block, Image) else "documents other than plain text"
    raise UsageError(f"{where}: {what} are not supported: models read text here", hint="send a text block")


def _misplaced(block: Block, where: str, role: str) -> UsageError:
    kind = block.__struct_config__.tag
    return UsageError(f"{where}: a {kind} block cannot stand in {role} message")
