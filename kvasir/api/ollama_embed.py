"""Ollama's embed, and embeddings as it was before: bodies to texts, numbers to JSON.

Source: Ollama's API types (api/types.go) and its handlers.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import msgspec

from kvasir.api.body import decode, typed, unknown
from kvasir.api.errors import Wrong
from kvasir.api.loaded import Loaded
from kvasir.api.ollama import keep_alive
from kvasir.api.options import parse_options
from kvasir.api.words import json_name
from kvasir.chat import normalized
from kvasir.errors import UsageError

MAX_INPUTS = 10_000


class EmbedBody(msgspec.Struct):
    model: str | None = None
    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: int | float | str | None = None
    options: dict[str, Any] | None = None


class EmbeddingsBody(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    keep_alive: int | float | str | None = None
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class EmbedAsked:
    """What a body asks for.  `legacy`: as /api/embeddings, one text, and its embedding as it is."""

    model: str
    inputs: tuple[str, ...] = ()
    truncate: bool = True
    dimensions: int | None = None
    keep_alive_s: float | None = None
    legacy: bool = False
    warnings: tuple[str, ...] = ()

    def answer(self, model: Loaded, load_s: float) -> bytes:
        """The JSON that answers; no inputs only load the model.  Raises what `Loaded.embeddings` raises, and
        UsageError for more dimensions than there are.
        """
        start = perf_counter()
        if "embedding" not in model.info.capabilities:
            raise UsageError(f"{model.info.name} does not support embeddings", hint="use an embedding model")
        found = model.embeddings(self.inputs, self.truncate) if self.inputs else []
        if self.legacy:
            return msgspec.json.encode({"embedding": found[0].values if found else []})
        body: dict[str, Any] = {
            "model": self.model,
            "embeddings": [normalized(self._cut(each.values)) for each in found],
            "total_duration": max(round((perf_counter() - start + load_s) * 1e9), 1),
            "load_duration": max(round(load_s * 1e9), 1),
            "prompt_eval_count": sum(each.n_tokens for each in found),
        }
        if n_truncated := sum(each.n_truncated for each in found):
            body["truncated_count"] = n_truncated
        return msgspec.json.encode(body)

    def _cut(self, values: list[float]) -> list[float]:
        if self.dimensions and self.dimensions > len(values):
            raise Wrong(
                f"dimensions must be at most {len(values)}, the length of this model's embeddings",
                param="dimensions",
            )
        return values[: self.dimensions]


def parse_embed(raw: bytes) -> EmbedAsked:
    """What the body of /api/embed asks for.  Raises UsageError that names the field."""
    values = decode(raw)
    body = typed(values, EmbedBody)
    if body.dimensions is not None and body.dimensions < 0:
        raise Wrong(f"dimensions must be at least 1, got {body.dimensions}", param="dimensions")
    return EmbedAsked(
        model=_named(body.model),
        inputs=_inputs(body.input),
        truncate=body.truncate is not False,
        dimensions=body.dimensions or None,
        keep_alive_s=None if body.keep_alive is None else keep_alive(body.keep_alive),
        warnings=(*unknown(values, EmbedBody), *_idle(body.options)),
    )


def parse_embeddings(raw: bytes) -> EmbedAsked:
    """What the body of /api/embeddings asks for.  Raises UsageError that names the field."""
    values = decode(raw)
    body = typed(values, EmbeddingsBody)
    return EmbedAsked(
        model=_named(body.model),
        inputs=(body.prompt,) if body.prompt else (),
        keep_alive_s=None if body.keep_alive is None else keep_alive(body.keep_alive),
        legacy=True,
        warnings=(*unknown(values, EmbeddingsBody), *_idle(body.options)),
    )


def _named(model: str | None) -> str:
    if not model:
        raise Wrong("model is required", param="model")
    return model


def _inputs(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise Wrong(
            f"input must be of type string or array of strings, got {json_name(value)}", param="input"
        )
    if len(value) > MAX_INPUTS:
        raise Wrong(f"input has {len(value):,} texts, the limit is {MAX_INPUTS:,}", param="input")
    for i, each in enumerate(value):
        if not isinstance(each, str):
            raise Wrong(f"input[{i}] must be of type string, got {json_name(each)}", param="input")
    return tuple(value)


def _idle(options: dict[str, Any] | None) -> tuple[str, ...]:
    """Options are checked, and change nothing of an embedding."""
    parse_options(options or {})
    return tuple(
        f"option {name} has no effect on embeddings" for name in options or {} if name.isidentifier()
    )
