"""Paths that several protocols have, told apart by a header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from kvasir.api.errors import Fault, fault_of
from kvasir.api.house import Handler, House, called_by
from kvasir.api.http import json_response
from kvasir.api.names import resolve
from kvasir.errors import KvasirError
from kvasir.runner.inspect import ModelInfo, describe


class Marked(Route):
    """A GET path of a protocol whose requests carry one of these headers; others pass it by."""

    def __init__(self, path: str, endpoint: Handler, headers: tuple[str, ...]):
        super().__init__(path, endpoint)
        self._headers = tuple(name.encode("ascii") for name in headers)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if any(name in self._headers for name, _ in scope.get("headers", ())):
            return super().matches(scope)
        return Match.NONE, {}


class Listing:
    """The handlers of a protocol's models: a page of all, by the query, and one; errors in `shape`."""

    def __init__(
        self,
        house: House,
        page: Callable[[list[ModelInfo], Mapping[str, str]], dict[str, Any]],
        listed: Callable[[ModelInfo], dict[str, Any]],
        shape: Callable[[Fault], bytes],
    ):
        self._house, self._page, self._listed, self._shape = house, page, listed, shape

    async def models(self, request: Request) -> Response:
        return await found(
            self._house, lambda: self._page(self._house.infos(), request.query_params), self._shape
        )

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]

        def one() -> dict[str, Any]:
            return self._listed(called_by(describe(resolve(name, self._house.aliases)), name))

        return await found(self._house, one, self._shape)


async def found(
    house: House, work: Callable[[], dict[str, Any]], shape: Callable[[Fault], bytes]
) -> Response:
    """What `work` finds, in a thread, or its error in this shape: the path does not tell the protocol."""
    try:
        return json_response(await house.in_thread(work))
    except KvasirError as error:
        fault = fault_of(error)
        return Response(shape(fault), fault.status, media_type="application/json")
