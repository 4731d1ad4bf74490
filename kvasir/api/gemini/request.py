"""A generateContent body to what is asked of a model; countTokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvasir.api.body import decode, typed, unknown
from kvasir.api.face import Sent
from kvasir.api.gemini.body import CountBody, GenerateBody, GenerationConfig, camel
from kvasir.api.gemini.config import CONFIG, Thoughts, chosen, functions, params, said, thoughts
from kvasir.api.gemini.reply import Reply
from kvasir.api.gemini.turns import system_text, turns
from kvasir.api.length import Length
from kvasir.api.loaded import Loaded
from kvasir.api.ollama import keep_alive
from kvasir.api.options import own_context, with_own
from kvasir.chat import ChatRequest, Message
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams

JSON, EVENTS = "application/json; charset=utf-8", "text/event-stream; charset=utf-8"
IDLE = ("safetySettings",)  # known, and without effect here


@dataclass(frozen=True)
class Asked:
    """What a body asks for, before it is known which model answers.

    `events`: a stream is of server-sent events, else it is one JSON array in pieces.
    """

    model: str
    messages: tuple[Message, ...]
    params: SamplingParams
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    thoughts: Thoughts = field(default_factory=Thoughts)
    stream: bool = False
    events: bool = False
    said: frozenset[str] = frozenset()
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return EVENTS if self.stream and self.events else JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """The one request to this model.  Raises UsageError for what it cannot do, by name of the field."""
        if self.tools and "tools" not in model.info.capabilities:
            raise UsageError("tools: this model's chat template knows no tools", hint="use another model")
        last = self.messages[-1]
        if last.role == "assistant" and last.tool_calls:
            raise UsageError("contents: the last one calls functions", hint="send their functionResponse")
        return (
            ChatRequest(
                params=with_own(self.params, self.said, model.info.made),
                messages=self.messages,
                tools=self.tools,
                tool_choice=self.tool_choice,
                parse=True,
                max_context=own_context(None, model.info.made),
                think=False if last.role == "assistant" else self.thoughts.think(model),
                continues=last.role == "assistant",
            ),
        )

    def reply(self, model: Loaded, load_s: float) -> Reply:
        return Reply(
            self.model,
            shown=self.thoughts.shown,
            events=self.events,
            n_answers=self.params.n,
            token_bytes=model.token_bytes,
        )


def parse_generate(sent: Sent) -> Asked:
    """What a body of generateContent asks for.  Raises UsageError that names the field."""
    return _asked(sent, camelled(sent.body))


def parse_stream(sent: Sent) -> Asked:
    """What a body of streamGenerateContent asks for.  Raises UsageError that names the field."""
    events = sent.query.get("alt", "").lower() == "sse"
    return replace(_asked(sent, camelled(sent.body)), stream=True, events=events)


def parse_count(sent: Sent) -> Length:
    """What a body of countTokens is about: contents, or a whole request.  Raises UsageError."""
    values = camelled(sent.body)
    body = typed(values, CountBody)
    if body.generate_content_request is None:
        told = unknown(values, CountBody)
        asked = _asked(sent, {"contents": values["contents"]} if body.contents else {})
        return Length(replace(asked, warnings=told), _counted)
    if body.contents is not None:
        raise UsageError("give contents or generateContentRequest, not both")
    return Length(_asked(sent, values["generateContentRequest"]), _counted)


def _counted(n_tokens: int) -> dict[str, Any]:
    details = [{"modality": "TEXT", "tokenCount": n_tokens}]
    return {"totalTokens": n_tokens, "promptTokensDetails": details}


def camelled(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, its fields under Google's names.  Raises UsageError."""
    try:
        values: dict[str, Any] = camel(decode(raw))
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None
    return values


def model_of(sent: Sent) -> str:
    """The model that the path names.  Raises UsageError."""
    name = sent.path.get("model", "")
    if not name:
        raise UsageError("the path names no model", hint="ask /v1beta/models/MODEL:generateContent")
    return name


def _asked(sent: Sent, values: dict[str, Any]) -> Asked:
    body = typed(values, GenerateBody)
    if body.cached_content:
        raise UsageError(
            "cachedContent is not supported: beginnings of prompts are kept and found by themselves",
            hint="send the whole prompt",
        )
    config = body.generation_config or GenerationConfig()
    given = values.get("generationConfig") or {}
    system = system_text(body.system_instruction)
    choice, tools, warned = chosen(body.tool_config, functions(body.tools or ()))
    wishes, told = thoughts(config.thinking_config)
    idle = [f"{name} has no effect" for name in IDLE if values.get(name)]
    if config.media_resolution:
        idle.append(f"{CONFIG}.mediaResolution has no effect")
    return Asked(
        model=model_of(sent),
        messages=((Message("system", system),) if system else ()) + turns(body.contents),
        params=params(config),
        tools=tools,
        tool_choice=choice,
        thoughts=wishes,
        said=said(config),
        keep_alive_s=None if body.keep_alive is None else keep_alive(body.keep_alive),
        warnings=(
            *unknown(values, GenerateBody),
            *(f"{warning} of {CONFIG}" for warning in unknown(given, GenerationConfig)),
            *idle,
            *told,
            *warned,
        ),
    )
