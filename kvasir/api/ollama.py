"""Ollama's generate and chat: `parse_*` turns a body into what is asked, `Reply` turns events into its lines.

No HTTP here and no model: the wire format alone.  Source: Ollama's API types (api/types.go) and its handlers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from kvasir.api.body import decode, typed, unknown
from kvasir.api.gotemplate import render_go_template
from kvasir.api.loaded import Loaded
from kvasir.api.options import Options, over_defaults, parse_options
from kvasir.api.words import short
from kvasir.chat import (
    ChatRequest,
    Delta,
    Event,
    Finished,
    Message,
    Metrics,
    TokenLogprob,
    ToolCall,
    ToolPiece,
)
from kvasir.durations import keep_alive_s
from kvasir.errors import KvasirError, UsageError
from kvasir.sampling import SamplingParams
from kvasir.structured import StructuredOutputsParams, ollamas

ROLES = ("system", "user", "assistant", "tool")
THINK_LEVELS = ("low", "medium", "high", "max")
MAX_TOP_LOGPROBS = 20
NDJSON, JSON = "application/x-ndjson", "application/json; charset=utf-8"


class FunctionCall(msgspec.Struct):
    name: str
    arguments: dict[str, Any] = {}
    index: int | None = None


class WireToolCall(msgspec.Struct):
    function: FunctionCall
    id: str | None = None


class WireMessage(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    function: ToolFunction
    type: str | None = None


class Common(msgspec.Struct, kw_only=True):
    """What generate and chat share."""

    model: str | None = None
    stream: bool | None = None
    format: Any = None
    keep_alive: int | float | str | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    pin: bool | None = None  # ours: the prompt stays in the prefix cache
    debug_render_only: bool | None = msgspec.field(name="_debug_render_only", default=None)


class GenerateBody(Common):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class ChatBody(Common):
    messages: list[WireMessage] | None = None
    tools: list[Tool] | None = None


@dataclass(frozen=True)
class Asked:
    """What a body asks for, before it is known which model answers.

    `empty`: no prompt and no messages, so the model is loaded, or unloaded if `keep_alive_s` is 0.
    `needs`: capabilities without which the request must be refused, with Ollama's word for each.
    """

    kind: Literal["generate", "chat"]
    model: str
    options: Options
    given: Mapping[str, Any] = field(default_factory=dict)  # options as they were sent
    stream: bool = True
    keep_alive_s: float | None = None
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: tuple[int, ...] = ()
    raw: bool = False
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    think: bool | str | None = None
    truncate: bool = False
    pin: bool = False
    logprobs: int | None = None
    form: StructuredOutputsParams | None = None
    needs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.messages if self.kind == "chat" else not self.prompt

    @property
    def media_type(self) -> str:
        return NDJSON if self.stream else JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """The request to this model.  Raises UsageError for what it cannot do."""
        asked, made = self, model.info.made
        if made:
            options = parse_options(over_defaults(made.parameters, {**self.given}))
            asked = replace(
                self, options=options, system=self.system or (made.system if self.template else "")
            )
        request = to_request(asked, model.info.capabilities, model.has_template)
        return (replace(request, context=self.context),)

    def reply(self, model: Loaded, load_s: float) -> Reply:
        return Reply(self, load_s, model.token_bytes)

    @property
    def params(self) -> SamplingParams:
        return replace(self.options.params, logprobs=self.logprobs, structured_outputs=self.form)


def parse_generate(raw: bytes) -> Asked:
    """What the body of /api/generate asks for.  Raises UsageError that names the field."""
    values = decode(raw)
    body = typed(values, GenerateBody)
    _refuse(body)
    if body.suffix and (body.system or body.template):
        raise UsageError("suffix goes between two texts, so system and template have no place")
    if body.raw and (body.system or body.template or body.context):
        raise UsageError("raw mode does not support template, system, or context")
    return Asked(
        kind="generate",
        prompt=body.prompt or "",
        suffix=body.suffix or "",
        system=body.system or "",
        template=body.template or "",
        context=_context(body.context),
        raw=bool(body.raw),
        needs=_needs(body, vision=bool(body.images), insert=bool(body.suffix)),
        **_common(body, unknown(values, GenerateBody)),
    )


def parse_chat(raw: bytes) -> Asked:
    """What the body of /api/chat asks for.  Raises UsageError that names the field."""
    values = decode(raw)
    body = typed(values, ChatBody)
    _refuse(body)
    sent = body.messages or []
    return Asked(
        kind="chat",
        messages=tuple(_message(m, i) for i, m in enumerate(sent)),
        tools=tuple(values["tools"] or ()) if body.tools else (),
        needs=_needs(body, vision=any(m.images for m in sent), tools=bool(body.tools)),
        **_common(body, unknown(values, ChatBody)),
    )


def to_request(asked: Asked, capabilities: tuple[str, ...], has_template: bool) -> ChatRequest:
    """`asked` as a request to a model with these capabilities.

    Raises UsageError for what the model cannot do, by name.  `context` is left to the caller, who has a
    tokenizer.
    """
    for need in asked.needs:
        if need not in capabilities:
            raise UsageError(f"{short(asked.model)[1:-1]} does not support {need}")
    think = asked.think
    if think is None and "thinking" in capabilities:
        think = True
    common: dict[str, Any] = {
        "params": asked.params,
        "max_context": asked.options.max_context,
        "truncate": asked.truncate,
        "pin": asked.pin,
        "think": think if "thinking" in capabilities else None,
    }
    if asked.kind == "chat":
        return ChatRequest(messages=asked.messages, tools=asked.tools, parse=True, **common)
    if asked.suffix:
        return ChatRequest(prompt=asked.prompt, suffix=asked.suffix, **{**common, "think": None})
    if asked.raw:
        return ChatRequest(prompt=asked.prompt, **common)
    common["parse"] = True
    if asked.template:
        texts = {"System": asked.system, "Prompt": asked.prompt, "Response": ""}
        return ChatRequest(prompt=render_go_template(asked.template, texts), **common)
    if not has_template:
        if asked.system:
            raise UsageError("system: this model has no chat template, so it takes no system message")
        return ChatRequest(prompt=asked.prompt, **common)
    system = (Message("system", asked.system),) if asked.system else ()
    return ChatRequest(messages=(*system, Message("user", asked.prompt)), **common)


class Reply:
    """One answer on its way out: the lines of a stream, or the one object of an answer that is not streamed.

    Mutable: it gathers text, logprobs and token ids as events pass.  `token_bytes` spells a token.
    """

    def __init__(
        self,
        asked: Asked,
        load_s: float = 0.0,
        token_bytes: Callable[[int], bytes] = lambda token_id: b"",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._asked, self._load_s, self._token_bytes, self._now = asked, load_s, token_bytes, now
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls = Calls()
        self._shown_calls: list[dict[str, Any]] = []
        self._token_ids: list[int] = []
        self._logprobs: list[dict[str, Any]] = []
        self._n_logprobs_sent = 0
        self._finished: Finished | None = None

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        return b""

    def line(self, event: Event) -> bytes:
        """The NDJSON line for an event; nothing for a piece that shows no text yet."""
        if isinstance(event, Finished):
            return _encode(self._final(event, self._head(self._calls.rest()), [])) + b"\n"
        calls = self._take(event)
        fresh = self._logprobs[self._n_logprobs_sent :]
        if not (event.text or event.thinking or calls or fresh):
            return b""
        self._n_logprobs_sent = len(self._logprobs)
        head = self._head(event.text, event.thinking, calls)
        return _encode({**head, "done": False, **_maybe("logprobs", fresh)}) + b"\n"

    def end(self) -> bytes:
        return b""

    def broken(self, error: KvasirError) -> bytes:
        """The line with which a stream ends early."""
        return error_body(str(error)) + b"\n"

    def take(self, event: Event) -> None:
        """Gathers what `whole` will say."""
        if isinstance(event, Finished):
            self._finished = event
        else:
            self._take(event)

    def whole(self) -> bytes:
        """The one object of an answer that is not streamed, after all its events."""
        assert self._finished
        text = "".join((*self._texts, self._calls.rest()))
        head = self._head(text, "".join(self._thoughts), self._shown_calls)
        return _encode(self._final(self._finished, head, self._logprobs))

    def loaded(self, unload: bool) -> bytes:
        """The answer to an empty prompt: the model was loaded, or is being unloaded."""
        return _encode({**self._head(""), "done": True, "done_reason": "unload" if unload else "load"})

    def _take(self, event: Delta) -> list[dict[str, Any]]:
        """Gathers; the calls that are whole now."""
        self._texts.append(event.text)
        self._thoughts.append(event.thinking)
        calls = self._calls.take(event.tool_calls)
        self._shown_calls += calls
        self._token_ids += event.token_ids
        self._logprobs += [self._logprob(p) for p in event.logprobs]
        return calls

    def _head(self, text: str, thinking: str = "", calls: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        created = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        head: dict[str, Any] = {"model": self._asked.model, "created_at": created}
        more = {**_maybe("thinking", thinking), **_maybe("tool_calls", calls)}
        if self._asked.kind == "chat":
            return {**head, "message": {"role": "assistant", "content": text, **more}}
        return {**head, "response": text, **more}

    def _final(self, event: Finished, head: dict[str, Any], logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        body = {**head, "done": True}
        if event.reason != "abort":
            body["done_reason"] = "stop" if event.reason == "tool_calls" else event.reason
        if self._asked.kind == "generate" and not self._asked.raw:
            body["context"] = [*event.prompt_token_ids, *self._token_ids]
        body |= {**_maybe("logprobs", logprobs), **durations(event.metrics, self._load_s)}
        if self._asked.truncate:
            body["truncated_count"] = event.metrics.n_truncated
        return {**body, **_maybe("cached_count", event.metrics.n_cached)}

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        one = self._spelled(entry.token_id, entry.logprob)
        return {**one, **_maybe("top_logprobs", [self._spelled(t, p) for t, p in entry.top])}

    def _spelled(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


class Calls:
    """Calls of tools as Ollama sends them: whole ones, with their arguments as an object (mutable)."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[ToolPiece, list[str]]] = {}

    def take(self, pieces: Iterable[ToolPiece]) -> list[dict[str, Any]]:
        """The calls that are whole now."""
        whole = []
        for piece in pieces:
            first, texts = self._open.setdefault(piece.number, (piece, []))
            texts.append(piece.arguments)
            if piece.last:
                del self._open[piece.number]
                arguments = json.loads("".join(texts) or "{}")  # 1e999 too, which msgspec refuses
                function = {"index": first.number, "name": first.name, "arguments": arguments}
                whole.append({"id": first.id, "function": function})
        return whole

    def rest(self) -> str:
        """What there is of a call that was cut off; it is no object, so it is text."""
        return "".join(f"{first.name}({''.join(texts)}" for first, texts in self._open.values())


