"""Models as Google's API lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvasir.api.words import short
from kvasir.errors import UsageError
from kvasir.runner.inspect import ModelInfo

PAGE, MAX_PAGE = 50, 1000
WRITES = ("generateContent", "streamGenerateContent", "countTokens")
EMBEDS = ("embedContent", "batchEmbedContents")


def listed(info: ModelInfo) -> dict[str, Any]:
    """A model."""
    embeds = "embedding" in info.capabilities
    made: dict[str, Any] = {
        "name": f"models/{info.name}",
        "baseModelId": info.name,
        "version": info.digest[:12],
        "displayName": info.name,
        "description": f"{info.architecture}, {info.parameter_size} parameters, {info.quantization}",
        "inputTokenLimit": info.context,
        "outputTokenLimit": info.context,
        "supportedGenerationMethods": list(EMBEDS if embeds else WRITES),
    }
    if embeds:
        return made
    choice = {"temperature": 1.0, "maxTemperature": 2.0, "topP": 0.95, "topK": 64}
    return {**made, **choice, "thinking": "thinking" in info.capabilities}


def page(infos: Sequence[ModelInfo], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of models.  A token is the place where the next page begins.  Raises UsageError."""
    size = min(_number(query, ("pageSize", "page_size"), PAGE) or PAGE, MAX_PAGE)
    first = _number(query, ("pageToken", "page_token"), 0)
    shown = {"models": [listed(info) for info in infos[first : first + size]]}
    more = first + size < len(infos)
    return {**shown, "nextPageToken": str(first + size)} if more else shown


def _number(query: Mapping[str, str], names: tuple[str, str], default: int) -> int:
    text = next((query[name] for name in names if query.get(name)), str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{names[0]} must be a number from 0, got {short(text, 20)}")
    return int(text)
