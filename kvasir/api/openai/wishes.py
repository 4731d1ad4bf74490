"""What chat and completions share: how to sample, in OpenAI's names and in those that vLLM adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kvasir.api import ollama
from kvasir.api.body import unknown
from kvasir.api.openai.forms import form
from kvasir.api.options import MAX_STOP_LENGTH, MAX_STOPS, NUMBERS, number
from kvasir.api.words import short
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams

MAX_IDS = 1024  # of a list of token ids

# Nothing here depends on them, and nobody is told otherwise.
IDLE = frozenset(
    ["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
     "service_tier", "request_id", "session_id", "spaces_between_special_tokens",
     "guided_decoding_backend", "guided_whitespace_pattern", "stream_interval"]
)  # fmt: skip
# Known, and refused unless they say what holds anyway.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "bad_words": ([],),
    "truncation_side": ("left",),
    "thinking_token_budget": (-1,),
    "repetition_detection": (),
    "chat_template": ("",),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
    "logits_processors": ([],),
    "prompt_embeds": ("", []),
    "audio": (),
    "modalities": (["text"], []),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none",),
    "moderation": (),
    "suffix": ("",),
    "store": (False,),
    "images": ([],),
    "prompt": (),
    "conversation": (),
    "background": (False,),
}
WHY = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "chat_template": "a template comes with its model",
    "store": "nothing is kept here",
    "use_beam_search": "ask for several answers with n",
}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Wishes(msgspec.Struct, kw_only=True):
    """How to answer, as far as chat and completions agree."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    logprob_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    echo: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    keep_alive: int | float | str | None = None
    options: dict[str, Any] | None = None


def told(values: Mapping[str, Any], shape: type[msgspec.Struct]) -> tuple[str, ...]:
    """The warnings for fields that nobody knows.  Raises UsageError for those that are known and refused."""
    for name, harmless in REFUSED.items():
        value = values.get(name)
        if name not in shape.__struct_encode_fields__ and value is not None and value not in harmless:
            raise UsageError(f"{name} is not supported", hint=WHY.get(name, ""))
    rest = {name: v for name, v in values.items() if v is not None and name not in IDLE | REFUSED.keys()}
    return unknown(rest, shape)


def sampling(body: Wishes, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """The law by which tokens are chosen.  What is not said is vLLM's default.  Raises UsageError."""
    plain = {
        name: value
        for name in PLAIN
        if (value := getattr(body, name)) is not None
    }  # fmt: skip
    plain = {**_options(body.options or {}), **plain}
    if max_tokens is not None:
        plain["max_tokens"] = max_tokens
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"):
        if len(getattr(body, name) or ()) > MAX_IDS:
            raise UsageError(f"{name} must hold at most {MAX_IDS} tokens")
    if body.stop is not None:
        plain["stop"] = _stops(body.stop)
    if body.logprob_token_ids and logprobs is None:
        logprobs = 0
    return SamplingParams(
        **{"max_tokens": None, **plain},
        logprobs=logprobs,
        logit_bias=_biases(body.logit_bias or {}),
        repeat_last_n=-1,
        structured_outputs=form(body),
    )


PLAIN = ("n", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p",
     "typical_p", "repetition_penalty", "min_tokens", "stop_token_ids", "allowed_token_ids",
     "logprob_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens",
     "prompt_logprobs")  # fmt: skip


def said(body: Wishes, max_tokens: int | None) -> frozenset[str]:
    """The names in SamplingParams that a body gives."""
    given = {name for name in (*PLAIN, "stop") if getattr(body, name) is not None}
    given |= _options(body.options or {}).keys()
    return frozenset(given | ({"max_tokens"} if max_tokens is not None else set()))


def max_context(body: Wishes) -> int | None:
    """The limit of prompt and answer that Ollama's num_ctx asks for."""
    given = (body.options or {}).get("num_ctx")
    return (int(number("num_ctx", given)) or None) if given is not None else None


def truncates(body: Wishes) -> bool:
    """Whether the prompt may be cut to what the context holds: vLLM's -1."""
    if body.truncate_prompt_tokens not in (None, -1):
        raise UsageError("truncate_prompt_tokens must be -1 (what the context holds) or absent")
    return body.truncate_prompt_tokens == -1


def keep_alive_s(body: Wishes) -> float | None:
    """How long the model stays afterwards, if it was said, as Ollama says it."""
    return None if body.keep_alive is None else ollama.keep_alive(body.keep_alive)


def streams(body: Wishes) -> bool:
    """Whether the answer is a stream.  Raises UsageError for what only streams have."""
    if body.stream_options is not None and not body.stream:
        raise UsageError("stream_options is only for a stream", hint="set stream, or leave it out")
    if body.stream and body.prompt_logprobs is not None:
        raise UsageError("prompt_logprobs is not told in a stream", hint="ask without stream")
    return bool(body.stream)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's `options`, which some clients send here too, in our names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or name == "num_ctx":
            continue
        if name == "stop":
            found["stop"] = _stops(value)
        elif name not in NUMBERS:
            raise UsageError(
                f"options.{short(name)[1:-1]} is unknown", hint=f"there are {', '.join(NUMBERS)}"
            )
        elif name == "num_predict":
            found["max_tokens"] = int(number(name, value)) if number(name, value) > 0 else None
        elif name != "seed" or number(name, value) >= 0:
            found[NUMBERS[name].param or name] = number(name, value)
    found.pop("repeat_last_n", None)
    return found


def _stops(given: object) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise UsageError("stop must be a string or an array of strings")
    if len(stops) > MAX_STOPS or any(not 0 < len(s) <= MAX_STOP_LENGTH for s in stops):
        raise UsageError(f"stop must hold at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(stops)


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise UsageError(f"logit_bias must have token ids as keys, got {short(token)}")
    return {int(token): bias for token, bias in given.items()}