def durations(metrics: Metrics, load_s: float) -> dict[str, int]:
    """Ollama's six numbers: counts, and whole nanoseconds (at least one, as they are divisors)."""
    return {
        "total_duration": _ns(metrics.total_s + load_s),
        "load_duration": _ns(load_s),
        "prompt_eval_count": metrics.n_prompt,
        "prompt_eval_duration": _ns(metrics.prefill_s),
        "eval_count": metrics.n_generated,
        "eval_duration": _ns(metrics.decode_s),
    }


def error_body(message: str) -> bytes:
    """Ollama's shape of an error."""
    return _encode({"error": message})


def _ns(seconds: float) -> int:
    return max(round(seconds * 1e9), 1)


def _encode(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def _maybe(name: str, value: Any) -> dict[str, Any]:
    return {name: value} if value else {}


def _common(body: Common, warnings: tuple[str, ...]) -> dict[str, Any]:
    """The fields of Asked that both bodies give."""
    if not body.model:
        raise UsageError("model is required")
    if not 0 <= (body.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
        raise UsageError(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    options = parse_options(body.options or {})
    return {
        "model": body.model,
        "options": options,
        "given": {k: v for k, v in (body.options or {}).items() if v is not None},
        "stream": body.stream is not False,
        "keep_alive_s": None if body.keep_alive is None else keep_alive(body.keep_alive),
        "think": body.think,
        "truncate": bool(body.truncate),
        "pin": bool(body.pin),
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
        "form": ollamas(body.format),
        "warnings": (*warnings, *options.warnings),
    }


def keep_alive(value: int | float | str) -> float:
    """Seconds of a request's keep_alive.  Raises UsageError that names the field."""
    try:
        return keep_alive_s(value)
    except UsageError as error:
        raise UsageError(f"keep_alive: {error.message}", hint=error.hint) from None


def _refuse(body: Common) -> None:
    """Raises UsageError for what is known and cannot be honoured yet, whatever the model."""
    if isinstance(body.think, str) and body.think not in THINK_LEVELS:
        raise UsageError(
            f"think must be a boolean or one of {', '.join(THINK_LEVELS)}, got {short(body.think)}"
        )
    if body.shift:
        raise UsageError("shift is not supported: an answer ends when the context is full")
    if body.debug_render_only:
        raise UsageError("_debug_render_only is not supported")


def _needs(body: Common, **wanted: bool) -> tuple[str, ...]:
    return tuple(name for name, is_wanted in {**wanted, "thinking": bool(body.think)}.items() if is_wanted)


def _context(ids: list[int] | None) -> tuple[int, ...]:
    if bad := [i for i in ids or () if not 0 <= i < 2**31]:
        raise UsageError(f"context must hold token ids, got {short(str(bad[0]), 30)[1:-1]}")
    return tuple(ids or ())


def _message(sent: WireMessage, index: int) -> Message:
    role = sent.role.lower()
    if role not in ROLES:
        raise UsageError(f"messages[{index}].role must be one of {', '.join(ROLES)}, got {short(sent.role)}")
    calls = tuple(ToolCall(c.function.name, c.function.arguments, c.id or "") for c in sent.tool_calls or ())
    return Message(
        role=role,
        content=sent.content or "",
        thinking=sent.thinking or "",
        tool_calls=calls,
        tool_name=sent.tool_name or "",
        tool_call_id=sent.tool_call_id or "",
    )
