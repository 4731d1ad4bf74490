"""A Messages body to what is asked of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kvasir.api.anthropic.body import CacheControl, CountBody, MessagesBody, Tool, ToolChoice
from kvasir.api.anthropic.reply import Reply, Shows
from kvasir.api.anthropic.turns import system_text, turns
from kvasir.api.body import decode, typed, unknown
from kvasir.api.face import Sent
from kvasir.api.length import Length
from kvasir.api.loaded import Loaded
from kvasir.api.ollama import keep_alive
from kvasir.api.options import MAX_STOP_LENGTH, MAX_STOPS, own_context, with_own
from kvasir.api.words import short
from kvasir.chat import ChatRequest, Message
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams
from kvasir.structured import StructuredOutputsParams

JSON, EVENTS = "application/json; charset=utf-8", "text/event-stream; charset=utf-8"
MIN_BUDGET = 1024
MAX_BREAKPOINTS = 4
LIFETIMES = {"5m": 300.0, "1h": 3600.0}  # of a breakpoint: seconds
MAX_MESSAGES = 100_000
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
# Fields that are known and change nothing here.
IDLE = ("speed", "context_management", "inference_geo", "diagnostics")
REFUSED = {
    "container": "code does not run here",
    "mcp_servers": "tools of MCP servers are run by clients here: give them as tools",
}


@dataclass(frozen=True)
class Thoughts:
    """What is wished of thinking.  `kind` None: nothing was said."""

    kind: Literal["enabled", "disabled", "adaptive", "between_tools"] | None = None
    shows: Shows = "hidden"
    effort: str | None = None

    def think(self, model: Loaded, after_tools: bool) -> bool | str | None:
        """What ChatRequest calls it, for this model.  Raises UsageError if it must think and cannot."""
        if "thinking" not in model.info.capabilities:
            if self.kind == "enabled":
                raise UsageError(
                    "thinking: this model does not think", hint="leave it out, or use adaptive or disabled"
                )
            return None
        wanted = self.kind in ("enabled", "adaptive") or (self.kind == "between_tools" and after_tools)
        return self.effort or True if wanted else False


@dataclass(frozen=True)
class Hold:
    """The first messages of a conversation, and what stands before them, for so long."""

    n_messages: int
    seconds: float


@dataclass(frozen=True)
class Asked:
    """What a body asks for, before it is known which model answers.

    `empty`: nothing is to be written, the prompt is only made ready (max_tokens 0).  `hold`: what is to
    stay in the cache.
    """

    model: str
    messages: tuple[Message, ...]
    params: SamplingParams
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    parallel: bool = True
    thoughts: Thoughts = Thoughts()
    hold: Hold | None = None
    empty: bool = False
    said: frozenset[str] = frozenset()
    stream: bool = False
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return EVENTS if self.stream else JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """The one request to this model.  Raises UsageError for what it cannot do, by name of the field."""
        if self.tools and "tools" not in model.info.capabilities:
            raise UsageError("tools: this model's chat template knows no tools", hint="use another model")
        last = self.messages[-1]
        continues = last.role == "assistant"
        if continues and last.tool_calls:
            raise UsageError(
                "messages: the last one calls tools", hint="send their results in a user message"
            )
        if continues and self.thoughts.kind in ("enabled", "adaptive"):
            raise UsageError(
                "messages: the last one is the assistant's, and an answer that goes on from it cannot think",
                hint="leave out thinking, or end with a user message",
            )
        return (
            ChatRequest(
                params=with_own(self.params, self.said, model.info.made),
                messages=self.messages,
                tools=self.tools,
                tool_choice=self.tool_choice,
                parallel_tool_calls=self.parallel,
                parse=True,
                think=self.thoughts.think(model, last.role == "tool"),
                continues=continues,
                max_context=own_context(None, model.info.made),
                hold=self.hold.n_messages if self.hold else None,
                hold_s=self.hold.seconds if self.hold else 0.0,
            ),
        )

    def reply(self, model: Loaded, load_s: float) -> Reply:
        return Reply(
            self.model,
            shows=self.thoughts.shows,
            stops=self.params.stops,
            max_tokens=0 if self.empty else self.params.max_tokens or 0,
        )


def parse_messages(sent: Sent) -> Asked:
    """What the body of /v1/messages asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, MessagesBody)
    asked = _common(values, body, unknown(values, MessagesBody))
    if body.max_tokens < 0:
        raise UsageError(f"max_tokens must be 0 or more, got {body.max_tokens}")
    if not 0 <= (1.0 if body.temperature is None else body.temperature) <= 1:
        raise UsageError(f"temperature must be between 0 and 1, got {body.temperature!r}")
    budget = body.thinking.budget_tokens if body.thinking else None
    if budget is not None and budget >= body.max_tokens:
        raise UsageError(
            f"max_tokens ({body.max_tokens}) must be greater than thinking.budget_tokens ({budget})"
        )
    form = (body.output_config and body.output_config.format) or body.output_format
    params = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        max_tokens=max(body.max_tokens, 1),
        stop=_stops(body.stop_sequences or ()),
        structured_outputs=_form(form.schema) if form else None,
    )
    given: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    given |= {"stop": body.stop_sequences, "max_tokens": body.max_tokens}
    said = frozenset(name for name, value in given.items() if value is not None)
    return replace(asked, params=params, said=said, stream=bool(body.stream), empty=body.max_tokens == 0)


