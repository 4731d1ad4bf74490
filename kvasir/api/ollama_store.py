"""Ollama's paths that change which models there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from kvasir.api import ollama, ollama_models
from kvasir.api.create import Wish, make
from kvasir.api.errors import Fault, Wrong, public
from kvasir.api.house import House, warned
from kvasir.api.http import BODY_STALL_S, fault_response, json_response, read_body
from kvasir.api.names import resolve
from kvasir.errors import KvasirError
from kvasir.store import library
from kvasir.store.blobs import Upload, blob_path

PIECE = 1 << 20  # bytes of an upload that are written at once
NO_PULL = (
    "this Kvasir cannot download models yet: put a GGUF file or a folder with safetensors "
    "into the models folder (~/.kvasir/models), or POST the file to /api/blobs and make a model of it"
)
NO_PUSH = "this Kvasir cannot upload models yet"
NO_ACCOUNTS = "Kvasir has no accounts: all models run on this machine"


def routes(house: House) -> list[Route]:
    """What the server answers in Ollama's way about models that come and go."""
    paths = Store(house)
    return [
        Route("/api/create", paths.create, methods=["POST"]),
        Route("/api/copy", paths.copy, methods=["POST"]),
        Route("/api/delete", paths.delete, methods=["DELETE"]),
        Route("/api/blobs/{digest}", paths.has_blob, methods=["HEAD"]),
        Route("/api/blobs/{digest}", paths.take_blob, methods=["POST"]),
        Route("/api/pull", paths.pull, methods=["POST"]),
        Route("/api/push", paths.push, methods=["POST"]),
        Route("/api/status", paths.status),
        Route("/api/me", paths.no_accounts, methods=["POST"]),
        Route("/api/signout", paths.no_accounts, methods=["POST"]),
    ]


class Store:
    """The handlers."""

    def __init__(self, house: House):
        self._house = house

    async def create(self, request: Request) -> Response:
        """Progress as it comes; an error before the first line has a status."""
        told = await self._house.parsed(request, lambda sent: ollama_models.parse_create(sent.body))
        wish = await self._house.in_thread(lambda: self._based(told.wish))
        steps = make(wish)
        headers = warned(request, told.warnings)
        if not told.stream:
            statuses = await self._house.in_thread(lambda: list(steps))
            await self._made(wish.name)
            return json_response({"status": statuses[-1]}, headers=headers)
        first = await self._house.in_thread(lambda: next(steps))
        lines = self._lines(first, steps, wish.name)
        return StreamingResponse(lines, media_type=ollama.NDJSON, headers=headers)

    async def _lines(self, first: str, steps: Iterator[str], name: str) -> AsyncIterator[bytes]:
        status: str | None = first
        try:
            while status is not None:
                if status == "success":
                    await self._made(name)
                yield ollama_models.status_line(status)
                status = await self._house.in_thread(lambda: next(steps, None))
        except Exception as error:
            yield ollama.error_body(public(error)) + b"\n"

    async def _made(self, name: str) -> None:
        """A model of that name in memory is not what the name stands for any more."""
        target = await self._house.resolved(name)
        if target.load == target.name:  # else it is another model's too
            await self._house.residents.free(target)

    def _based(self, wish: Wish) -> Wish:
        """`wish` with its base as the list has it, never a path that a client sent."""
        self._not_alias(wish.name)
        if not wish.base:
            return wish
        return replace(wish, base=self._alone(wish.base))

    def _alone(self, name: str) -> str:
        """The model called `name`, which must not mean an adapter too."""
        if name.removesuffix(":latest") in self._house.adapters:
            raise Wrong(
                f"{name[:80]!a} is a model with an adapter", hint="name the model alone", param="model"
            )
        return resolve(name, self._house.aliases)

    async def copy(self, request: Request) -> Response:
        source, name = ollama_models.parse_copy(await read_body(request))
        self._not_alias(name)
        await self._house.in_thread(lambda: library.copy(self._alone(source), name))
        await self._made(name)
        return Response(status_code=200)

    async def delete(self, request: Request) -> Response:
        name, _ = ollama_models.parse_name(await read_body(request))
        self._not_alias(name)
        known = await self._house.in_thread(lambda: resolve(name, self._house.aliases))
        target = None
        with suppress(KvasirError):  # of a model whose weights are gone nothing is in memory
            target = await self._house.resolved(name)
        await self._house.in_thread(lambda: library.delete(known))
        if target and (target.load == target.name or "/" in target.load):  # else it is another model's too
            await self._house.residents.free(target)
        return Response(status_code=200)

    def _not_alias(self, name: str) -> None:
        """Raises UsageError for a name that this server gave to another model."""
        if name.removesuffix(":latest") in self._house.aliases or name in self._house.aliases:
            raise Wrong(f"{name[:80]!a} is an alias of this server", hint="it comes and goes with --alias")

    async def has_blob(self, request: Request) -> Response:
        path = blob_path(request.path_params["digest"])
        return Response(status_code=200 if await self._house.in_thread(path.is_file) else 404)

    async def take_blob(self, request: Request) -> Response:
        """Writes the body as it comes.  One that does not end, or is something else, leaves nothing."""
        digest = request.path_params["digest"]
        there = await self._house.in_thread(blob_path(digest).is_file)
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or len(declared) > 15:
            raise HTTPException(400, "content-length is not a number of bytes")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "a compressed body is not accepted; send it as it is")
        if there:
            async for _ in pieces(request):
                pass
            return Response(status_code=200)
        upload = await self._house.in_thread(lambda: Upload(digest, int(declared)))
        try:
            async for piece in pieces(request):
                await self._house.in_thread(lambda piece=piece: upload.write(piece))  # type: ignore[misc]
            await self._house.in_thread(upload.finish)
        finally:
            upload.drop()
        return Response(status_code=201)

    async def pull(self, request: Request) -> Response:
        """A model that is here has nothing to be pulled; others cannot be."""
        name, stream = ollama_models.parse_name(await read_body(request))
        try:
            known = await self._house.in_thread(lambda: resolve(name, self._house.aliases))
        except KvasirError:
            return fault_response(request.url.path, Fault(501, NO_PULL))
        if not stream:
            return json_response({"status": "success"})
        lines = (f"{known} is here already", "success")
        body = b"".join(ollama_models.status_line(line) for line in lines)
        return Response(body, media_type=ollama.NDJSON)

    async def push(self, request: Request) -> Response:
        ollama_models.parse_name(await read_body(request))
        return fault_response(request.url.path, Fault(501, NO_PUSH))

    async def status(self, request: Request) -> Response:
        return json_response({"cloud": {"disabled": True, "source": "config"}})

    async def no_accounts(self, request: Request) -> Response:
        return fault_response(request.url.path, Fault(501, NO_ACCOUNTS))


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte.  Raises HTTPException 408 when it does not come."""
    chunks, held = request.stream(), bytearray()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks, None), BODY_STALL_S)
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive", {"connection": "close"}) from None
        held += chunk or b""
        if held and (chunk is None or len(held) >= PIECE):
            yield bytes(held)
            held.clear()
        if chunk is None:
            return
