"""Models as Anthropic's API lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvasir.api.catalog import rfc3339
from kvasir.api.words import short
from kvasir.errors import UsageError
from kvasir.runner.inspect import ModelInfo

LIMIT, MAX_LIMIT = 20, 1000


def listed(info: ModelInfo) -> dict[str, Any]:
    """A model."""
    can = {name: {"supported": name in info.capabilities} for name in ("tools", "thinking")}
    return {
        "type": "model",
        "id": info.name,
        "display_name": info.name,
        "created_at": rfc3339(info.modified),
        "max_input_tokens": info.context,
        "max_tokens": info.context,
        "lifecycle": "active",
        "capabilities": {
            "batch": NO,
            "citations": NO,
            "code_execution": NO,
            "context_management": NO,
            "effort": can["thinking"],
            "image_input": NO,
            "pdf_input": NO,
            "server_tools": NO,
            "structured_outputs": YES,
            "thinking": {**can["thinking"], "types": {"adaptive": YES, "enabled": can["thinking"]}},
        },
    }


NO, YES = {"supported": False}, {"supported": True}


def page(infos: Sequence[ModelInfo], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of models: `limit` of them after `after_id` or before `before_id`.  Raises UsageError."""
    names = [info.name for info in infos]
    limit = _limit(query.get("limit", str(LIMIT)))
    first, last = 0, len(names)
    if (after := query.get("after_id")) is not None:
        first = _place(names, after, "after_id") + 1
        last = first + limit
    elif (before := query.get("before_id")) is not None:
        last = _place(names, before, "before_id")
        first = max(last - limit, 0)
    else:
        last = limit
    shown = [listed(info) for info in infos[first:last]]
    more = first > 0 if query.get("before_id") is not None else last < len(names)
    return {
        "data": shown,
        "has_more": more,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LIMIT):
        raise UsageError(f"limit must be between 1 and {MAX_LIMIT}, got {short(text, 20)}")
    return int(text)


def _place(names: Sequence[str], name: str, field: str) -> int:
    if name not in names:
        raise UsageError(f"{field} {short(name)} is the id of no model")
    return names.index(name)
