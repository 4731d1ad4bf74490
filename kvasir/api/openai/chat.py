"""/v1/chat/completions: `parse` turns a body into what is asked, `Reply` turns events into chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.messages import Tools, WireMessage, able, messages_of, tools_of
from kvasir.api.openai.parts import (
    DONE,
    JSON,
    SSE,
    Counts,
    Stamp,
    TokenBytes,
    broken,
    chat_logprobs,
    data,
    encode,
    name_of,
    prompt_logprobs,
)
from kvasir.api.openai.wishes import StreamOptions, Wishes
from kvasir.api.options import own_context, with_own
from kvasir.api.words import short
from kvasir.chat import ChatRequest, Delta, Event, Finished, Message, ToolPiece
from kvasir.errors import KvasirError, UsageError
from kvasir.sampling import SamplingParams

MAX_LOGPROBS = 20
# What models and their templates call how hard to think; "none" is not to think at all.
EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
SWITCHES = ("enable_thinking", "thinking")  # what templates call whether to think


class Body(Wishes, kw_only=True):
    messages: list[WireMessage] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    think: bool | str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """A chat completion that is wanted, before it is known which model answers."""

    model: str
    params: SamplingParams
    messages: tuple[Message, ...]
    stream: bool = False
    options: StreamOptions = field(default_factory=StreamOptions)
    tools: Tools = field(default_factory=Tools)
    parallel_tool_calls: bool = True
    think: bool | str | None = None
    shows_thoughts: bool = True
    opens_turn: bool = True
    continues: bool = False
    echo: bool = False
    template_values: Mapping[str, Any] = field(default_factory=dict)
    truncate: bool = False
    max_context: int | None = None
    priority: int = 0
    tenant: str = ""
    tells_ids: bool = False
    said: frozenset[str] = frozenset()
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return SSE if self.stream else JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """The one request.  Raises UsageError for what this model cannot do."""
        tools, think = able(model, self.tools, self.think, "reasoning_effort")
        request = ChatRequest(
            params=with_own(self.params, self.said, model.info.made),
            messages=self.messages,
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
            opens_turn=self.opens_turn,
            continues=self.continues,
        )
        return (request,)

    def reply(self, model: Loaded, load_s: float) -> Reply:
        asked = replace(self, model=self.model or name_of(model))
        return Reply(asked, model.token_bytes, Stamp.new("chatcmpl-"))


def parse(sent: Sent) -> Asked:
    """What the body of /v1/chat/completions asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, Body)
    warnings = wishes.told(values, Body)
    messages = messages_of(body.messages or [])
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise UsageError("max_tokens and max_completion_tokens differ", hint="send the second alone")
    if not 0 <= (body.top_logprobs or 0) <= MAX_LOGPROBS:
        raise UsageError(f"top_logprobs must be between 0 and {MAX_LOGPROBS}")
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs is only told with logprobs", hint="set logprobs to true")
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise UsageError("continue_final_message and add_generation_prompt cannot both be set")
    effort = body.reasoning_effort or (body.reasoning or {}).get("effort")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return Asked(
        model=body.model or "",
        params=wishes.sampling(body, limit, (body.top_logprobs or 0) if body.logprobs else None),
        messages=messages,
        stream=wishes.streams(body),
        options=body.stream_options or StreamOptions(),
        tools=tools_of(body.tools, body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        think=thinking(effort, body.think, body.chat_template_kwargs or {}),
        shows_thoughts=body.include_reasoning is not False,
        opens_turn=body.add_generation_prompt is not False and not continues,
        continues=continues,
        echo=bool(body.echo),
        template_values=plain(body.chat_template_kwargs or {}),
        truncate=wishes.truncates(body),
        max_context=wishes.max_context(body),
        priority=-(body.priority or 0),  # vLLM lets the lowest in first
        tenant=body.cache_salt or "",
        tells_ids=bool(body.return_token_ids),
        said=wishes.said(body, limit),
        keep_alive_s=wishes.keep_alive_s(body),
        warnings=(*warnings, *_idle(body)),
    )


def thinking(
    effort: str | None, think: bool | str | None, template_values: Mapping[str, Any]
) -> bool | str | None:
    """How hard to think, as `ChatRequest.think`; None: as the model does by itself.  Raises UsageError.

    Some clients say it in the words of templates, which `template_values` are without afterwards (`plain`).
    """
    if effort is None and think is None:
        said = [template_values[name] for name in SWITCHES if isinstance(template_values.get(name), bool)]
        return said[0] if said else None
    if effort is None:
        if isinstance(think, str) and think not in EFFORTS:
            raise UsageError(f"think must be a boolean or one of {', '.join(EFFORTS)}, got {short(think)}")
        return EFFORTS[think] if isinstance(think, str) else think
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise UsageError(f"reasoning_effort must be one of {', '.join(EFFORTS)}, got {short(str(effort))}")
    return EFFORTS[effort]


def plain(template_values: Mapping[str, Any]) -> dict[str, Any]:
    """The variables for a template without those that `thinking` reads."""
    return {k: v for k, v in template_values.items() if k not in SWITCHES or not isinstance(v, bool)}


def _idle(body: Body) -> tuple[str, ...]:
    given = {"verbosity": body.verbosity, "prediction": body.prediction}
    return tuple(f"{name} has no effect" for name, value in given.items() if value is not None)


class Reply:
    """A chat completion on its way out.  Mutable: it counts tokens and gathers texts as events pass."""

    def __init__(self, asked: Asked, token_bytes: TokenBytes, stamp: Stamp):
        self._asked, self._token_bytes, self._stamp = asked, token_bytes, stamp
        self._counts = Counts(asked.params.n)
        self._choices = [_Choice() for _ in range(asked.params.n)]
        last = asked.messages[-1]
        self._echo = last.content if asked.echo and last.role == "assistant" else ""

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        """A chunk for each answer that says who speaks."""
        delta = {"role": "assistant", "content": self._echo}
        return b"".join(data(self._chunk(i, delta)) for i, _ in enumerate(self._choices))

    def line(self, event: Event) -> bytes:
        self._counts.take(event)
        if isinstance(event, Finished):
            choice = self._choices[event.index]
            reason = finish_reason(event, choice.n_calls)
            return data(self._chunk(event.index, {}, reason, event))
        choice = self._choices[event.index]
        choice.n_calls += sum(bool(piece.name) for piece in event.tool_calls)
        delta = self._delta(event)
        told = event.logprobs if self._asked.params.logprobs is not None else ()
        if not delta and not told and not (self._asked.tells_ids and event.token_ids):
            return b""
        chunk = self._chunk(event.index, delta or {"content": ""})
        if told:
            chunk["choices"][0]["logprobs"] = {
                "content": chat_logprobs(told, self._token_bytes),
                "refusal": None,
            }
        if self._asked.tells_ids:
            chunk["choices"][0]["token_ids"] = list(event.token_ids)
        return data(chunk)

    def end(self) -> bytes:
        if not self._asked.options.include_usage:
            return DONE
        return (
            data({**self._head("chat.completion.chunk"), "choices": [], "usage": self._counts.usage()}) + DONE
        )

    def broken(self, error: KvasirError) -> bytes:
        return broken(error)

    def take(self, event: Event) -> None:
        self._counts.take(event)
        self._choices[event.index].take(event)

    def whole(self) -> bytes:
        body = {
            **self._head("chat.completion"),
            "choices": [self._whole(i, choice) for i, choice in enumerate(self._choices)],
            "usage": self._counts.usage(),
        }
        end = self._choices[0].end
        if self._asked.params.prompt_logprobs is not None and end:
            body["prompt_logprobs"] = prompt_logprobs(end, self._token_bytes)
        if self._asked.tells_ids and end:
            body["prompt_token_ids"] = list(end.prompt_token_ids)
        return encode(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._stamp.id,
            "object": kind,
            "created": self._stamp.created,
            "model": self._asked.model,
            "system_fingerprint": "kvasir",
        }

    def _chunk(
        self, index: int, delta: Mapping[str, Any], reason: str | None = None, end: Finished | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        if end and end.stop_reason is not None:
            choice["stop_reason"] = end.stop_reason
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self._asked.options.continuous_usage_stats:
            chunk["usage"] = self._counts.usage()
        elif self._asked.options.include_usage:
            chunk["usage"] = None
        return chunk

    def _delta(self, event: Delta) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if event.thinking and self._asked.shows_thoughts:
            delta["reasoning"] = delta["reasoning_content"] = event.thinking
        if event.text:
            delta["content"] = event.text
        pieces = [_piece(piece) for piece in event.tool_calls if piece.name or piece.arguments]
        if pieces:
            delta["tool_calls"] = pieces
        return delta

    def _whole(self, index: int, choice: _Choice) -> dict[str, Any]:
        assert choice.end
        text = self._echo + "".join(choice.texts)
        calls = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": "".join(pieces)}}
            for id, name, pieces in choice.calls.values()
        ]
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        message |= {"refusal": None, "annotations": []}
        if (thought := "".join(choice.thoughts)) and self._asked.shows_thoughts:
            message["reasoning"] = message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        told = None
        if self._asked.params.logprobs is not None:
            told = {"content": chat_logprobs(choice.logprobs, self._token_bytes), "refusal": None}
        found = {
            "index": index,
            "message": message,
            "logprobs": told,
            "finish_reason": finish_reason(choice.end, len(calls)),
            "stop_reason": choice.end.stop_reason,
        }
        return {**found, "token_ids": choice.token_ids} if self._asked.tells_ids else found


class _Choice:
    """One answer being put together.  Mutable."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.logprobs: list[Any] = []
        self.token_ids: list[int] = []
        self.calls: dict[int, tuple[str, str, list[str]]] = {}
        self.n_calls = 0
        self.end: Finished | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.end = event
            return
        self.texts.append(event.text)
        self.thoughts.append(event.thinking)
        self.logprobs += event.logprobs
        self.token_ids += event.token_ids
        for piece in event.tool_calls:
            if piece.name:
                self.calls[piece.number] = (piece.id, piece.name, [])
            if piece.number in self.calls:
                self.calls[piece.number][2].append(piece.arguments)


def finish_reason(end: Finished, n_calls: int) -> str:
    """OpenAI's word for how an answer ended."""
    return "tool_calls" if end.reason == "stop" and n_calls else end.reason


def _piece(piece: ToolPiece) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": piece.arguments}
    if not piece.name:
        return {"index": piece.number, "function": function}
    function = {"name": piece.name, **function}
    return {"index": piece.number, "id": piece.id, "type": "function", "function": function}
