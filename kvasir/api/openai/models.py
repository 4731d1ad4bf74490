"""What /v1/models tells of a model."""

from __future__ import annotations

from typing import Any

from kvasir.runner.inspect import ModelInfo


def card(info: ModelInfo, name: str = "") -> dict[str, Any]:
    """A model under the name that a request may use, with what vLLM adds."""
    return {
        "id": name or info.name,
        "object": "model",
        "created": int(info.modified.timestamp()),
        "owned_by": "kvasir",
        "root": info.name,
        "parent": None,
        "max_model_len": info.context,
        "capabilities": list(info.capabilities),
    }
