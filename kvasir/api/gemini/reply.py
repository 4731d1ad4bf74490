"""Events to a GenerateContentResponse, whole or as a stream of such."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvasir.api.errors import fault_of
from kvasir.api.gemini.errors import error_body
from kvasir.api.seal import sealed
from kvasir.chat import Delta, Event, Finished, TokenLogprob
from kvasir.errors import KvasirError

REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS"}


@dataclass
class Candidate:
    """One answer so far.  Mutable.

    `parts`: of the whole answer.  `call`: the pieces of the call that is being written.  `signed`: the
    thought has gone out in a signature.
    """

    parts: list[dict[str, Any]] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    call: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    signed: bool = False
    thinks: bool = False
    n_thinking: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None


class Reply:
    """One response on its way out.  Mutable: it gathers what it needs as events pass."""

    def __init__(
        self,
        model: str,
        *,
        shown: bool = False,
        events: bool = True,
        n_answers: int = 1,
        token_bytes: Callable[[int], bytes] = lambda token_id: b"",
        id: str = "",
    ):
        self._model, self._shown, self._events = model, shown, events
        self._token_bytes = token_bytes
        self._id = id or uuid.uuid4().hex[:24]
        self._candidates = [Candidate() for _ in range(n_answers)]
        self._n_sent = 0

    # -- a stream ---------------------------------------------------------------------------------

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        return b"" if self._events else b"["

    def line(self, event: Event) -> bytes:
        candidate = self._candidates[event.index]
        if isinstance(event, Finished):
            candidate.end = event
            return self._chunk(event.index, self._left(candidate), [])
        parts = self._parts(candidate, event)
        candidate.logprobs += event.logprobs
        return self._chunk(event.index, parts, list(event.logprobs)) if parts or event.logprobs else b""

    def end(self) -> bytes:
        return b"" if self._events else b"]"

    def broken(self, error: KvasirError) -> bytes:
        fault = fault_of(error)
        body = error_body(fault.status, fault.kind, fault.message)
        return self._framed(body) + self.end()

    def _chunk(self, index: int, parts: list[dict[str, Any]], logprobs: list[TokenLogprob]) -> bytes:
        """A response with a further piece of one candidate; with the last of all, the counts."""
        candidate = self._candidates[index]
        body: dict[str, Any] = {"candidates": [self._candidate(index, parts, logprobs)]}
        if candidate.end and candidate.logprobs:
            body["candidates"][0]["avgLogprobs"] = _mean(candidate.logprobs)
        if all(each.end for each in self._candidates):
            body["usageMetadata"] = self._usage()
        return self._framed(msgspec.json.encode({**body, **self._tail()}))

    def _framed(self, body: bytes) -> bytes:
        self._n_sent += 1
        if self._events:
            return b"data: " + body + b"\r\n\r\n"
        return body if self._n_sent == 1 else b",\r\n" + body

    # -- a whole answer ---------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        candidate = self._candidates[event.index]
        if isinstance(event, Finished):
            candidate.end = event
            _append(candidate.parts, self._left(candidate))
        else:
            _append(candidate.parts, self._parts(candidate, event))
            candidate.logprobs += event.logprobs

    def whole(self) -> bytes:
        found = []
        for index, candidate in enumerate(self._candidates):
            made = self._candidate(index, candidate.parts, candidate.logprobs)
            if candidate.logprobs:
                made["avgLogprobs"] = _mean(candidate.logprobs)
            found.append(made)
        return msgspec.json.encode({"candidates": found, "usageMetadata": self._usage(), **self._tail()})

    # -- what both are made of --------------------------------------------------------------------

    def _parts(self, candidate: Candidate, event: Delta) -> list[dict[str, Any]]:
        """The parts that a piece of the answer adds; a call is one part, once it is whole."""
        if event.text or event.tool_calls:
            candidate.thinks = False
        elif event.thinking:
            candidate.thinks = True
        if candidate.thinks:
            candidate.n_thinking += len(event.token_ids)
        parts: list[dict[str, Any]] = []
        if event.thinking:
            candidate.thoughts.append(event.thinking)
            if self._shown:
                parts.append({"text": event.thinking, "thought": True})
        if event.text:
            parts.append({"text": event.text})
        for piece in event.tool_calls:
            if piece.name:
                candidate.call = {"name": piece.name, **({"id": piece.id} if piece.id else {})}
            candidate.arguments.append(piece.arguments)
            if piece.last and candidate.call:
                parts.append(self._call(candidate))
        return parts

    def _call(self, candidate: Candidate) -> dict[str, Any]:
        """The part of a call that is whole.  The first has the thought that led to it in its signature."""
        call = {**candidate.call, "args": _arguments("".join(candidate.arguments))}
        candidate.call = {}
        candidate.arguments.clear()
        return {"functionCall": call, **self._signature(candidate)}

    def _left(self, candidate: Candidate) -> list[dict[str, Any]]:
        """What the end of an answer adds: a text without words, and the thought if it has not gone out."""
        return [{"text": "", **self._signature(candidate)}]

    def _signature(self, candidate: Candidate) -> dict[str, str]:
        if candidate.signed or not candidate.thoughts:
            return {}
        candidate.signed = True
        return {"thoughtSignature": sealed("".join(candidate.thoughts))}

    def _candidate(
        self, index: int, parts: list[dict[str, Any]], logprobs: list[TokenLogprob]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": index}
        if end := self._candidates[index].end:
            made["finishReason"] = REASONS.get(end.reason, "OTHER")
        if logprobs:
            made["logprobsResult"] = {
                "chosenCandidates": [self._logprob(p.token_id, p.logprob) for p in logprobs],
                "topCandidates": [{"candidates": [self._logprob(*each) for each in p.top]} for p in logprobs],
            }
        return made

    def _logprob(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = self._token_bytes(token_id).decode("utf-8", "replace")
        return {"token": token, "tokenId": token_id, "logProbability": logprob}

    def _usage(self) -> dict[str, Any]:
        """Google's counts: the cached tokens are a part of the prompt's, thoughts none of the candidates'."""
        ends = [each.end.metrics for each in self._candidates if each.end]
        n_prompt, n_cached = (ends[0].n_prompt, ends[0].n_cached) if ends else (0, 0)
        n_thinking = sum(each.n_thinking for each in self._candidates)
        n_generated = sum(each.n_generated for each in ends)
        usage: dict[str, Any] = {
            "promptTokenCount": n_prompt,
            "candidatesTokenCount": n_generated - n_thinking,
            "totalTokenCount": n_prompt + n_generated,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": n_prompt}],
        }
        if n_cached:
            usage["cachedContentTokenCount"] = n_cached
            usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": n_cached}]
        if n_thinking:
            usage["thoughtsTokenCount"] = n_thinking
        return usage

    def _tail(self) -> dict[str, str]:
        return {"modelVersion": self._model, "responseId": self._id}


def _append(parts: list[dict[str, Any]], further: list[dict[str, Any]]) -> None:
    """Adds parts to an answer; texts of one kind that follow each other become one."""
    for part in further:
        last = parts[-1] if parts else {}
        alike = "text" in part and "text" in last and part.get("thought") == last.get("thought")
        if alike:
            parts[-1] = {**last, **part, "text": last["text"] + part["text"]}
        elif part.get("text") or part.get("thoughtSignature") or "functionCall" in part or not parts:
            parts.append(part)


def _mean(logprobs: list[TokenLogprob]) -> float:
    return sum(each.logprob for each in logprobs) / len(logprobs)


def _arguments(text: str) -> Any:
    """The arguments of a call: an object, whatever it was."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
