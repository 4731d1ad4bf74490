"""/score and /rerank: how well texts go together.

An embedding model says it by the cosine of their vectors; a model that writes text, by how likely it is to
answer "yes" when asked whether the document meets the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from kvasir.api import ollama
from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.labels import Question, Reader, request
from kvasir.api.openai.messages import text_of
from kvasir.api.openai.parts import JSON, Stamp, broken, encode, name_of
from kvasir.api.words import json_name
from kvasir.chat import ChatRequest, Event, normalized
from kvasir.errors import KvasirError, UsageError

MAX_PAIRS = 1024
INSTRUCTION = "Given a query, decide whether the document answers it or is about what it asks."


class RerankBody(msgspec.Struct):
    query: str | dict[str, Any] | None = None
    documents: list[Any] | dict[str, Any] | None = None
    model: str | None = None
    top_n: int | None = None
    instruction: str | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: int | None = None
    truncate_prompt_tokens: int | None = None
    keep_alive: int | float | str | None = None


class ScoreBody(msgspec.Struct):
    model: str | None = None
    text_1: Any = None
    text_2: Any = None
    queries: Any = None
    documents: Any = None
    items: Any = None
    data_1: Any = None
    data_2: Any = None
    instruction: str | None = None
    truncate_prompt_tokens: int | None = None
    keep_alive: int | float | str | None = None


@dataclass(frozen=True)
class Asked:
    """Pairs of texts whose scores are wanted.  `reranks`: one query's documents, the best `top_n` of them."""

    model: str
    pairs: tuple[tuple[str, str], ...]
    reranks: bool
    top_n: int = 0
    tells_documents: bool = True
    instruction: str = INSTRUCTION
    truncate: bool = False
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()
    stream: bool = False
    media_type: str = JSON

    def requests(self, model: Loaded) -> tuple[ChatRequest, ...]:
        """A question for each pair; none for an embedding model."""
        return () if _embeds(model) else tuple(each for each, _ in self._made(model))

    def reply(self, model: Loaded, load_s: float) -> Reply:
        asked = replace(self, model=self.model or name_of(model))
        stamp = Stamp.new("rerank-" if self.reranks else "score-")
        if not _embeds(model):
            return Reply(asked, stamp, Reader([ids for _, ids in self._made(model)]))
        texts = list(dict.fromkeys(text for pair in self.pairs for text in pair))
        found = dict(zip(texts, model.embeddings(texts, self.truncate), strict=True))
        vectors = {text: normalized(each.values) for text, each in found.items()}
        cosines = [sum(a * b for a, b in zip(vectors[x], vectors[y], strict=True)) for x, y in self.pairs]
        return Reply(asked, stamp, None, cosines, sum(each.n_tokens for each in found.values()))

    def _made(self, model: Loaded) -> list[tuple[ChatRequest, tuple[int, ...]]]:
        known: dict[str, int] = {}
        return [request(model, self._question(*pair), known) for pair in self.pairs]

    def _question(self, query: str, document: str) -> Question:
        text = f"{self.instruction}\n\nQuery: {query}\n\nDocument: {document}\n\nAnswer with yes or no."
        return Question(text, ("yes", "no"))


class Reply:
    """Scores on their way out.  Mutable: it gathers what the reader reads.

    `scores` are known already where an embedding model gave them.
    """

    def __init__(
        self,
        asked: Asked,
        stamp: Stamp,
        reader: Reader | None,
        scores: Sequence[float] = (),
        n_tokens: int = 0,
    ):
        self._asked, self._stamp, self._reader = asked, stamp, reader
        self._scores, self._n_tokens = list(scores), n_tokens

    def begin(self, n_prompt: int = 0, n_cached: int = 0) -> bytes:
        return b""

    def line(self, event: Event) -> bytes:
        self.take(event)
        return b""

    def end(self) -> bytes:
        return self.whole()

    def broken(self, error: KvasirError) -> bytes:
        return broken(error)

    def take(self, event: Event) -> None:
        assert self._reader
        self._reader.take(event)

    def whole(self) -> bytes:
        if self._reader:
            reads = self._reader.reads()
            self._scores = [read.probabilities[0] for read in reads]
            self._n_tokens = sum(read.n_prompt for read in reads)
        usage = {"prompt_tokens": self._n_tokens, "total_tokens": self._n_tokens}
        return encode(self._reranked(usage) if self._asked.reranks else self._scored(usage))

    def _reranked(self, usage: Mapping[str, int]) -> dict[str, Any]:
        order = sorted(range(len(self._scores)), key=lambda i: -self._scores[i])
        results = []
        for i in order[: self._asked.top_n or None]:
            result: dict[str, Any] = {"index": i, "relevance_score": self._scores[i]}
            if self._asked.tells_documents:
                result["document"] = {"text": self._asked.pairs[i][1]}
            results.append(result)
        return {"id": self._stamp.id, "model": self._asked.model, "usage": usage, "results": results}

    def _scored(self, usage: Mapping[str, int]) -> dict[str, Any]:
        return {
            "id": self._stamp.id,
            "object": "list",
            "created": self._stamp.created,
            "model": self._asked.model,
            "data": [{"index": i, "object": "score", "score": s} for i, s in enumerate(self._scores)],
            "usage": usage,
        }


