"""What the server needs of a protocol: how a body becomes requests, and how events become bytes.

A protocol is a module of pure functions.  Its parser turns what was sent into something `Asked`; a `Reply`
turns the events of the answer into what goes over the wire.  What needs a model but no answer in pieces (an
embedding, a count of tokens) is `Called` instead.  Neither knows HTTP or a model's process.

To add a protocol: a module with `routes(house)`, of `house.asking(parse)` and `house.calling(parse)`; its
line in `server.application`; and the shape of its errors in `shapes.SHAPES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kvasir.api.loaded import Loaded
from kvasir.chat import ChatRequest, Event
from kvasir.errors import KvasirError


@dataclass(frozen=True)
class Sent:
    """What a client sent: the body, and where to.  `path`: the route's parameters; `tenant`: whose it is."""

    body: bytes
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""


class Reply(Protocol):
    """One answer on its way out.  Mutable: it gathers what it needs as events pass.

    Events of several requests come merged, `index` counted through: request `i` of `n` answers each has
    indexes `i * n` to `i * n + n - 1`.
    """

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        """What a stream begins with, once the first event is there; may be nothing.

        `n_prompt`: tokens of the prompt; `n_cached`: of these, found in the prefix cache.
        """
        ...

    def line(self, event: Event) -> bytes:
        """What an event adds to a stream; nothing when it shows nothing yet."""
        ...

    def end(self) -> bytes:
        """What a stream ends with, after the last answer's end."""
        ...

    def broken(self, error: KvasirError) -> bytes:
        """What a stream ends with when an error cuts it off."""
        ...

    def take(self, event: Event) -> None:
        """Gathers an event of an answer that is not streamed."""
        ...

    def whole(self) -> bytes:
        """The body of an answer that is not streamed, after all its events."""
        ...


class Asked(Protocol):
    """What a body asks for, before it is known which model answers.

    `warnings`: fields that nobody knows, served and told in a header.
    """

    @property
    def model(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def keep_alive_s(self) -> float | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def media_type(self) -> str:
        """Of the answer: NDJSON or server-sent events for a stream, else JSON."""
        ...

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """The requests to this model.  Raises UsageError for what it cannot do, by name of the field."""
        ...

    def reply(self, model: Loaded, load_s: float) -> Reply:
        """What writes the answer.  As `requests`: in a thread, so both may wait for the model."""
        ...


class Called(Protocol):
    """What a body asks for that one piece of JSON answers."""

    @property
    def model(self) -> str: ...
    @property
    def keep_alive_s(self) -> float | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...

    def answer(self, model: Loaded, load_s: float) -> bytes:
        """The JSON that answers.  Runs in a thread and may wait for the model.  Raises KvasirError."""
        ...
