"""What several answers hold: ids, times, usage, log-probabilities; and the events of a stream."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from time import time
from typing import Any

import msgspec

from kvasir.api.loaded import Loaded
from kvasir.api.openai.errors import error_of
from kvasir.chat import Delta, Event, Finished, TokenLogprob
from kvasir.errors import KvasirError

SSE, JSON = "text/event-stream", "application/json; charset=utf-8"
DONE = b"data: [DONE]\n\n"
TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True)
class Stamp:
    """What names an answer: its id and when it was begun, in seconds since 1970."""

    id: str
    created: int

    @classmethod
    def new(cls, prefix: str) -> Stamp:
        return cls(f"{prefix}{secrets.token_hex(16)}", int(time()))


def name_of(model: Loaded) -> str:
    """What a model is called where nobody named it: never with a folder."""
    return PurePath(model.info.name).name


def encode(body: object) -> bytes:
    return msgspec.json.encode(body)


def data(body: object) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def named(body: Mapping[str, Any]) -> bytes:
    """A server-sent event that is called what its `type` says."""
    return b"event: " + str(body["type"]).encode() + b"\n" + data(body)


def broken(error: KvasirError) -> bytes:
    """How a stream of chat or completions tells of an error; clients read no further."""
    return data({"error": error_of(error)}) + DONE


@dataclass
class Counts:
    """Tokens of an answer to one or several prompts with `n_each` answers each.  Mutable: counts events."""

    n_each: int
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    n_reasoning: int = 0
    n_seen: dict[int, int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            count = len(event.token_ids)
            self.n_seen[event.index] = self.n_seen.get(event.index, 0) + count
            self.n_generated += count
            self.n_reasoning += count if event.thinking else 0
            return
        self.n_generated += event.metrics.n_generated - self.n_seen.get(event.index, 0)
        if event.index % self.n_each == 0:  # the answers to one prompt share it
            self.n_prompt += event.metrics.n_prompt
            self.n_cached += event.metrics.n_cached

    def usage(self) -> dict[str, Any]:
        """As chat and completions tell it."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_generated,
            "total_tokens": self.n_prompt + self.n_generated,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
            "completion_tokens_details": {"reasoning_tokens": self.n_reasoning},
        }


def spelled(token_bytes: TokenBytes, token_id: int) -> str:
    return token_bytes(token_id).decode("utf-8", "replace")


def chat_logprobs(entries: Iterable[TokenLogprob], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """Log-probabilities as chat and responses tell them, a token with its bytes."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(raw)}

    return [{**one(e.token_id, e.logprob), "top_logprobs": [one(t, p) for t, p in e.top]} for e in entries]


def prompt_logprobs(end: Finished, token_bytes: TokenBytes) -> list[dict[str, Any] | None]:
    """vLLM's log-probabilities of a prompt: null for the first token, then a mapping by token id."""
    found: list[dict[str, Any] | None] = []
    for entry in end.prompt_logprobs:
        if entry is None:
            found.append(None)
            continue
        ranks = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)}
        ranked: dict[int, tuple[float, int | None]] = {entry.token_id: (entry.logprob, None), **ranks}
        found.append(
            {
                str(token): {
                    "logprob": finite(logprob),
                    "rank": rank,
                    "decoded_token": spelled(token_bytes, token),
                }
                for token, (logprob, rank) in ranked.items()
            }
        )
    return found


def finite(logprob: float) -> float:
    """JSON has no infinities; OpenAI's least log-probability is this."""
    return max(logprob, -9999.0)
