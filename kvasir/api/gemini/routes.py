"""Google's paths."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvasir.api.errors import Fault
from kvasir.api.gemini import models
from kvasir.api.gemini.embed import parse_batch, parse_embed
from kvasir.api.gemini.errors import error_body
from kvasir.api.gemini.request import parse_count, parse_generate, parse_stream
from kvasir.api.house import House
from kvasir.api.marked import Listing, Marked

SHARED = "v1"  # other protocols have models under it too
VERSIONS = (SHARED, "v1beta", "v1alpha")
HEADERS = ("x-goog-api-key", "x-goog-api-client")


def routes(house: House) -> list[Route]:
    """What the server answers in Google's way.  A model's name may have slashes and colons."""
    paths = Listing(house, models.page, models.listed, shape)
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
            other = f"{base}/{{model:path}}:{{action}}"
            made.append(Route(other, no_action, methods=["POST"]))
    return made


async def no_action(request: Request) -> Response:
    """Nothing that a model can be asked to do is called so."""
    raise HTTPException(404)


def shape(fault: Fault) -> bytes:
    return error_body(fault.status, fault.kind, fault.message)
