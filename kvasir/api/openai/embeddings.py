"""/v1/embeddings: one vector of length 1 for each text."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kvasir.api import ollama
from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.completions import Prompt, prompts_of
from kvasir.api.openai.parts import encode, name_of
from kvasir.api.words import short
from kvasir.chat import normalized
from kvasir.errors import UsageError


class Body(msgspec.Struct):
    input: str | list[str | int | list[int]] | None = None
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    keep_alive: int | float | str | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None


@dataclass(frozen=True)
class Called:
    """Embeddings that are wanted.  `dimensions`: the first so many numbers, scaled to length 1 again."""

    model: str
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None
    as_base64: bool = False
    normalize: bool = True
    truncate: bool = False
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    def answer(self, model: Loaded, load_s: float) -> bytes:
        found = model.embeddings(self.inputs, self.truncate)
        width = len(found[0].values)
        if self.dimensions is not None and self.dimensions > width:
            raise UsageError(f"dimensions must be between 1 and {width}, this model's width")
        count = sum(each.n_tokens for each in found)
        vectors = [self._vector(each.values) for each in found]
        rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return encode({"object": "list", "data": rows, "model": self.model or name_of(model), "usage": usage})

    def _vector(self, values: Sequence[float]) -> Any:
        cut = list(values[: self.dimensions])
        made = normalized(cut) if self.normalize else cut
        if not self.as_base64:
            return made
        return base64.b64encode(array("f", made).tobytes()).decode()


def parse(sent: Sent) -> Called:
    """What the body of /v1/embeddings asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, Body)
    if body.encoding_format not in (None, "float", "base64"):
        raise UsageError(f"encoding_format must be float or base64, got {short(body.encoding_format)}")
    if body.dimensions is not None and body.dimensions < 1:
        raise UsageError("dimensions must be at least 1")
    if body.truncate_prompt_tokens not in (None, -1):
        raise UsageError("truncate_prompt_tokens must be -1 (what the context holds) or absent")
    if body.add_special_tokens is False:
        raise UsageError("add_special_tokens must be true", hint="send token ids to have none added")
    return Called(
        model=body.model or "",
        inputs=prompts_of(body.input, "input"),
        dimensions=body.dimensions,
        as_base64=body.encoding_format == "base64",
        normalize=body.normalize is not False,
        truncate=body.truncate_prompt_tokens == -1,
        keep_alive_s=None if body.keep_alive is None else ollama.keep_alive(body.keep_alive),
        warnings=wishes.told(values, Body),
    )
