"""ASGI: counts requests by path, method and status, and notes when each came."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir.api.measures import Measures

METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")


class Counting:
    """Counts what passes.  Paths and methods that are not served are "other": a stranger adds no labels."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route], measures: Measures):
        self._app, self._measures = app, measures
        self._plain = {route.path for route in routes if not route.param_convertors}
        self._others = [route for route in routes if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = perf_counter(), 0
        scope.setdefault("state", {}).update(began=began, straight=send)
        path, method = self._label(scope["path"]), scope["method"]
        method = method if method in METHODS else "other"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._measures.add(
                "kvasir_http_requests_total", 1, path=path, method=method, status=str(status or 499)
            )
            self._measures.observe("kvasir_http_request_seconds", perf_counter() - began, path=path)

    def _label(self, path: str) -> str:
        if path in self._plain:
            return path
        return next((r.path for r in self._others if r.path_regex.match(path)), "other")
