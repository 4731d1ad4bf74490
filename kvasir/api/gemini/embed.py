"""embedContent and batchEmbedContents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from kvasir.api.body import typed, unknown
from kvasir.api.face import Sent
from kvasir.api.gemini.body import BatchEmbedBody, EmbedBody
from kvasir.api.gemini.request import camelled, model_of
from kvasir.api.gemini.turns import plain_text
from kvasir.api.loaded import Loaded
from kvasir.api.ollama import keep_alive
from kvasir.chat import normalized
from kvasir.errors import UsageError

MAX_REQUESTS = 2048
IDLE = ("taskType", "title")  # known, and without effect here


@dataclass(frozen=True)
class Texts:
    """Texts whose embeddings are asked for.  `sizes`: how many numbers of each, None for all of them.

    `one`: the answer holds one embedding, not a list.
    """

    model: str
    texts: tuple[str, ...]
    sizes: tuple[int | None, ...]
    one: bool = False
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    def answer(self, model: Loaded, load_s: float) -> bytes:
        """The embeddings, each of length 1, and what they cost.  A text over the context is refused."""
        found = model.embeddings(self.texts)
        made = [{"values": _cut(e.values, n)} for e, n in zip(found, self.sizes, strict=True)]
        usage = {"promptTokenCount": sum(each.n_tokens for each in found)}
        body: dict[str, Any] = {"embedding": made[0]} if self.one else {"embeddings": made}
        return msgspec.json.encode({**body, "usageMetadata": usage})


def parse_embed(sent: Sent) -> Texts:
    """What a body of embedContent asks for.  Raises UsageError that names the field."""
    values = camelled(sent.body)
    body = typed(values, EmbedBody)
    idle = [f"{name} has no effect" for name in IDLE if values.get(name)]
    return Texts(
        model_of(sent),
        (_text(body, "content"),),
        (_size(body),),
        one=True,
        keep_alive_s=None if body.keep_alive is None else keep_alive(body.keep_alive),
        warnings=(*unknown(values, EmbedBody), *idle),
    )


def parse_batch(sent: Sent) -> Texts:
    """What a body of batchEmbedContents asks for.  Raises UsageError that names the field."""
    values = camelled(sent.body)
    body = typed(values, BatchEmbedBody)
    if not 0 < len(body.requests) <= MAX_REQUESTS:
        raise UsageError(f"requests must hold 1 to {MAX_REQUESTS:,} requests, got {len(body.requests):,}")
    given = values["requests"]
    idle = [f"{name} has no effect" for name in IDLE if any(each.get(name) for each in given)]
    told = dict.fromkeys(warning for each in given for warning in unknown(each, EmbedBody))
    return Texts(
        model_of(sent),
        tuple(_text(each, f"requests[{i}].content") for i, each in enumerate(body.requests)),
        tuple(_size(each) for each in body.requests),
        keep_alive_s=None if body.keep_alive is None else keep_alive(body.keep_alive),
        warnings=(*unknown(values, BatchEmbedBody), *told, *idle),
    )


def _text(body: EmbedBody, where: str) -> str:
    text = plain_text(body.content, where)
    if not text:
        raise UsageError(f"{where} has no text")
    return text


def _size(body: EmbedBody) -> int | None:
    size = body.output_dimensionality
    if size is not None and size < 1:
        raise UsageError(f"outputDimensionality must be at least 1, got {size}")
    return size


def _cut(values: list[float], size: int | None) -> list[float]:
    """The first `size` numbers, brought to length 1."""
    if size is not None and size > len(values):
        raise UsageError(f"outputDimensionality must be at most {len(values)}, got {size}")
    return normalized(values[:size])
