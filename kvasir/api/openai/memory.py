"""Responses that are kept, so that a later request can go on from one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvasir.chat import Message

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Kept:
    """A response as it was told, and the conversation up to and with it, without its instructions."""

    response: Mapping[str, Any]
    messages: tuple[Message, ...]
    n_bytes: int


class Responses:
    """What was answered lately, by tenant and id.  In memory: it ends with the server, and the oldest go
    first.  Mutable and thread-safe.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES):
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._n_bytes, self._lock = 0, threading.Lock()

    def keep(self, tenant: str, id: str, response: Mapping[str, Any], messages: tuple[Message, ...]) -> None:
        size = len(str(response.get("output"))) + sum(
            len(m.content) + len(m.thinking) + 100 for m in messages
        )
        with self._lock:
            self._kept[tenant, id] = Kept(response, messages, size)
            self._n_bytes += size
            while len(self._kept) > self._max_responses or self._n_bytes > self._max_bytes:
                self._n_bytes -= self._kept.popitem(last=False)[1].n_bytes

    def get(self, tenant: str, id: str) -> Kept | None:
        with self._lock:
            if (tenant, id) in self._kept:
                self._kept.move_to_end((tenant, id))
            return self._kept.get((tenant, id))

    def drop(self, tenant: str, id: str) -> bool:
        """False if there is none of that id."""
        with self._lock:
            kept = self._kept.pop((tenant, id), None)
            self._n_bytes -= kept.n_bytes if kept else 0
            return kept is not None