def parse_count(sent: Sent) -> Length:
    """What the body of /v1/messages/count_tokens is about.  Raises UsageError that names the field."""
    values = decode(sent.body)
    known = set(MessagesBody.__struct_encode_fields__)
    foreign = {name: value for name, value in values.items() if name not in known}
    asked = _common(values, typed(values, CountBody), unknown(foreign, CountBody))
    return Length(asked, lambda n_tokens: {"input_tokens": n_tokens})


def _common(values: dict[str, Any], body: CountBody, warnings: tuple[str, ...]) -> Asked:
    """What both bodies say."""
    for name, why in REFUSED.items():
        if values.get(name):
            raise UsageError(f"{name} is not supported: {why}")
    if not body.model:
        raise UsageError("model is required")
    if not 0 < len(body.messages) <= MAX_MESSAGES:
        raise UsageError(f"messages must hold 1 to {MAX_MESSAGES:,} messages, got {len(body.messages):,}")
    system = system_text(body.system)
    before = (Message("system", system),) if system else ()
    choice = body.tool_choice or ToolChoice("auto")
    tools = tuple(_tool(tool, i) for i, tool in enumerate(body.tools or ()))
    idle = [f"{name} has no effect" for name in IDLE if values.get(name)]
    thoughts, told = _thoughts(body)
    names = tuple(tool.name for tool in body.tools or ())
    if len(set(names)) < len(names):
        raise UsageError("tools: every tool needs a name of its own")
    return Asked(
        model=body.model,
        messages=before + turns(body.messages),
        params=SamplingParams(),
        tools=tools,
        tool_choice=_choice(choice, names),
        parallel=not choice.disable_parallel_tool_use,
        thoughts=thoughts,
        hold=_hold(body, len(before)),
        keep_alive_s=None if body.keep_alive is None else keep_alive(body.keep_alive),
        warnings=(*warnings, *idle, *told),
    )


def _hold(body: CountBody, n_before: int) -> Hold | None:
    """What the breakpoints wish, `n_before` messages being the system's: up to the last one, for the longest
    time of any.

    Raises UsageError for more breakpoints than may be.
    """
    marks = list(_breakpoints(body))
    if len(marks) > MAX_BREAKPOINTS:
        raise UsageError(
            f"cache_control: at most {MAX_BREAKPOINTS} blocks of a request may have it, got {len(marks)}"
        )
    if not marks:
        return None
    n_sent = max(n for n, _ in marks)
    n_messages = n_before + (len(turns(body.messages[:n_sent])) if n_sent else 0)
    return Hold(n_messages, max(LIFETIMES[mark.ttl or "5m"] for _, mark in marks))


def _breakpoints(body: CountBody) -> Iterator[tuple[int, CacheControl]]:
    """Every cache_control of a body, and how many of its messages lie before it."""
    marked: list[tuple[int, Any]] = [(len(body.messages), body), *((0, tool) for tool in body.tools or ())]
    marked += [(0, block) for block in body.system] if isinstance(body.system, list) else []
    for n, message in enumerate(body.messages, 1):
        for block in message.content if isinstance(message.content, list) else ():
            inner = getattr(block, "content", None)
            marked += [(n, block), *((n, each) for each in (inner if isinstance(inner, list) else ()))]
    return ((n, each.cache_control) for n, each in marked if each.cache_control is not None)


def _thoughts(body: CountBody) -> tuple[Thoughts, tuple[str, ...]]:
    """What is wished of thinking, and warnings about wishes that have no effect."""
    config, effort = body.thinking, body.output_config.effort if body.output_config else None
    if config is None or config.type == "disabled":
        told = ("output_config.effort has no effect without thinking",) if effort else ()
        return Thoughts(config.type if config else None), told
    if config.type == "enabled" and config.budget_tokens is None:
        raise UsageError("thinking.budget_tokens is required with thinking.type enabled")
    if config.budget_tokens is not None and config.budget_tokens < MIN_BUDGET:
        raise UsageError(f"thinking.budget_tokens must be at least {MIN_BUDGET}, got {config.budget_tokens}")
    told = ("thinking.budget_tokens has no effect: max_tokens bounds thoughts and answer together",)
    shows: Shows = config.display or "summarized"
    thoughts = Thoughts(config.type, shows, EFFORTS[effort] if effort else None)
    return thoughts, told if config.budget_tokens is not None else ()


def _tool(tool: Tool, i: int) -> dict[str, Any]:
    """A tool in the shape of ChatRequest."""
    if tool.type not in (None, "custom"):
        raise UsageError(
            f"tools[{i}].type {short(tool.type)} is not supported: only tools of your own are",
            hint="give the tool a name, a description and an input_schema",
        )
    if not tool.name:
        raise UsageError(f"tools[{i}].name is required")
    if tool.input_schema is None:
        raise UsageError(f"tools[{i}].input_schema is required")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description:
        function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice, names: Sequence[str]) -> str:
    """ChatRequest's word for a tool_choice.  Raises UsageError for one that no tool can meet."""
    if choice.type in ("any", "tool") and not names:
        raise UsageError(f"tool_choice {choice.type} needs tools, and there are none")
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if not choice.name:
        raise UsageError("tool_choice.name is required with type tool")
    if choice.name not in names:
        raise UsageError(f"tool_choice.name {short(choice.name)} is none of the tools")
    return choice.name


def _stops(given: Sequence[str]) -> tuple[str, ...]:
    if len(given) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in given):
        raise UsageError(
            f"stop_sequences must hold at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters"
        )
    return tuple(given)


def _form(schema: dict[str, Any]) -> StructuredOutputsParams:
    try:
        return StructuredOutputsParams(json=schema)
    except UsageError as error:
        reason = error.message.removeprefix("structured_outputs.json: ")
        raise UsageError(f"output_config.format.schema: {reason}", hint=error.hint) from None