def parse_rerank(sent: Sent) -> Asked:
    """What the body of /rerank asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, RerankBody)
    if body.query is None or body.documents is None:
        raise UsageError(f"{'query' if body.query is None else 'documents'} is required")
    (query,) = _texts(body.query, "query")
    documents = _texts(body.documents, "documents")
    if body.max_tokens_per_doc:
        raise UsageError("max_tokens_per_doc is not supported", hint="shorten the documents")
    if (body.top_n or 0) < 0:
        raise UsageError("top_n must be at least 0")
    return _asked(body, values, RerankBody, tuple((query, d) for d in documents), body.top_n or 0)


def parse_score(sent: Sent) -> Asked:
    """What the body of /score asks for: one text against each of several, or pairs.  Raises UsageError."""
    values = decode(sent.body)
    body = typed(values, ScoreBody)
    for first, second in (
        ("text_1", "text_2"),
        ("queries", "documents"),
        ("queries", "items"),
        ("data_1", "data_2"),
    ):
        left, right = getattr(body, first), getattr(body, second)
        if left is not None and right is not None:
            break
    else:
        raise UsageError("text_1 and text_2 are required, or queries and documents")
    lefts, rights = _texts(left, first), _texts(right, second)
    if len(lefts) == 1:
        lefts = lefts * len(rights)
    if len(lefts) != len(rights):
        raise UsageError(f"{first} must hold one text, or as many as {second}")
    return _asked(body, values, ScoreBody, tuple(zip(lefts, rights, strict=True)), None)


def _asked(
    body: RerankBody | ScoreBody,
    values: Mapping[str, Any],
    shape: type[msgspec.Struct],
    pairs: tuple[tuple[str, str], ...],
    top_n: int | None,
) -> Asked:
    if len(pairs) > MAX_PAIRS:
        raise UsageError(f"documents must be at most {MAX_PAIRS}")
    if body.truncate_prompt_tokens not in (None, -1):
        raise UsageError("truncate_prompt_tokens must be -1 (what the context holds) or absent")
    return Asked(
        model=body.model or "",
        pairs=pairs,
        reranks=top_n is not None,
        top_n=top_n or 0,
        tells_documents=not isinstance(body, RerankBody) or body.return_documents is not False,
        instruction=body.instruction or INSTRUCTION,
        truncate=body.truncate_prompt_tokens == -1,
        keep_alive_s=None if body.keep_alive is None else ollama.keep_alive(body.keep_alive),
        warnings=wishes.told(values, shape),
    )


def _embeds(model: Loaded) -> bool:
    return "embedding" in model.info.capabilities


def _texts(given: Any, where: str) -> list[str]:
    """One text or several: strings, or objects with `text`, or with `content` parts."""
    if isinstance(given, Mapping) and isinstance(given.get("content"), list):
        given = given["content"]
    many = given if isinstance(given, list) else [given]
    if not many:
        raise UsageError(f"{where} must hold at least one text")
    found = []
    for i, each in enumerate(many):
        at = where if many is not given else f"{where}[{i}]"
        if isinstance(each, Mapping):
            each = each["content"] if isinstance(each.get("content"), list | str) else each.get("text")
        if not isinstance(each, str | list):
            raise UsageError(f"{at} must be a text, got {json_name(each)}")
        text = text_of(each, at)
        if not text:
            raise UsageError(f"{at} must not be empty")
        found.append(text)
    return found
