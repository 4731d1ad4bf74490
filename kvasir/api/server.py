"""The server: its routes, its limits on connections, its start."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from kvasir.api import adapters, ollama_routes, ollama_store, own, top
from kvasir.api.anthropic import routes as anthropic
from kvasir.api.counting import Counting
from kvasir.api.drain import Draining
from kvasir.api.gate import Doors
from kvasir.api.gemini import routes as gemini
from kvasir.api.guard import Guard
from kvasir.api.house import House
from kvasir.api.http import on_bug, on_gone, on_http_error, on_kvasir_error
from kvasir.api.openai import routes as openai
from kvasir.errors import KvasirError
from kvasir.settings import GRACE_S, Address

HEADER_S = 10.0  # a request's head must be complete within
MAX_HEADER = 64 << 10
PROTOCOLS = (  # a line each
    own.routes,
    ollama_routes.routes,
    ollama_store.routes,
    top.routes,
    anthropic.routes,  # before OpenAI's, with which they share paths
    gemini.routes,
    openai.routes,
    adapters.routes,
)


class Patient(H11Protocol):
    """HTTP/1.1 that waits for a request's head only so long.  Mutable."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.conn.their_state.__name__ == "IDLE"
        if not waiting and self._deadline:
            self._deadline.cancel()
            self._deadline = None
        elif waiting and self._deadline is None and self.conn.trailing_data[0]:
            self._deadline = self.loop.call_later(HEADER_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)


def application(house: House) -> ASGIApp:
    """The ASGI application of a house."""
    routes = [route for protocol in PROTOCOLS for route in protocol(house)]
    handlers: dict[Any, Any] = {
        KvasirError: on_kvasir_error,
        HTTPException: on_http_error,
        ClientDisconnect: on_gone,
        Exception: on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Counting(Doors(Guard(app, house.keyring), house.own_host, house.welcome), routes, house.measures)


def server(house: House, address: Address, access_log: bool = False, grace_s: float = GRACE_S) -> Draining:
    """A server that is ready to run on sockets given to `run(sockets=[...])`."""
    config = uvicorn.Config(
        application(house),
        host=address.host,
        port=address.port,
        http=Patient,
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER,
        timeout_keep_alive=75,
    )
    return Draining(config, house.residents, grace_s)
