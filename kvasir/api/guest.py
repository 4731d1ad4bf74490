"""A loaded model as one client sees it: its prompts are its own, and what it uses is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from kvasir.api.loaded import Answer, Loaded
from kvasir.chat import ChatRequest, Delta, Embedding, Event, Spelled
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.pulse import Pulse


@dataclass(frozen=True)
class Visit:
    """Whose request it is.  `spend` is told of tokens as they are used, from any thread."""

    tenant: str = ""
    spend: Callable[[int], None] = lambda n_tokens: None


class Guest:
    """`Loaded`, for one visit."""

    def __init__(self, model: Loaded, visit: Visit):
        self._model, self._visit = model, visit
        self.info: ModelInfo = model.info

    @property
    def has_template(self) -> bool:
        return self._model.has_template

    @property
    def alive(self) -> bool:
        return self._model.alive

    @property
    def own_bytes(self) -> int:
        return self._model.own_bytes

    @property
    def pulse(self) -> Pulse:
        return self._model.pulse

    def token_bytes(self, token_id: int) -> bytes:
        return self._model.token_bytes(token_id)

    def submit(self, request: ChatRequest) -> Answer:
        tenant = self._visit.tenant
        if tenant:
            request = replace(request, tenant=f"{tenant}/{request.tenant}")
        return Counted(self._model.submit(request), self._visit)

    def tokenize(self, request: ChatRequest) -> list[int]:
        return self._model.tokenize(request)

    def embeddings(self, inputs: Sequence[str | Sequence[int]], truncate: bool = False) -> list[Embedding]:
        found = self._model.embeddings(inputs, truncate)
        self._visit.spend(sum(each.n_tokens for each in found))
        return found

    def spell(self, token_ids: Sequence[int]) -> Spelled:
        return self._model.spell(token_ids)


class Counted:
    """An answer whose tokens are counted as they pass: those of the prompt with the first event.  Mutable."""

    def __init__(self, answer: Answer, visit: Visit):
        self._answer, self._visit = answer, visit
        self._begun = False

    @property
    def n_truncated(self) -> int:
        return self._answer.n_truncated

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self._answer.prompt_token_ids

    def cancel(self) -> None:
        self._answer.cancel()
        self._begin()

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for event in self._answer:
            self._begin()
            if isinstance(event, Delta):
                self._visit.spend(len(event.token_ids))
            yield event

    def _begin(self) -> None:
        """The prompt costs even a client that leaves."""
        if not self._begun and self._answer.prompt_token_ids:
            self._begun = True
            self._visit.spend(len(self._answer.prompt_token_ids))
