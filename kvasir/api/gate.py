"""ASGI: who may come in from where.  The rules are in `doors`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir.api import doors
from kvasir.api.errors import Fault
from kvasir.api.http import fault_response


class Doors:
    """Turns away foreign Host and Origin headers, and answers CORS for the origins that may come in."""

    def __init__(self, app: ASGIApp, own_host: str, welcome: doors.Welcome):
        self._app, self._own_host, self._welcome = app, own_host, welcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        known = doors.host_allowed(host, self._own_host, self._welcome.hosts)
        if len(request.headers.getlist("host")) > 1 or not known:
            await refused(scope, "this Host is not served here (--allow-host)")(scope, receive, send)
        elif origin is None:
            await self._app(scope, receive, send)
        elif not doors.origin_allowed(origin, host, self._welcome.origins):
            await refused(scope, "this Origin is not served here (--allow-origin)")(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in request.headers:
            wanted = request.headers.get("access-control-request-headers", "content-type")
            await Response(status_code=204, headers=cors(origin, wanted))(scope, receive, send)
        else:
            await self._app(scope, receive, with_headers(send, cors(origin)))


def refused(scope: Scope, text: str) -> Response:
    return fault_response(scope["path"], Fault(403, text))


def cors(origin: str, headers: str | None = None) -> dict[str, str]:
    """What lets a page of `origin` read the answer; with `headers`: what lets it ask at all."""
    found = {"access-control-allow-origin": origin, "vary": "origin"}
    if headers is None:
        return {**found, "access-control-expose-headers": "x-kvasir-warning, x-kvasir-truncated"}
    methods = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
    return {
        **found,
        "access-control-allow-methods": methods,
        "access-control-allow-headers": headers,
        "access-control-max-age": "600",
    }


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *raw]
        await send(message)

    return sending
