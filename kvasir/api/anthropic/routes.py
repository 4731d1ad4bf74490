"""Anthropic's paths."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from kvasir.api.anthropic import models
from kvasir.api.anthropic.errors import error_body
from kvasir.api.anthropic.request import JSON, parse_count, parse_messages
from kvasir.api.errors import fault_of
from kvasir.api.house import Handler, House, called_by
from kvasir.api.names import resolve
from kvasir.errors import KvasirError
from kvasir.runner.inspect import describe

PREFIXES = ("/v1", "/v1/v1")  # clients whose base URL ends in /v1 add another


def routes(house: House) -> list[Route]:
    """What the server answers in Anthropic's way."""
    paths = Paths(house)
    messages, count = named(house.asking(parse_messages)), named(house.calling(parse_count))
    return [
        *(Route(f"{each}/messages", messages, methods=["POST"]) for each in PREFIXES),
        *(Route(f"{each}/messages/count_tokens", count, methods=["POST"]) for each in PREFIXES),
        Versioned("/v1/models", named(paths.models)),
        Versioned("/v1/models/{model:path}", named(paths.model)),
    ]


class Versioned(Route):
    """A path that another protocol has too: this one's requests carry its version."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if any(name == b"anthropic-version" for name, _ in scope.get("headers", ())):
            return super().matches(scope)
        return Match.NONE, {}


class Paths:
    """The handlers."""

    def __init__(self, house: House):
        self._house = house

    async def models(self, request: Request) -> Response:
        return await self._told(lambda: models.page(self._house.infos(), request.query_params))

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        return await self._told(lambda: self._listed(name))

    def _listed(self, name: str) -> dict[str, Any]:
        return models.listed(called_by(describe(resolve(name, self._house.aliases)), name))

    async def _told(self, work: Callable[[], dict[str, Any]]) -> Response:
        """What `work` finds, or its error in Anthropic's shape."""
        try:
            return Response(msgspec.json.encode(await self._house.in_thread(work)), media_type=JSON)
        except KvasirError as error:
            fault = fault_of(error)
            return Response(error_body(fault.kind, fault.message), fault.status, media_type=JSON)


def named(handler: Handler) -> Handler:
    """`handler` with a name for each of its answers, that clients show beside an error of theirs."""

    async def handling(request: Request) -> Response:
        response = await handler(request)
        response.headers["request-id"] = f"req_{uuid.uuid4().hex[:24]}"
        return response

    return handling
