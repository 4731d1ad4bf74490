"""Google's paths."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvasir.api.errors import Fault
from kvasir.api.gemini import models
from kvasir.api.gemini.embed import parse_batch, parse_embed
from kvasir.api.gemini.errors import error_body
from kvasir.api.gemini.request import parse_count, parse_generate, parse_stream
from kvasir.api.house import House, called_by
from kvasir.api.marked import Marked, found
from kvasir.api.names import resolve
from kvasir.runner.inspect import describe

SHARED = "v1"  # other protocols have models under it too
VERSIONS = (SHARED, "v1beta", "v1alpha")
HEADERS = ("x-goog-api-key", "x-goog-api-client")


def routes(house: House) -> list[Route]:
    """What the server answers in Google's way.  A model's name may have slashes and colons."""
    paths = Paths(house)
    actions = {
        "generateContent": house.asking(parse_generate),
        "streamGenerateContent": house.asking(parse_stream),
        "countTokens": house.calling(parse_count),
        "embedContent": house.calling(parse_embed),
        "batchEmbedContents": house.calling(parse_batch),
    }
    made: list[Route] = []
    for version in VERSIONS:
        base = f"/{version}/models"
        for action, handler in actions.items():
            made.append(Route(f"{base}/{{model:path}}:{action}", handler, methods=["POST"]))
        made += [Marked(base, paths.models, HEADERS), Marked(f"{base}/{{model:path}}", paths.model, HEADERS)]
        if version != SHARED:
            made += [Route(base, paths.models), Route(f"{base}/{{model:path}}", paths.model)]
    return made


class Paths:
    """The handlers."""

    def __init__(self, house: House):
        self._house = house

    async def models(self, request: Request) -> Response:
        return await found(self._house, lambda: models.page(self._house.infos(), request.query_params), shape)

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        return await found(self._house, lambda: self._listed(name), shape)

    def _listed(self, name: str) -> dict[str, Any]:
        return models.listed(called_by(describe(resolve(name, self._house.aliases)), name))


def shape(fault: Fault) -> bytes:
    return error_body(fault.status, fault.kind, fault.message)
