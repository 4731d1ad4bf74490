"""OpenAI's paths, and those that vLLM has beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import kvasir
from kvasir.api.face import Asked, Called, Sent
from kvasir.api.house import House, called_by
from kvasir.api.http import json_response
from kvasir.api.names import resolve
from kvasir.api.openai import chat, completions, decisions, embeddings, rank, tokens
from kvasir.api.openai.models import card
from kvasir.runner.inspect import describe

ASKS: dict[str, Callable[[Sent], Asked]] = {
    "/v1/chat/completions": chat.parse,
    "/v1/completions": completions.parse,
    "/v1/score": rank.parse_score,
    "/score": rank.parse_score,
    "/v1/rerank": rank.parse_rerank,
    "/v2/rerank": rank.parse_rerank,
    "/rerank": rank.parse_rerank,
    "/v1/decisions": decisions.parse_decisions,
    "/v1/systemone": decisions.parse_systemone,
}
CALLS: dict[str, Callable[[Sent], Called]] = {
    "/v1/embeddings": embeddings.parse,
    "/tokenize": tokens.parse_tokenize,
    "/detokenize": tokens.parse_detokenize,
}


def routes(house: House) -> list[Route]:
    """What the server answers in OpenAI's way.  A base URL with one /v1 too many does no harm."""
    paths = OpenAI(house)
    found = [
        *(Route(path, house.asking(parse), methods=["POST"]) for path, parse in ASKS.items()),
        *(Route(path, house.calling(parse), methods=["POST"]) for path, parse in CALLS.items()),
        Route("/v1/models", paths.models),
        Route("/v1/models/{name:path}", paths.model),
        Route("/health", paths.health),
        Route("/ping", paths.health, methods=["GET", "POST"]),
        Route("/version", paths.version),
    ]
    doubled = [
        Route(f"/v1{route.path}", route.endpoint, methods=list(route.methods or ()))
        for route in found
        if route.path.startswith("/v1/")
    ]
    return found + doubled


class OpenAI:
    """The handlers that need no model in memory."""

    def __init__(self, house: House):
        self._house = house

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": await self._house.in_thread(self._cards)})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return json_response(await self._house.in_thread(lambda: self._card(name)))

    async def health(self, request: Request) -> Response:
        return Response()

    async def version(self, request: Request) -> Response:
        return json_response({"version": kvasir.__version__})

    def _cards(self) -> list[dict[str, Any]]:
        """All models, then the other names that they go by."""
        infos = {info.name: info for info in self._house.infos()}
        cards = [card(info) for info in infos.values()]
        for alias, target in self._house.aliases.items():
            if alias != "*" and alias not in infos and target in infos:
                cards.append(card(infos[target], alias))
        return cards

    def _card(self, name: str) -> dict[str, Any]:
        target = resolve(name, self._house.aliases)
        info = called_by(describe(target), Path(target).name)
        return card(info, name)
