"""/v1/responses: what a body asks for.  `responses_reply` writes the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.chat import MAX_LOGPROBS, plain, thinking
from kvasir.api.openai.forms import of_format
from kvasir.api.openai.items import messages_of, opened
from kvasir.api.openai.memory import Responses
from kvasir.api.openai.messages import Tools, able, tools_of, with_tool_names
from kvasir.api.openai.parts import JSON, SSE, Stamp, name_of
from kvasir.api.openai.responses_reply import Reply
from kvasir.api.openai.wishes import Wishes
from kvasir.api.options import own_context, with_own
from kvasir.api.words import short
from kvasir.chat import ChatRequest, Message
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams

LOGPROBS, SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"


class Body(Wishes, kw_only=True):
    input: str | list[Any] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    think: bool | str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    truncation: str | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """A response that is wanted.  `told`: the fields of the body that the answer repeats; `memory`: where it
    is kept for its `owner`, None if it is not.
    """

    model: str
    params: SamplingParams
    messages: tuple[Message, ...]
    told: Mapping[str, Any]
    instructions: str = ""
    stream: bool = False
    tools: Tools = field(default_factory=Tools)
    parallel_tool_calls: bool = True
    think: bool | str | None = None
    seals: bool = False
    template_values: Mapping[str, Any] = field(default_factory=dict)
    truncate: bool = False
    max_context: int | None = None
    priority: int = 0
    tenant: str = ""
    memory: Responses | None = None
    owner: str = ""
    said: frozenset[str] = frozenset()
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return SSE if self.stream else JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """The one request.  Raises UsageError for what this model cannot do."""
        tools, think = able(model, self.tools, self.think, "reasoning.effort")
        request = ChatRequest(
            params=with_own(self.params, self.said, model.info.made),
            messages=opened(self.instructions, self.messages),
            tools=tools,
            tool_choice=self.tools.choice,
            parallel_tool_calls=self.parallel_tool_calls,
            parse=True,
            think=think,
            max_context=own_context(self.max_context, model.info.made),
            truncate=self.truncate,
            tenant=self.tenant,
            priority=self.priority,
            template_values=self.template_values,
        )
        return (request,)

    def reply(self, model: Loaded, load_s: float) -> Reply:
        told = {**self.told, "model": self.model or name_of(model)}
        return Reply(told, self.messages, model.token_bytes, Stamp.new("resp_"), self._keep, self.seals)

    def _keep(self, id: str, response: Mapping[str, Any], messages: tuple[Message, ...]) -> None:
        if self.memory:
            self.memory.keep(self.owner, id, response, messages)


def parse(sent: Sent, memory: Responses) -> Asked:
    """What the body of /v1/responses asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, Body)
    warnings = wishes.told(values, Body)
    _check(body)
    tools = tools_of(body.tools, body.tool_choice)
    logprobs = (body.top_logprobs or 0) if body.top_logprobs or LOGPROBS in (body.include or ()) else None
    limit = body.max_output_tokens if body.max_output_tokens is not None else body.max_tokens
    params = wishes.sampling(body, limit, logprobs)
    if form := of_format((body.text or {}).get("format"), "text.format"):
        if params.structured_outputs:
            raise UsageError("text.format and structured_outputs cannot both say what form the answer has")
        params = replace(params, structured_outputs=form)
    effort = (body.reasoning or {}).get("effort")
    return Asked(
        model=body.model or "",
        params=params,
        messages=with_tool_names(
            (*_before(body.previous_response_id, memory, sent.tenant), *messages_of(body.input))
        ),
        told=_told(body, params),
        instructions=body.instructions or "",
        stream=wishes.streams(body),
        tools=tools,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        think=thinking(effort, body.think, body.chat_template_kwargs or {}),
        seals=SEALED in (body.include or ()),
        template_values=plain(body.chat_template_kwargs or {}),
        truncate=body.truncation == "auto" or wishes.truncates(body),
        max_context=wishes.max_context(body),
        priority=-(body.priority or 0),
        tenant=body.cache_salt or "",
        memory=None if body.store is False else memory,
        owner=sent.tenant,
        said=wishes.said(body, limit),
        keep_alive_s=wishes.keep_alive_s(body),
        warnings=(
            *warnings,
            *(("text.verbosity has no effect",) if (body.text or {}).get("verbosity") else ()),
        ),
    )


def _check(body: Body) -> None:
    """Raises UsageError for what cannot be asked for here."""
    if not body.input:
        raise UsageError("input must be a text or an array of items, and not empty")
    if body.n not in (None, 1):
        raise UsageError("n must be 1", hint="ask several times")
    if not 0 <= (body.top_logprobs or 0) <= MAX_LOGPROBS:
        raise UsageError(f"top_logprobs must be between 0 and {MAX_LOGPROBS}")
    if body.truncation not in (None, "auto", "disabled"):
        raise UsageError(f"truncation must be auto or disabled, got {short(body.truncation)}")
    known = (LOGPROBS, SEALED)
    if strange := [each for each in body.include or () if each not in known]:
        raise UsageError(f"include must hold {' or '.join(known)}, got {short(strange[0])}")
    if body.prompt_logprobs is not None or body.echo:
        raise UsageError("prompt_logprobs and echo are only told by chat and completions")


def _before(id: str | None, memory: Responses, tenant: str) -> tuple[Message, ...]:
    """The conversation that a response is to go on from."""
    if not id:
        return ()
    if (kept := memory.get(tenant, id)) is None:
        raise UsageError(
            f"previous_response_id: there is no response {short(id)}",
            hint="it was not stored, or is too long ago; send the whole conversation",
        )
    return kept.messages


def _told(body: Body, params: SamplingParams) -> dict[str, Any]:
    """What a response repeats of its request."""
    text = {"format": {"type": "text"}, **(body.text or {})}
    reasoning = {"effort": None, "summary": None, **(body.reasoning or {})}
    return {
        "model": body.model or "",
        "instructions": body.instructions,
        "max_output_tokens": params.max_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": reasoning,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": params.temperature,
        "text": text,
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }
