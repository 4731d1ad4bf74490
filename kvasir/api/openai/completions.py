"""/v1/completions: texts or token ids go on, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.parts import (
    DONE,
    JSON,
    SSE,
    Counts,
    Stamp,
    TokenBytes,
    broken,
    data,
    encode,
    finite,
    name_of,
    prompt_logprobs,
    spelled,
)
from kvasir.api.openai.wishes import StreamOptions, Wishes
from kvasir.api.options import own_context, with_own
from kvasir.chat import ChatRequest, Delta, Event, Finished, TokenLogprob
from kvasir.errors import KvasirError, UsageError
from kvasir.sampling import SamplingParams

MAX_PROMPTS = 512
MAX_ANSWERS = 1024  # of all prompts together
Prompt = str | tuple[int, ...]


class Body(Wishes, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    logprobs: int | None = None
    best_of: int | None = None


@dataclass(frozen=True)
class Asked:
    """Completions that are wanted.  `only_prompt`: no token was asked for (`max_tokens` 0); one is computed
    and left out, for the prompt's own log-probabilities.
    """

    model: str
    params: SamplingParams
    prompts: tuple[Prompt, ...]
    stream: bool = False
    options: StreamOptions = field(default_factory=StreamOptions)
    echo: bool = False
    only_prompt: bool = False
    add_special_tokens: bool = True
    truncate: bool = False
    max_context: int | None = None
    priority: int = 0
    tenant: str = ""
    tells_ids: bool = False
    tells_prompt_logprobs: bool = False
    said: frozenset[str] = frozenset()
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return SSE if self.stream else JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """A request for each prompt."""
        return tuple(
            ChatRequest(
                params=with_own(self.params, self.said, model.info.made),
                prompt=prompt,
                add_special_tokens=self.add_special_tokens,
                truncate=self.truncate,
                max_context=own_context(self.max_context, model.info.made),
                priority=self.priority,
                tenant=self.tenant,
            )
            for prompt in self.prompts
        )

    def reply(self, model: Loaded, load_s: float) -> Reply:
        echoed = [p if isinstance(p, str) else model.spell(p).text for p in self.prompts] if self.echo else []
        asked = replace(self, model=self.model or name_of(model))
        return Reply(asked, echoed, model.token_bytes, Stamp.new("cmpl-"))


def parse(sent: Sent) -> Asked:
    """What the body of /v1/completions asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, Body)
    warnings = wishes.told(values, Body)
    prompts = prompts_of(body.prompt, "prompt")
    n = body.n or 1
    if body.best_of not in (None, n):
        raise UsageError("best_of must be n or absent", hint="ask for several answers with n")
    if len(prompts) * n > MAX_ANSWERS:
        raise UsageError(f"n is {n} for {len(prompts)} prompts; {MAX_ANSWERS} answers are the most")
    limit: int | None = 16 if body.max_tokens is None else body.max_tokens
    if body.max_tokens is None and (body.options or {}).get("num_predict") is not None:
        limit = None
    params = wishes.sampling(body, limit or (None if limit is None else 1), body.logprobs)
    if body.echo and body.logprobs is not None:
        if body.stream and n > 1:
            raise UsageError("echo with logprobs has one answer in a stream", hint="ask without stream")
        params = replace(params, prompt_logprobs=max(body.logprobs, body.prompt_logprobs or 0))
    return Asked(
        model=body.model or "",
        params=params,
        prompts=prompts,
        stream=wishes.streams(body),
        options=body.stream_options or StreamOptions(),
        echo=bool(body.echo),
        only_prompt=limit == 0,
        add_special_tokens=body.add_special_tokens is not False,
        truncate=wishes.truncates(body),
        max_context=wishes.max_context(body),
        priority=-(body.priority or 0),
        tenant=body.cache_salt or "",
        tells_ids=bool(body.return_token_ids),
        tells_prompt_logprobs=body.prompt_logprobs is not None,
        said=wishes.said(body, body.max_tokens),
        keep_alive_s=wishes.keep_alive_s(body),
        warnings=warnings,
    )


def prompts_of(given: str | Sequence[Any] | None, where: str) -> tuple[Prompt, ...]:
    """One text, several, token ids, or several lists of them.  Raises UsageError."""
    if isinstance(given, str):
        return (given,)
    if not given:
        raise UsageError(f"{where} must be a text, token ids, or a list of either, and not empty")
    if ids := [token for token in given if isinstance(token, int)]:
        if len(ids) < len(given):
            raise UsageError(f"{where} must hold texts alone or token ids alone")
        return (_ids(ids, where),)
    if len(given) > MAX_PROMPTS:
        raise UsageError(f"{where} must hold at most {MAX_PROMPTS} texts")
    if all(isinstance(text, str) for text in given):
        return tuple(given)
    if all(isinstance(ids, list) for ids in given):
        return tuple(_ids(ids, f"{where}[{i}]") for i, ids in enumerate(given))
    raise UsageError(f"{where} must hold texts alone or token ids alone")


def _ids(given: Sequence[int], where: str) -> tuple[int, ...]:
    if not given:
        raise UsageError(f"{where} must hold token ids, and not be empty")
    if not all(0 <= token < 2**31 for token in given):
        raise UsageError(f"{where} must hold token ids (integers from 0)")
    return tuple(given)


