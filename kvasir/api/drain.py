"""How the server ends: first it lets answers finish."""

from __future__ import annotations

import asyncio
import socket
import sys
from types import FrameType

import uvicorn

from kvasir.api.residents import Residents

CUT_OFF_S = 3.0  # for the last line of answers that were cut off


class Draining(uvicorn.Server):
    """At the first SIGTERM or Ctrl-C it takes no more connections, and gives answers under way `grace_s` to
    finish; what is not done then ends with an error that says so.  At the second it ends at once.
    """

    def __init__(self, config: uvicorn.Config, residents: Residents, grace_s: float):
        config.timeout_graceful_shutdown = int(grace_s + CUT_OFF_S)
        super().__init__(config)
        self._residents, self._grace_s = residents, grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if count := self._residents.n_requests:
            text = f"{count} answer{'s' if count > 1 else ''} may finish within {self._grace_s:.0f} s"
            print(f"kvasir: stopping; {text} (a second signal ends at once)", file=sys.stderr, flush=True)
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._residents.cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
