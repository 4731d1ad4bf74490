"""Events to a Message, whole or as its stream of events.

The order of a stream: message_start; for each block content_block_start, its deltas, content_block_stop;
message_delta with the reason and the counts; message_stop.  A ping may come at any time.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from kvasir.api.anthropic.errors import error_body
from kvasir.api.errors import fault_of
from kvasir.api.seal import proof, sealed
from kvasir.chat import Delta, Event, Finished, Metrics, ToolPiece
from kvasir.errors import Bug, KvasirError

Shows = Literal["summarized", "omitted", "hidden"]
SILENCE = 32  # events that show nothing until a ping says that the model is at work


@dataclass
class Block:
    """The block that is being written.  Mutable.  `number`: of its call, if it is one."""

    kind: Literal["text", "thinking", "tool_use"]
    index: int
    number: int = -1
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Reply:
    """One answer on its way out.  Mutable: it knows the block that is open and counts tokens.

    `max_tokens` 0: nothing of what the model writes is shown, the prompt was all that was wanted.
    """

    def __init__(
        self,
        model: str,
        *,
        shows: Shows = "hidden",
        stops: Sequence[str] = (),
        max_tokens: int = 1,
        id: str = "",
    ):
        self._model, self._shows, self._stops = model, shows, tuple(stops)
        self._max_tokens = max_tokens
        self._id = id or f"msg_{uuid.uuid4().hex[:24]}"
        self._open: Block | None = None
        self._n_blocks = self._n_silent = 0
        self._space = ""  # before a text that has not begun
        self._n_thinking, self._thinks = 0, False
        self._content: list[dict[str, Any]] = []
        self._pieces: list[list[str]] = []  # of each block of the content
        self._end: Finished | None = None

    # -- a stream ---------------------------------------------------------------------------------

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        """message_start.  What of the prompt is held from now on is known with the last event."""
        known = {"input_tokens": n_prompt - n_cached, "cache_creation_input_tokens": 0}
        usage = {**known, "cache_read_input_tokens": n_cached}
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        message["usage"] = {**usage, "output_tokens": 0, "service_tier": "standard"}
        return _sse({"type": "message_start", "message": message}) + _sse({"type": "ping"})

    def line(self, event: Event) -> bytes:
        if isinstance(event, Finished):
            usage = {k: v for k, v in self._usage(event.metrics).items() if k not in START_ONLY}
            last = {"type": "message_delta", "delta": self._reason(event), "usage": usage}
            return b"".join(_sse(change) for change in (*self._closing(), last))
        data = b"".join(_sse(change) for change in self._changes(event))
        self._n_silent = 0 if data else self._n_silent + 1
        if self._n_silent < SILENCE:
            return data
        self._n_silent = 0
        return _sse({"type": "ping"})

    def end(self) -> bytes:
        return _sse({"type": "message_stop"})

    def broken(self, error: KvasirError) -> bytes:
        fault = fault_of(error)
        return b"event: error\ndata: " + error_body(fault.kind, fault.message) + b"\n\n"

    # -- a whole answer ---------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._gather(self._closing())
            self._end = event
        else:
            self._gather(self._changes(event))

    def whole(self) -> bytes:
        if self._end is None:
            raise Bug("a message is not whole before its end")
        end = {**self._reason(self._end), "usage": self._usage(self._end.metrics)}
        return msgspec.json.encode({**self._head(), "content": self._content, **end})

    def _gather(self, changes: Iterator[dict[str, Any]]) -> None:
        """Keeps the blocks of an answer, by the changes that a stream would tell."""
        for change in changes:
            kind, index = change["type"], change["index"]
            if kind == "content_block_start":
                self._content.append(change["content_block"])
                self._pieces.append([])
            elif kind == "content_block_stop":
                block, text = self._content[index], "".join(self._pieces[index])
                name = {"tool_use": "input"}.get(block["type"], block["type"])
                block[name] = _arguments(text) if name == "input" else text
            elif change["delta"]["type"] == "signature_delta":
                self._content[index]["signature"] = change["delta"]["signature"]
            else:
                self._pieces[index].append(change["delta"][DELTAS[self._content[index]["type"]][1]])

    # -- what both are made of --------------------------------------------------------------------

    def _changes(self, event: Delta) -> Iterator[dict[str, Any]]:
        """What a piece of the answer changes: blocks that open, grow and close."""
        self._count(event)
        if self._max_tokens == 0:
            return
        if event.thinking and self._shows != "hidden":
            if not self._is("thinking"):
                yield from self._opening("thinking", {"thinking": "", "signature": ""})
            yield from self._growing("thinking", event.thinking, shown=self._shows == "summarized")
        text = self._space + event.text
        if event.text and not self._is("text"):
            # Space between a thought and a call is no block; before a text it is a part of it.
            self._space = text if text.isspace() else ""
            if not self._space:
                yield from self._opening("text", {"text": ""})
                yield from self._growing("text", text)
        elif event.text:
            yield from self._growing("text", text)
        for piece in event.tool_calls:
            yield from self._calling(piece)

    def _calling(self, piece: ToolPiece) -> Iterator[dict[str, Any]]:
        self._space = ""
        if not (self._is("tool_use") and self._open and self._open.number == piece.number):
            id = piece.id or f"toolu_{uuid.uuid4().hex[:24]}"
            yield from self._opening("tool_use", {"id": id, "name": piece.name, "input": {}}, piece.number)
        if piece.arguments:
            yield from self._growing("tool_use", piece.arguments)
        if piece.last:
            yield from self._closed()

    def _is(self, kind: str) -> bool:
        return self._open is not None and self._open.kind == kind

    def _opening(
        self, kind: Literal["text", "thinking", "tool_use"], empty: dict[str, Any], number: int = -1
    ) -> Iterator[dict[str, Any]]:
        yield from self._closed()
        self._open = Block(kind, self._n_blocks, number)
        self._n_blocks += 1
        block = {"type": kind, **empty}
        yield {"type": "content_block_start", "index": self._open.index, "content_block": block}

    def _growing(self, kind: str, text: str, shown: bool = True) -> Iterator[dict[str, Any]]:
        assert self._open
        delta_type, name = DELTAS[kind]
        if kind == "thinking":
            self._open.texts.append(text)
        if shown:
            delta = {"type": delta_type, name: text}
            yield {"type": "content_block_delta", "index": self._open.index, "delta": delta}

    def _closed(self) -> Iterator[dict[str, Any]]:
        """Ends the block that is open, if one is; a thought is signed before."""
        if self._open is None:
            return
        index = self._open.index
        if self._open.kind == "thinking":
            signature = (sealed if self._shows == "omitted" else proof)(self._open.text)
            delta = {"type": "signature_delta", "signature": signature}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        self._open = None
        yield {"type": "content_block_stop", "index": index}

    def _closing(self) -> Iterator[dict[str, Any]]:
        """The end of the last block; an answer of nothing but space is one too."""
        if self._space and not self._n_blocks:
            yield from self._opening("text", {"text": ""})
            yield from self._growing("text", self._space)
        yield from self._closed()

    def _count(self, event: Delta) -> None:
        """Counts the tokens of thoughts, their marks included."""
        if event.text or event.tool_calls:
            self._thinks = False
        elif event.thinking:
            self._thinks = True
        if self._thinks:
            self._n_thinking += len(event.token_ids)

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _reason(self, end: Finished) -> dict[str, Any]:
        if end.reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if end.reason == "length":
            full = self._max_tokens and end.metrics.n_generated < self._max_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if self._max_tokens == 0:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if isinstance(end.stop_reason, str) and end.stop_reason in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": end.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _usage(self, metrics: Metrics) -> dict[str, Any]:
        """Anthropic's counts.  The three of the prompt are disjoint and add up to it."""
        written = max(metrics.n_held - metrics.n_cached, 0)  # computed now, and held from now on
        return {
            "input_tokens": metrics.n_prompt - metrics.n_cached - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": metrics.n_cached,
            "output_tokens": metrics.n_generated if self._max_tokens else 0,
            "output_tokens_details": {"thinking_tokens": self._n_thinking},
            "service_tier": "standard",
        }


DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
START_ONLY = ("service_tier",)  # fields of usage that a message_delta does not have


def _arguments(text: str) -> Any:
    """The input of a call that may have been cut off in the middle: an object, whatever it was."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _sse(body: dict[str, Any]) -> bytes:
    return f"event: {body['type']}\ndata: ".encode() + msgspec.json.encode(body) + b"\n\n"
