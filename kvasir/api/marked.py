"""Paths that several protocols have, told apart by a header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from kvasir.api.errors import Fault, fault_of
from kvasir.api.house import Handler, House
from kvasir.api.http import json_response
from kvasir.errors import KvasirError


class Marked(Route):
    """A GET path of a protocol whose requests carry one of these headers; others pass it by."""

    def __init__(self, path: str, endpoint: Handler, headers: tuple[str, ...]):
        super().__init__(path, endpoint)
        self._headers = tuple(name.encode("ascii") for name in headers)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if any(name in self._headers for name, _ in scope.get("headers", ())):
            return super().matches(scope)
        return Match.NONE, {}


async def found(
    house: House, work: Callable[[], dict[str, Any]], shape: Callable[[Fault], bytes]
) -> Response:
    """What `work` finds, in a thread, or its error in this shape: the path does not tell the protocol."""
    try:
        return json_response(await house.in_thread(work))
    except KvasirError as error:
        fault = fault_of(error)
        return Response(shape(fault), fault.status, media_type="application/json")