class Reply:
    """Completions on their way out.  Mutable: it counts tokens and gathers texts as events pass.

    `echoed`: the prompts' texts, if they go before the answers; log-probabilities of a prompt come with an
    answer's end, so an echoed stream with them waits for that.
    """

    def __init__(self, asked: Asked, echoed: Sequence[str], token_bytes: TokenBytes, stamp: Stamp):
        self._asked, self._echoed, self._token_bytes, self._stamp = asked, echoed, token_bytes, stamp
        self._n_each = asked.params.n
        self._counts = Counts(self._n_each)
        self._choices = [_Choice() for _ in range(self._n_each * len(asked.prompts))]
        self._waits = asked.echo and asked.params.logprobs is not None

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        if not self._echoed or self._waits:
            return b""
        chunks = (self._chunk(i, self._echo(i)) for i, _ in enumerate(self._choices))
        return b"".join(data(chunk) for chunk in chunks)

    def line(self, event: Event) -> bytes:
        self.take(event)
        choice = self._choices[event.index]
        if isinstance(event, Finished):
            text, told = (self._text(event.index), self._logprobs(event.index)) if self._waits else ("", None)
            chunk = self._chunk(event.index, text, told)
            chunk["choices"][0] |= {"finish_reason": self._reason(event), "stop_reason": event.stop_reason}
            return data(chunk)
        if self._waits or self._asked.only_prompt or not (event.text or event.logprobs):
            return b""
        told = None
        if self._asked.params.logprobs is not None:
            told = _legacy(event.logprobs, self._token_bytes, choice.n_characters)
            choice.n_characters += sum(map(len, told["tokens"]))
        chunk = self._chunk(event.index, event.text, told)
        if self._asked.tells_ids:
            chunk["choices"][0]["token_ids"] = list(event.token_ids)
        return data(chunk)

    def end(self) -> bytes:
        if not self._asked.options.include_usage:
            return DONE
        return data({**self._head(), "choices": [], "usage": self._usage()}) + DONE

    def broken(self, error: KvasirError) -> bytes:
        return broken(error)

    def take(self, event: Event) -> None:
        self._counts.take(event)
        choice = self._choices[event.index]
        if isinstance(event, Finished):
            choice.end = event
        elif not self._asked.only_prompt:
            choice.take(event)

    def whole(self) -> bytes:
        choices = [self._whole(i) for i, _ in enumerate(self._choices)]
        return encode({**self._head(), "choices": choices, "usage": self._usage()})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._stamp.id,
            "object": "text_completion",
            "created": self._stamp.created,
            "model": self._asked.model,
            "system_fingerprint": "kvasir",
        }

    def _usage(self) -> dict[str, Any]:
        if self._asked.only_prompt:
            self._counts.n_generated = 0
        return self._counts.usage()

    def _chunk(self, index: int, text: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": told, "finish_reason": None}
        chunk = {**self._head(), "choices": [choice]}
        if self._asked.options.continuous_usage_stats:
            chunk["usage"] = self._usage()
        elif self._asked.options.include_usage:
            chunk["usage"] = None
        return chunk

    def _echo(self, index: int) -> str:
        return self._echoed[index // self._n_each] if self._echoed else ""

    def _text(self, index: int) -> str:
        return self._echo(index) + "".join(self._choices[index].texts)

    def _reason(self, end: Finished) -> str:
        return "length" if self._asked.only_prompt else end.reason

    def _prompt_end(self, index: int) -> Finished | None:
        """What is known of an answer's prompt: its first answer has been told it."""
        first = self._choices[index - index % self._n_each].end
        return first if first and first.prompt_logprobs else self._choices[index].end

    def _logprobs(self, index: int) -> dict[str, Any] | None:
        if self._asked.params.logprobs is None:
            return None
        entries: list[TokenLogprob | None] = list(self._choices[index].logprobs)
        end = self._prompt_end(index)
        if self._asked.echo and end:
            top = self._asked.params.logprobs
            scored = [p and replace(p, top=p.top[:top]) for p in end.prompt_logprobs]
            first = spelled(self._token_bytes, end.prompt_token_ids[0]) if end.prompt_token_ids else ""
            return _legacy([*scored, *entries], self._token_bytes, 0, first)
        return _legacy(entries, self._token_bytes, 0)

    def _whole(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        assert choice.end
        found = {
            "index": index,
            "text": self._text(index),
            "logprobs": self._logprobs(index),
            "finish_reason": self._reason(choice.end),
            "stop_reason": choice.end.stop_reason,
        }
        end = self._prompt_end(index)
        if self._asked.tells_prompt_logprobs and end:
            found["prompt_logprobs"] = prompt_logprobs(end, self._token_bytes)
        if self._asked.tells_ids:
            found |= {"token_ids": choice.token_ids, "prompt_token_ids": list(choice.end.prompt_token_ids)}
        return found


class _Choice:
    """One answer being put together.  Mutable."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.token_ids: list[int] = []
        self.n_characters = 0  # told of so far, in a stream
        self.end: Finished | None = None

    def take(self, event: Delta) -> None:
        self.texts.append(event.text)
        self.logprobs += event.logprobs
        self.token_ids += event.token_ids


def _legacy(
    entries: Sequence[TokenLogprob | None], token_bytes: TokenBytes, offset: int, first: str = ""
) -> dict[str, Any]:
    """Log-probabilities as completions tell them: lists side by side.  `first`: a token without any, which
    an echoed prompt begins with; `offset`: of the first token, in characters.
    """
    tokens = [spelled(token_bytes, e.token_id) if e else first for e in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [finite(e.logprob) if e else None for e in entries],
        "top_logprobs": [_top(e, token_bytes) if e else None for e in entries],
        "text_offset": [*accumulate(map(len, tokens), initial=offset)][: len(tokens)],
    }


def _top(entry: TokenLogprob, token_bytes: TokenBytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, logprob in (*entry.top, (entry.token_id, entry.logprob)):
        found.setdefault(spelled(token_bytes, token), finite(logprob))
    return found
