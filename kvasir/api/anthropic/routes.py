"""Anthropic's paths."""

from __future__ import annotations

import uuid

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvasir.api.anthropic import models
from kvasir.api.anthropic.errors import error_body
from kvasir.api.anthropic.request import parse_count, parse_messages
from kvasir.api.errors import Fault
from kvasir.api.house import Handler, House
from kvasir.api.marked import Listing, Marked

HEADERS = ("anthropic-version",)
PREFIXES = ("/v1", "/v1/v1")  # clients whose base URL ends in /v1 add another


def routes(house: House) -> list[Route]:
    """What the server answers in Anthropic's way."""
    paths = Listing(house, models.page, models.listed, shape)
    messages, count = named(house.asking(parse_messages)), named(house.calling(parse_count))
    return [
        *(Route(f"{each}/messages", messages, methods=["POST"]) for each in PREFIXES),
        *(Route(f"{each}/messages/count_tokens", count, methods=["POST"]) for each in PREFIXES),
        Marked("/v1/models", named(paths.models), HEADERS),
        Marked("/v1/models/{model:path}", named(paths.model), HEADERS),
    ]


def shape(fault: Fault) -> bytes:
    return error_body(fault.kind, fault.message)


def named(handler: Handler) -> Handler:
    """`handler` with a name for each of its answers, that clients show beside an error of theirs."""

    async def handling(request: Request) -> Response:
        response = await handler(request)
        response.headers["request-id"] = f"req_{uuid.uuid4().hex[:24]}"
        return response

    return handling
