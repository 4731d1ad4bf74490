"""The answer of /v1/responses: items that open, grow and close, as events in order or as one object."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any

from kvasir.api import seal
from kvasir.api.errors import fault_of
from kvasir.api.openai.items import answered
from kvasir.api.openai.parts import Counts, Stamp, TokenBytes, chat_logprobs, encode, named
from kvasir.chat import Event, Finished, Message, TokenLogprob, ToolPiece
from kvasir.errors import KvasirError

Body = dict[str, Any]


class Item:
    """One item of the output, open until its text is whole.  Mutable."""

    def __init__(self, kind: str, id: str, index: int, piece: ToolPiece | None = None):
        self.kind, self.id, self.index = kind, id, index
        self.texts: list[str] = []
        self.logprobs: list[Body] = []
        self.call_id = piece.id if piece else ""
        self.name = piece.name if piece else ""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def body(self, status: str, seals: bool = False) -> Body:
        """The item as it stands in a response."""
        head: Body = {"id": self.id, "type": self.kind, "status": status}
        whole = status != "in_progress"
        if self.kind == "function_call":
            return {
                **head,
                "call_id": self.call_id,
                "name": self.name,
                "arguments": self.text if whole else "",
            }
        if self.kind == "reasoning":
            sealed = seal.sealed(self.text) if seals and whole else None
            return {**head, "summary": [self.part()] if whole else [], "encrypted_content": sealed}
        return {**head, "role": "assistant", "content": [self.part()] if whole else []}

    def part(self, text: str | None = None) -> Body:
        """The one part that a thought or a message has; with `text` as it was then."""
        said = self.text if text is None else text
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": said}
        told = self.logprobs if text is None else []
        return {"type": "output_text", "text": said, "annotations": [], "logprobs": told}


class Reply:
    """A response on its way out.  Mutable: one item is open at a time.

    `keep` is given the whole response, and the conversation that a later one goes on from.
    """

    def __init__(
        self,
        told: Mapping[str, Any],
        messages: Sequence[Message],
        token_bytes: TokenBytes,
        stamp: Stamp,
        keep: Callable[[str, Body, tuple[Message, ...]], None] = lambda id, response, messages: None,
        seals: bool = False,
        name: Callable[[], str] = lambda: secrets.token_hex(16),
    ):
        self._told, self._messages, self._token_bytes = told, tuple(messages), token_bytes
        self._stamp, self._keep, self._seals, self._name = stamp, keep, seals, name
        self._counts, self._number = Counts(1), 2  # after those of `begin`
        self._open: Item | None = None
        self._done: list[Body] = []
        self._end: Finished | None = None

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        """The response as it is before anything was said; events 0 and 1, whatever was made before."""
        body = {**self._response("in_progress"), "output": []}
        kinds = enumerate(("response.created", "response.in_progress"))
        return b"".join(named({"type": k, "sequence_number": n, "response": body}) for n, k in kinds)

    def line(self, event: Event) -> bytes:
        self._counts.take(event)
        if isinstance(event, Finished):
            self._end = event
            status = "incomplete" if event.reason == "length" else "completed"
            if not self._done and not self._open:
                return self._opened("message") + self._closed(status)
            return self._closed(status)
        return b"".join(
            (
                self._thought(event.thinking),
                self._said(event.text, event.logprobs),
                *map(self._called, event.tool_calls),
            )
        )

    def end(self) -> bytes:
        """The last event: the whole response."""
        body = self._finished()
        kind = "response.completed" if body["status"] == "completed" else "response.incomplete"
        return self._event(kind, response=body)

    def broken(self, error: KvasirError) -> bytes:
        fault = fault_of(error)
        code = "rate_limit_exceeded" if fault.kind in ("limited", "overloaded") else "server_error"
        body = {**self._response("failed"), "error": {"code": code, "message": fault.message}}
        return self._event("response.failed", response=body)

    def take(self, event: Event) -> None:
        self.line(event)

    def whole(self) -> bytes:
        return encode(self._finished())

    # -- items ------------------------------------------------------------------------------------

    def _thought(self, text: str) -> bytes:
        if not text:
            return b""
        raw = self._opened("reasoning")
        item = self._current()
        item.texts.append(text)
        return raw + self._event(
            "response.reasoning_summary_text.delta",
            item_id=item.id,
            output_index=item.index,
            summary_index=0,
            delta=text,
        )

    def _said(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> bytes:
        if not text:
            return b""
        raw = self._opened("message")
        item = self._current()
        told = chat_logprobs(logprobs, self._token_bytes)
        item.texts.append(text)
        item.logprobs += told
        return raw + self._event(
            "response.output_text.delta",
            item_id=item.id, output_index=item.index, content_index=0, delta=text, logprobs=told,
        )  # fmt: skip

    def _called(self, piece: ToolPiece) -> bytes:
        raw = self._opened("function_call", piece) if piece.name else b""
        item = self._current()
        if piece.arguments:
            item.texts.append(piece.arguments)
            raw += self._event(
                "response.function_call_arguments.delta",
                item_id=item.id,
                output_index=item.index,
                delta=piece.arguments,
            )
        return raw + (self._closed("completed") if piece.last else b"")

    def _current(self) -> Item:
        assert self._open
        return self._open

    def _opened(self, kind: str, piece: ToolPiece | None = None) -> bytes:
        """Sees to it that an item of this kind is open; what that adds to the stream."""
        if self._open and self._open.kind == kind and not piece:
            return b""
        raw = self._closed("completed")
        prefix = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}[kind]
        item = self._open = Item(kind, prefix + self._name(), len(self._done), piece)
        raw += self._event(
            "response.output_item.added", output_index=item.index, item=item.body("in_progress")
        )
        return raw + self._part("added", item, "")

    def _closed(self, status: str) -> bytes:
        """Closes the open item, if there is one; what that adds to the stream."""
        item, self._open = self._open, None
        if item is None:
            return b""
        at: Body = {"item_id": item.id, "output_index": item.index}
        if item.kind == "function_call":
            raw = self._event(
                "response.function_call_arguments.done", **at, name=item.name, arguments=item.text
            )
        elif item.kind == "reasoning":
            raw = self._event("response.reasoning_summary_text.done", **at, summary_index=0, text=item.text)
        else:
            raw = self._event(
                "response.output_text.done", **at, content_index=0, text=item.text, logprobs=item.logprobs
            )
        raw += self._part("done", item)
        body = item.body(status, self._seals)
        self._done.append(body)
        return raw + self._event("response.output_item.done", output_index=item.index, item=body)

    def _part(self, what: str, item: Item, text: str | None = None) -> bytes:
        """The event that a part of an item begins or ends; calls have no parts."""
        if item.kind == "function_call":
            return b""
        kind, place = (
            ("reasoning_summary_part", "summary_index")
            if item.kind == "reasoning"
            else ("content_part", "content_index")
        )
        return self._event(
            f"response.{kind}.{what}",
            item_id=item.id,
            output_index=item.index,
            **{place: 0},
            part=item.part(text),
        )

    # -- the response -----------------------------------------------------------------------------

    def _finished(self) -> Body:
        assert self._end
        cut = self._end.reason == "length"
        body = self._response("incomplete" if cut else "completed")
        if cut:
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        body["usage"] = self._usage()
        body["completed_at"] = None if cut else int(time())
        self._keep(self._stamp.id, body, (*self._messages, *answered(self._done)))
        return body

    def _response(self, status: str) -> Body:
        return {
            "id": self._stamp.id,
            "object": "response",
            "created_at": self._stamp.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "output": list(self._done),
            "usage": None,
            **self._told,
        }

    def _usage(self) -> Body:
        counts = self._counts
        return {
            "input_tokens": counts.n_prompt,
            "input_tokens_details": {
                "cached_tokens": counts.n_cached,
                "cache_write_tokens": counts.n_prompt - counts.n_cached,
            },
            "output_tokens": counts.n_generated,
            "output_tokens_details": {"reasoning_tokens": counts.n_reasoning},
            "total_tokens": counts.n_prompt + counts.n_generated,
        }

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return named({"type": kind, "sequence_number": number, **values})
