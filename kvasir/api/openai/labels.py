"""One prefill, no text: how likely each of a few labels is to be what the model says next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from string import ascii_lowercase, ascii_uppercase, digits

from kvasir.api.loaded import Loaded
from kvasir.chat import ChatRequest, Delta, Event, Message
from kvasir.errors import ModelError, UsageError
from kvasir.sampling import SamplingParams

LETTERS = tuple(ascii_uppercase + ascii_lowercase + digits)


@dataclass(frozen=True)
class Question:
    """What to read: `text` goes before, and one of `labels` is the answer."""

    text: str
    labels: tuple[str, ...]
    system: str = ""
    tenant: str = ""


@dataclass(frozen=True)
class Read:
    """The labels' probabilities, which sum to 1.  `mass`: what they have of the whole vocabulary's;
    `is_label`: whether the likeliest token of all is one.
    """

    probabilities: tuple[float, ...]
    mass: float
    is_label: bool
    n_prompt: int = 0
    n_cached: int = 0

    @property
    def best(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """1 when one label has it all, 0 when all are as likely."""
        n, top = len(self.probabilities), max(self.probabilities)
        return (n * top - 1) / (n - 1) if n > 1 else 1.0


def request(model: Loaded, question: Question, known: dict[str, int]) -> tuple[ChatRequest, tuple[int, ...]]:
    """The request that reads a question, and the labels' token ids.  Waits for the model.

    `known`: token ids of labels that were asked for before, to which it adds.

    Raises UsageError, and ModelError for a model whose tokens cannot tell the labels apart.
    """
    chats = model.has_template
    spelled = [label if chats else f" {label}" for label in question.labels]
    known |= {label: _first(model, label) for label in spelled if label not in known}
    ids = tuple(known[label] for label in spelled)
    if len(set(ids)) < len(ids):
        raise ModelError("this model has no tokens of their own for the labels of the answers")
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, logprob_token_ids=ids)
    if not chats:
        text = (
            f"{question.system}\n\n{question.text}\n\nAnswer:"
            if question.system
            else f"{question.text}\n\nAnswer:"
        )
        return ChatRequest(params, prompt=text, tenant=question.tenant), ids
    system = (Message("system", question.system),) if question.system else ()
    think = False if "thinking" in model.info.capabilities else None
    messages = (*system, Message("user", question.text))
    return ChatRequest(params, messages=messages, think=think, tenant=question.tenant), ids


def _first(model: Loaded, label: str) -> int:
    tokens = model.tokenize(ChatRequest(SamplingParams(), prompt=label, add_special_tokens=False))
    if not tokens:
        raise ModelError("this model cannot write the labels of the answers")
    return tokens[0]


class Reader:
    """Gathers what the requests of several questions give.  Mutable."""

    def __init__(self, labels: Sequence[tuple[int, ...]]):
        self._labels = labels
        self._reads: list[Read | None] = [None] * len(labels)

    def take(self, event: Event) -> None:
        i = event.index
        if isinstance(event, Delta) and event.logprobs:
            entry = event.logprobs[0]
            known = {entry.token_id: entry.logprob, **dict(entry.top)}
            raw = [exp(known[token]) for token in self._labels[i]]
            mass = sum(raw)
            share = tuple(p / mass for p in raw) if mass else (1 / len(raw),) * len(raw)
            self._reads[i] = Read(share, mass, entry.top[0][0] in self._labels[i])
        elif not isinstance(event, Delta) and (read := self._reads[i]):
            metrics = event.metrics
            self._reads[i] = Read(
                read.probabilities, read.mass, read.is_label, metrics.n_prompt, metrics.n_cached
            )

    def reads(self) -> list[Read]:
        """One for each question, after all events."""
        found = [read for read in self._reads if read]
        if len(found) < len(self._reads):
            raise UsageError("a question was not answered", hint="ask again")
        return found
