"""What listens: HTTP/1.1 for an application that may still be on its way.

Half a second of imports stands between a server's start and its application.  Who only asks whether the
server is there is told so meanwhile; everybody else waits.
"""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

import kvasir
from kvasir.api.doors import Welcome, host_allowed
from kvasir.api.measures import Measures
from kvasir.settings import Address

HEADER_S = 10.0  # a request's head must be complete within
MAX_HEADER = 64 << 10
FIRST = "/api/version"  # what those ask who wait for a server


class Swift(h11.Connection):
    """h11, but that the pieces of a chunked body pass it without its state machine, which they do not
    change: a stream is thousands of them.  Mutable.
    """

    _chunked = False

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """The bytes of an event, as h11 writes them."""
        if self._chunked and type(event) is h11.Data and event.data and self.our_state is h11.SEND_BODY:
            return [b"%x\r\n%b\r\n" % (len(event.data), event.data)]
        written = super().send_with_data_passthrough(event)
        if type(event) is h11.Response and written:
            self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in b"".join(written).lower()
        return written


class Patient(H11Protocol):
    """HTTP/1.1 that waits for a request's head only so long.  Mutable."""

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, *its: Any, **own: Any):
        super().__init__(config, *its, **own)
        self.conn = Swift(h11.SERVER, MAX_HEADER)

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


class Rising:
    """ASGI: an application that comes later.  Until then `GET /api/version` is answered and counted as the
    application does, if it comes from no web page and to a Host that is served; all else waits.

    Mutable; touched by the event loop alone.
    """

    def __init__(self, own_host: str, welcome: Welcome, measures: Measures):
        self._own_host, self._welcome, self._measures = own_host, welcome, measures
        self._app: ASGIApp | None = None
        self._there = asyncio.Event()

    def give(self, app: ASGIApp) -> None:
        """The application is there."""
        self._app = app
        self._there.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None and self._is_first(scope):
            await self._answer(send)
            return
        if self._app is None:
            await self._there.wait()
        assert self._app
        await self._app(scope, receive, send)

    def _is_first(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != FIRST:
            return False
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        foreign = any(name == b"origin" for name, _ in scope["headers"])
        host = hosts[0].decode("latin-1") if hosts else ""
        return not foreign and len(hosts) < 2 and host_allowed(host, self._own_host, self._welcome.hosts)

    async def _answer(self, send: Send) -> None:
        began = perf_counter()
        body = json.dumps({"version": kvasir.__version__}, separators=(",", ":")).encode()
        headers = [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", b"application/json; charset=utf-8"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._measures.add("kvasir_http_requests_total", 1, path=FIRST, method="GET", status="200")
        self._measures.observe("kvasir_http_request_seconds", perf_counter() - began, path=FIRST)


def configured(app: ASGIApp, address: Address, access_log: bool) -> uvicorn.Config:
    """How uvicorn is run."""
    return uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=Patient,
        loop="asyncio",
        lifespan="off",
        ws="none",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER,
        timeout_keep_alive=75,
    )
