"""`kvasir serve` from the moment it listens to its end.  What is long to import comes with `open_house`."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from threading import Thread
from typing import Protocol

from starlette.types import ASGIApp

from kvasir.api.doors import Welcome
from kvasir.api.drain import Busy, Draining
from kvasir.api.front import Rising, configured
from kvasir.api.measures import Measures
from kvasir.settings import Address


class Open(Protocol):
    """What answers, once it is there."""

    @property
    def app(self) -> ASGIApp: ...
    @property
    def residents(self) -> Busy: ...
    def close(self) -> None: ...


def run(
    listener: socket.socket,
    bound: Address,
    welcome: Welcome,
    debug: bool,
    grace_s: float,
    open_house: Callable[[Measures], Open],
) -> None:
    """Answers until a signal ends it.  Raises what `open_house` raises."""
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    opening = Opening(open_house, bound.host, welcome)
    opening.server = Draining(configured(opening.rising, bound, debug), grace_s, started_up=opening.begin)
    try:
        opening.server.run(sockets=[listener])
    finally:
        opening.close()
    if opening.error:
        raise opening.error


class Opening:
    """A house that is opened in a thread while the server answers already.  Mutable."""

    server: Draining

    def __init__(self, open_house: Callable[[Measures], Open], own_host: str, welcome: Welcome):
        self._open_house, self._measures = open_house, Measures()
        self.rising = Rising(own_host, welcome, self._measures)
        self.error: Exception | None = None
        self._house: Open | None = None
        self._thread: Thread | None = None

    def begin(self) -> None:
        """The server has started; called on its event loop."""
        loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run, args=(loop,), name="opening", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes the house, once it is open."""
        if self._thread:
            self._thread.join()
        if self._house:
            self._house.close()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        gc.disable()  # nothing that an import makes is garbage
        try:
            self._house = self._open_house(self._measures)
            self.server.residents = self._house.residents
            loop.call_soon_threadsafe(self.rising.give, self._house.app)
        except Exception as error:
            self.error = error
            self.server.force_exit = self.server.should_exit = True
        finally:
            gc.freeze()
            gc.enable()
