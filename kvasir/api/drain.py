"""How the server ends: first it lets answers finish."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import uvicorn

CUT_OFF_S = 3.0  # for the last line of answers that were cut off


class Busy(Protocol):
    """Who has answers under way."""

    @property
    def n_requests(self) -> int: ...

    def cut_off(self) -> None:
        """Ends them."""
        ...


class Draining(uvicorn.Server):
    """At the first SIGTERM or Ctrl-C it takes no more connections, and gives answers under way `grace_s` to
    finish; what is not done then ends with an error that says so.  At the second it ends at once.

    `residents` may come after the start, of which `started_up` is told, on the event loop.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        grace_s: float,
        residents: Busy | None = None,
        started_up: Callable[[], None] = lambda: None,
    ):
        config.timeout_graceful_shutdown = int(grace_s + CUT_OFF_S)
        super().__init__(config)
        self.residents, self._grace_s, self._started_up = residents, grace_s, started_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started_up()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.residents and (count := self.residents.n_requests):
            text = f"{count} answer{'s' if count > 1 else ''} may finish within {self._grace_s:.0f} s"
            print(f"kvasir: stopping; {text} (a second signal ends at once)", file=sys.stderr, flush=True)
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        if self.residents:
            self.residents.cut_off()
