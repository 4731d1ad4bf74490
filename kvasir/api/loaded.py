"""What the server needs of a loaded model.  `runner.client.ModelProcess` gives it, and so does
`runner.model.Model`, without a process of its own; tests bring scripted ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from kvasir.chat import ChatRequest, Embedding, Event, Spelled
from kvasir.runner.adapters import AdapterInfo
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.pulse import Pulse


class Answer(Protocol):
    """The events of one request, as they come.  The prompt, `n_truncated` and `n_cached` are known with the
    first.
    """

    @property
    def n_truncated(self) -> int: ...
    @property
    def n_cached(self) -> int: ...
    @property
    def prompt_token_ids(self) -> tuple[int, ...]: ...
    def __aiter__(self) -> AsyncIterator[Event]: ...
    def cancel(self) -> None: ...


class Loaded(Protocol):
    """A model in memory.  `own_bytes`: what would be free without it, 0 if unknown."""

    info: ModelInfo

    @property
    def has_template(self) -> bool: ...
    @property
    def alive(self) -> bool: ...
    @property
    def own_bytes(self) -> int: ...

    @property
    def pulse(self) -> Pulse:
        """What it is doing."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """How a token is spelled that an answer's log-probabilities named."""
        ...

    def submit(self, request: ChatRequest) -> Answer:
        """Queues a request.  A refusal is raised here, or by the answer before its first event."""
        ...

    def tokenize(self, request: ChatRequest) -> list[int]:
        """The token ids of the request's whole prompt; waits for it, so call it in a thread.

        Raises UsageError for messages that the template refuses, ModelError for a chat without a template.
        """
        ...

    def embeddings(self, inputs: Sequence[str | Sequence[int]], truncate: bool = False) -> list[Embedding]:
        """One embedding an input, a text or token ids; waits for it, so call it in a thread.

        Raises UsageError for a model that gives none, for an empty input, and for one over the context unless
        `truncate`.
        """
        ...

    def spell(self, token_ids: Sequence[int]) -> Spelled:
        """Token ids as text; waits, so call it in a thread.  Raises UsageError for unknown ids."""
        ...


class Adaptable(Protocol):
    """A model in memory that takes adapters."""

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Requests may name this adapter from now on; waits, so call it in a thread."""
        ...

    def unload_adapter(self, name: str) -> None:
        """No request may name it any more; waits, so call it in a thread.  Raises UsageError for none."""
        ...
