"""Ollama's paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import kvasir
from kvasir.api import catalog, ollama, ollama_embed
from kvasir.api.house import House, called_by, warned
from kvasir.api.http import json_response, read_body
from kvasir.api.names import resolve
from kvasir.backends.nvml import readings
from kvasir.checkpoint.open import open_checkpoint
from kvasir.runner.inspect import describe
from kvasir.runner.prompt import template_source
from kvasir.store.names import find


def routes(house: House) -> list[Route]:
    """What the server answers in Ollama's way."""
    paths = Ollama(house)
    return [
        Route("/", paths.root),
        Route("/api/version", paths.version),
        Route("/api/tags", paths.tags),
        Route("/api/ps", paths.ps),
        Route("/api/show", paths.show, methods=["POST"]),
        Route("/api/generate", paths.generate, methods=["POST"]),
        Route("/api/chat", paths.chat, methods=["POST"]),
        Route("/api/embed", house.calling(lambda s: ollama_embed.parse_embed(s.body)), methods=["POST"]),
        Route(
            "/api/embeddings",
            house.calling(lambda s: ollama_embed.parse_embeddings(s.body)),
            methods=["POST"],
        ),
    ]


class Ollama:
    """The handlers."""

    def __init__(self, house: House):
        self._house = house

    async def generate(self, request: Request) -> Response:
        return await self._answer(request, ollama.parse_generate)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ollama.parse_chat)

    async def _answer(self, request: Request, parse: Callable[[bytes], ollama.Asked]) -> Response:
        asked = await self._house.parsed(request, lambda sent: parse(sent.body))
        if not asked.empty:
            return await self._house.answer(request, asked)
        target = await self._house.resolved(asked.model)
        if asked.keep_alive_s == 0:
            await self._house.residents.free(target)
        else:
            async with self._house.residents.use(target, asked.keep_alive_s):
                pass
        body = ollama.Reply(asked).loaded(unload=asked.keep_alive_s == 0)
        return Response(body, media_type=ollama.JSON, headers=warned(request, asked.warnings))

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        return json_response({"version": kvasir.__version__})

    async def tags(self, request: Request) -> Response:
        infos = await self._house.in_thread(self._house.infos)
        return json_response({"models": [catalog.listed(info) for info in infos]})

    async def ps(self, request: Request) -> Response:
        now, house = datetime.now(UTC), self._house
        names = {
            path: alias
            for alias, path in house.aliases.items()
            if "/" in path and alias not in house.adapters
        }
        entries = []
        for seat in house.residents.seats():
            name = names.get(seat.name, seat.called)
            if seat.model and seat.model.alive:
                entries.append(catalog.running(called_by(seat.model.info, name), seat.expires or now))
            elif seat.users:
                stage = house.loader.stage(seat.name) or "waiting for room"
                entries.append(catalog.loading(Path(name).name, stage, seat.bytes))
        found = await house.in_thread(readings)
        gpus = {"gpus": [asdict(gpu) for gpu in found]} if found else {}  # not Ollama's
        return json_response({"models": entries, **gpus})

    async def show(self, request: Request) -> Response:
        name, verbose = catalog.parse_show(await read_body(request))
        return json_response(await self._house.in_thread(lambda: self._shown(name, verbose)))

    def _shown(self, name: str, verbose: bool) -> dict[str, Any]:
        file = find(resolve(name, self._house.aliases))
        checkpoint = open_checkpoint(file.path)
        template = (file.made and file.made.template) or template_source(checkpoint) or ""
        return catalog.shown(called_by(describe(file.name), name), checkpoint, template, verbose)
