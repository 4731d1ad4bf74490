"""Loaded models.  What only asyncio needs is loaded with the first who uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any


def arriving(stream: Any) -> AsyncIterator[Any]:
    """`kvasir.runner.waiting.arriving`."""
    from kvasir.runner import waiting as room  # noqa: PLC0415

    return room.arriving(stream)
