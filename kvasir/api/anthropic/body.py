"""The types of a Messages request.  Source: the types of Anthropic's Python client, 2.12."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class CacheControl(msgspec.Struct):
    """Marks the end of a prefix that is worth keeping."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(msgspec.Struct, tag_field="type", kw_only=True):
    cache_control: CacheControl | None = None


class Text(Block, tag="text"):
    text: str


class Thinking(Block, tag="thinking"):
    thinking: str
    signature: str = ""


class RedactedThinking(Block, tag="redacted_thinking"):
    data: str = ""


class ToolUse(Block, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class SearchResult(Block, tag="search_result"):
    source: str
    title: str
    content: list[Text]


class Image(Block, tag="image"):
    source: dict[str, Any] | None = None


class Document(Block, tag="document"):
    source: dict[str, Any] | None = None


Shown = Text | SearchResult | Image | Document


class ToolResult(Block, tag="tool_result"):
    tool_use_id: str
    content: str | list[Shown] | None = None
    is_error: bool | None = None


AnyBlock = Text | Thinking | RedactedThinking | ToolUse | ToolResult | SearchResult | Image | Document


class WireMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]


class Tool(msgspec.Struct):
    """A tool that the client runs.  Anthropic's own have other types and are not here."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct):
    user_id: str | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """The body of a count, and what all bodies share.  What stands last is known and has no effect here."""

    model: str
    messages: list[WireMessage]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the name it had while it was new
    cache_control: CacheControl | None = None
    keep_alive: int | float | str | None = None  # not Anthropic's: as in Ollama's API

    speed: Literal["standard", "fast"] | None = None
    context_management: Any = None
    mcp_servers: list[Any] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class MessagesBody(CountBody, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    container: Any = None
    diagnostics: Any = None
    inference_geo: str | None = None
