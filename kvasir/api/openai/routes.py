"""OpenAI's paths, and those that vLLM has beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import kvasir
from kvasir.api.errors import Fault
from kvasir.api.face import Asked, Called, Sent
from kvasir.api.house import House, called_by
from kvasir.api.http import fault_response, json_response
from kvasir.api.names import resolve
from kvasir.api.openai import chat, completions, decisions, embeddings, rank, responses, tokens
from kvasir.api.openai.memory import Responses
from kvasir.api.openai.models import card
from kvasir.api.words import short
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
    memory = Responses()
    paths = OpenAI(house, memory)
    found = [
        Route("/v1/responses", house.asking(lambda sent: responses.parse(sent, memory)), methods=["POST"]),
        Route("/v1/responses/{id}", paths.response, methods=["GET", "DELETE"]),
        *(Route(path, house.asking(parse), methods=["POST"]) for path, parse in ASKS.items()),
        *(Route(path, house.calling(parse), methods=["POST"]) for path, parse in CALLS.items()),
        Route("/tokenizer_info", house.calling(tokens.parse_describe)),
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

    def __init__(self, house: House, memory: Responses):
        self._house, self._memory = house, memory

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": await self._house.in_thread(self._cards)})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return json_response(await self._house.in_thread(lambda: self._card(name)))

    async def response(self, request: Request) -> Response:
        """A response that was kept, once more; or it is forgotten."""
        id, tenant = request.path_params["id"], self._house.visit(request).tenant
        if request.method == "DELETE" and self._memory.drop(tenant, id):
            return json_response({"id": id, "object": "response", "deleted": True})
        kept = None if request.method == "DELETE" else self._memory.get(tenant, id)
        if kept is None:
            return fault_response(request.url.path, Fault(404, f"there is no response {short(id)}"))
        return json_response(kept.response)

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
