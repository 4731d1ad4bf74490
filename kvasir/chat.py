"""What all faces speak: a request to a loaded model, and the events that answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import sqrt
from typing import Any, Literal

from kvasir.records import dataclass
from kvasir.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "tool_calls"]


@dataclass(frozen=True)
class ToolCall:
    """A function the model asks for; `arguments` keep the order in which the model wrote them."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: role system, user, assistant or tool."""

    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True)
class ChatRequest:
    """What any face asks of a loaded model.

    Either `messages`, rendered by the model's chat template, or `prompt`: text or token ids, used as they are
    (`add_special_tokens` puts the model's BOS before a text).  `suffix`: what stands behind the answer to a
    text, for models that fill in the middle.  `context`: token ids of an earlier exchange,
    which go before them.  `max_context` caps prompt and answer together; a prompt over it is refused with
    both lengths, unless `truncate`: then the oldest tokens go, and `Metrics.n_truncated` says how many.
    `adapter` names one of the model's LoRA adapters that answers; empty: the model alone does.
    Requests of one `tenant` share what is computed of their prompts; others never see it.  Higher `priority`
    is let in first.  `pin`: the whole blocks of its prompt stay in the prefix cache for an hour after their
    last use, and longest on disk; refused where too much is pinned.  `hold`: the prompt up to the end of so
    many messages stays in the cache for `hold_s` as far as there is room beside what is pinned, which goes
    first; never refused, and `Metrics.n_held` tells.  With `parse` the answer comes in its
    parts, thoughts, text and calls of tools, as the model's family marks them; else it is the text that the
    model writes.  `tool_choice`: "auto", "none", "required" (some tool must be called), or the name of the
    tool that must be.  `template_values`: further variables for the template.  The answer opens a turn,
    unless `opens_turn` is False; with `continues` it goes on with the last message, which the template
    leaves open.
    """

    params: SamplingParams
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    suffix: str = ""
    context: tuple[int, ...] = ()
    add_special_tokens: bool = True
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    parse: bool = False
    think: bool | str | None = None
    max_context: int | None = None
    truncate: bool = False
    tenant: str = ""
    priority: int = 0
    pin: bool = False
    hold: int | None = None
    hold_s: float = 300.0
    template_values: Mapping[str, Any] = field(default_factory=dict)
    opens_turn: bool = True
    continues: bool = False
    adapter: str = ""


@dataclass(frozen=True)
class Metrics:
    """How a request went: seconds and token counts."""

    queue_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0  # first step begun -> first token
    decode_s: float = 0.0  # first token -> last token
    ttft_s: float = 0.0  # asked -> first token
    total_s: float = 0.0
    n_prompt: int = 0
    n_cached: int = 0  # of n_prompt: found in the prefix cache
    n_from_disk: int = 0  # of n_cached: read from disk for this request
    n_held: int = 0  # of n_prompt: stay there, as ChatRequest.hold wished
    n_drafted: int = 0
    n_accepted: int = 0
    n_truncated: int = 0
    n_generated: int = 0
    n_preempted: int = 0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first; 0 when there was only one."""
        return (self.n_generated - 1) / self.decode_s if self.decode_s > 0 and self.n_generated > 1 else 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """The natural-log probability of a token, and of the most likely ones at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolPiece:
    """A piece of a call: `arguments` of all pieces with one `number` join to its JSON object.

    The first piece of a call has its `name` and `id`; `last` says that the call is whole.
    """

    number: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    last: bool = False


@dataclass(frozen=True)
class Delta:
    """A further piece of answer `index`: whole characters, never part of a stop string.

    With `ChatRequest.parse` its thoughts and calls come apart from `text`; a piece may have any of them.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    thinking: str = ""
    tool_calls: tuple[ToolPiece, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of answer `index`.  `stop_reason`: the stop string or token id that ended it, if one did.

    `reason` is "tool_calls" when the answer came in its parts, ended by itself, and called a tool.
    """

    reason: FinishReason
    metrics: Metrics = field(default_factory=Metrics)
    stop_reason: str | int | None = None
    index: int = 0
    prompt_token_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # none for the first token


Event = Delta | Finished


@dataclass(frozen=True)
class Embedding:
    """What an embedding model makes of a text: numbers [D], as its pooling gives them (not normalized).

    `n_tokens`: of the text as it was computed; `n_truncated`: those that were cut off its end before.
    """

    values: list[float]
    n_tokens: int
    n_truncated: int = 0


def normalized(values: list[float]) -> list[float]:
    """An embedding [D] at length one; zeros stay."""
    length = sqrt(sum(v * v for v in values))
    return [v / length for v in values] if length > 0 else values


@dataclass(frozen=True)
class Spelled:
    """Tokens as text (without the model's markers), and the bytes of each."""

    text: str
    pieces: tuple[bytes, ...]
