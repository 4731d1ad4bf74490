"""What the server needs of a loaded model.  `runner.model.Model` is one; tests bring scripted ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from kvasir.chat import ChatRequest, Event
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.prompt import Prompter


class Answer(Protocol):
    """The events of one request, as they come."""

    n_truncated: int

    def __aiter__(self) -> AsyncIterator[Event]: ...
    def cancel(self) -> None: ...


class Loaded(Protocol):
    """A model in memory."""

    info: ModelInfo
    prompter: Prompter

    def submit(self, request: ChatRequest) -> Answer: ...
