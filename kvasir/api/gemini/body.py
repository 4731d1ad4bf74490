"""The types of Gemini's requests.  Source: the types of Google's Python client, google-genai 3.4.

Google's JSON has every name in lowerCamelCase and takes snake_case too, so bodies go through `camel` first.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

# Fields whose content belongs to the client: its names stay as they are.
FREE = ("args", "response", "labels", "default", "example", "enum", "partMetadata", "data", "text")
FREE_SCHEMAS = ("parametersJsonSchema", "responseJsonSchema", "schema")
NAMED = ("properties", "$defs", "defs")  # of a schema: the keys are names, the values schemas


def camel(value: Any) -> Any:
    """`value` with field names in lowerCamelCase."""
    if isinstance(value, list):
        return [camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, content in value.items():
        called = re.sub(r"(?<=[a-zA-Z0-9])_([a-z0-9])", lambda letter: letter[1].upper(), name)
        if called in NAMED and isinstance(content, dict):
            found[called] = {key: camel(each) for key, each in content.items()}
        else:
            found[called] = content if called in FREE or called in FREE_SCHEMAS else camel(content)
    return found


class Struct(msgspec.Struct, rename="camel", kw_only=True):
    """A message of Google's API."""


class FunctionCall(Struct):
    name: str
    args: dict[str, Any] | None = None
    id: str | None = None


class FunctionResponse(Struct):
    name: str
    response: dict[str, Any] | None = None
    id: str | None = None
    parts: list[Any] | None = None


class Part(Struct):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    inline_data: Any = None
    file_data: Any = None
    executable_code: Any = None
    code_execution_result: Any = None
    tool_call: Any = None
    tool_response: Any = None


class Content(Struct):
    role: Literal["user", "model", "function", ""] | None = None
    parts: list[Part] | None = None


class Function(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: Any = None


class Tool(Struct):
    """A set of functions.  What else may be here runs at Google."""

    function_declarations: list[Function] | None = None
    google_search: Any = None
    google_search_retrieval: Any = None
    google_maps: Any = None
    code_execution: Any = None
    url_context: Any = None
    computer_use: Any = None
    file_search: Any = None
    mcp_servers: Any = None


class FunctionCallingConfig(Struct):
    mode: str | None = None
    allowed_function_names: list[str] | None = None


class ToolConfig(Struct):
    function_calling_config: FunctionCallingConfig | None = None


class ThinkingConfig(Struct):
    include_thoughts: bool | None = None
    thinking_budget: int | None = None
    thinking_level: str | None = None


class GenerationConfig(Struct):
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None  # a float in Google's types too
    candidate_count: int | None = None
    max_output_tokens: int | None = None
    stop_sequences: list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_logprobs: bool | None = None
    logprobs: int | None = None
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: Any = None
    response_format: Any = None
    response_modalities: list[str] | None = None
    thinking_config: ThinkingConfig | None = None
    speech_config: Any = None
    image_config: Any = None
    media_resolution: str | None = None


class GenerateBody(Struct):
    contents: list[Content] | Content | None = None
    system_instruction: Content | str | None = None
    tools: list[Tool] | None = None
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig | None = None
    cached_content: str | None = None
    model: str | None = None  # the path says it
    keep_alive: int | float | str | None = None  # not Google's: as in Ollama's API

    safety_settings: Any = None
    service_tier: str | None = None
    labels: Any = None
    store: bool | None = None


class CountBody(Struct):
    contents: list[Content] | Content | None = None
    generate_content_request: GenerateBody | None = None


class EmbedBody(Struct):
    content: Content
    model: str | None = None
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None
    keep_alive: int | float | str | None = None


class BatchEmbedBody(Struct):
    requests: list[EmbedBody]
    keep_alive: int | float | str | None = None
