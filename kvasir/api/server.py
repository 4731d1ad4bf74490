"""HTTP: the only file that knows it.  It waits and passes on; nothing computes in the event loop."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import ceil, inf
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

import kvasir
from kvasir.api import catalog, doors, ollama
from kvasir.api.drain import Draining
from kvasir.api.loaded import Answer, Loaded
from kvasir.api.names import NotHere, resolve
from kvasir.api.ollama import Asked, Reply
from kvasir.api.residents import Held, Loader, Residents
from kvasir.chat import Event, Finished
from kvasir.checkpoint.open import open_checkpoint
from kvasir.errors import Bug, Busy, CapacityError, KvasirError, Lost
from kvasir.runner.inspect import ModelInfo, describe
from kvasir.runner.prompt import template_source
from kvasir.settings import GRACE_S, MAX_REQUESTS, Address
from kvasir.store.names import find, listing

T = TypeVar("T")
log = logging.getLogger("kvasir")

MAX_BODY = 8 << 20  # more than any context holds
BODY_STALL_S = 20.0  # a body that brings nothing for so long is given up
HEADER_S = 10.0  # a request's head must be complete within
MAX_HEADER = 64 << 10
THREADS = 8  # for checking requests
LOADERS = 16  # threads in which models are loaded and freed: they only wait for the models' processes
MAX_WARNING = 800  # characters of warnings in a header
LATER = ("embed", "embeddings", "create", "copy", "delete", "pull", "push")  # Ollama's, not served yet
PATHS = re.compile(r"(?<![\w.<:/])/(?!api/|v1/)[^\s/:'\",;()]+(?:/[^\s/:'\",;()]+)+")
ADDRESSES = re.compile(r"0x[0-9a-fA-F]{4,}")


@dataclass
class House:
    """What the server serves from.  Mutable: its residents come and go.

    `aliases`: names of requests to names or paths of models; "*" stands for any name that is not known.
    """

    loader: Loader
    keep_alive_s: float = 300.0
    aliases: Mapping[str, str] = field(default_factory=dict)
    own_host: str = "127.0.0.1"
    budget_bytes: float = inf
    max_requests: int = MAX_REQUESTS

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "server")
        self._loaders = ThreadPoolExecutor(LOADERS, "loader")
        self.residents = Residents(
            self.loader, self.keep_alive_s, self._in_loader, self.budget_bytes, self.max_requests
        )
        self._described: dict[tuple[Path, float, int], ModelInfo] = {}

    def in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _in_loader(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._loaders, work)

    def close(self) -> None:
        for pool in (self._pool, self._loaders):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- generate and chat ------------------------------------------------------------------------

    async def generate(self, request: Request) -> Response:
        return await self._answer(request, ollama.parse_generate)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ollama.parse_chat)

    async def _answer(self, request: Request, parse: Callable[[bytes], Asked]) -> Response:
        raw = await read_body(request)
        asked = await self.in_thread(lambda: parse(raw))
        target = await self.in_thread(lambda: resolve(asked.model, self.aliases))
        headers = warned(asked)
        if not asked.empty:
            return Streaming(self, asked, target, headers)
        if asked.keep_alive_s == 0:
            await self.residents.free(target)
        else:
            async with self.residents.use(target, asked.keep_alive_s):
                pass
        body = Reply(asked).loaded(unload=asked.keep_alive_s == 0)
        return Response(body, media_type=ollama.JSON, headers=headers)

    # -- what there is ----------------------------------------------------------------------------

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        return json_response({"version": kvasir.__version__})

    async def tags(self, request: Request) -> Response:
        infos = await self.in_thread(self._infos)
        infos.sort(key=lambda info: info.modified, reverse=True)
        return json_response({"models": [catalog.listed(info) for info in infos]})

    async def ps(self, request: Request) -> Response:
        now = datetime.now(UTC)
        names = {target: alias for alias, target in self.aliases.items() if "/" in target}
        entries = []
        for seat in self.residents.seats():
            name = names.get(seat.name, seat.name)
            if seat.model and seat.model.alive:
                entries.append(catalog.running(called(seat.model.info, name), seat.expires or now))
            elif seat.users:
                stage = self.loader.stage(seat.name) or "waiting for room"
                entries.append(catalog.loading(Path(name).name, stage, seat.bytes))
        return json_response({"models": entries})

    async def show(self, request: Request) -> Response:
        name, verbose = catalog.parse_show(await read_body(request))
        return json_response(await self.in_thread(lambda: self._shown(name, verbose)))

    async def later(self, request: Request) -> Response:
        return json_response({"error": f"{request.url.path} is not supported yet"}, 501)

    def _infos(self) -> list[ModelInfo]:
        found = []
        for file in listing():
            try:
                stat = file.path.stat()
                key = (file.path, stat.st_mtime, stat.st_size)
                if key not in self._described:
                    self._described[key] = describe(file.name)
                found.append(self._described[key])
            except (KvasirError, OSError) as error:
                log.warning("%s is left out of the list: %s", file.name, error)
        return found

    def _shown(self, name: str, verbose: bool) -> dict[str, Any]:
        target = resolve(name, self.aliases)
        checkpoint = open_checkpoint(find(target).path)
        template = template_source(checkpoint) or ""
        return catalog.shown(called(describe(target), name), checkpoint.metadata, template, verbose)


class Streaming(Response):
    """The answer to one request, from loading the model to the last line; a client that leaves cancels it."""

    def __init__(self, house: House, asked: Asked, target: str, headers: Mapping[str, str]):
        super().__init__(media_type=ollama.NDJSON if asked.stream else ollama.JSON, headers=headers)
        del self.headers["content-length"]
        self._house, self._asked, self._target = house, asked, target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._work(send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _work(self, send: Send) -> None:
        async with self._house.residents.use(self._target, self._asked.keep_alive_s) as held:
            stream = await self._submitted(held)
            self._house.residents.answers.add(stream)
            try:
                await (self._lines if self._asked.stream else self._whole)(held, stream, send)
            finally:
                self._house.residents.answers.discard(stream)
                stream.cancel()

    async def _submitted(self, held: Held) -> Answer:
        """The answer to the request.  Checking it takes time (a schema is compiled); if the client leaves
        meanwhile, what comes of it is cancelled.
        """
        checking = asyncio.ensure_future(self._house.in_thread(lambda: submit(self._asked, held.model)))
        try:
            return await asyncio.shield(checking)
        except asyncio.CancelledError:
            checking.add_done_callback(forget)
            raise

    async def _lines(self, held: Held, stream: Answer, send: Send) -> None:
        """One NDJSON line an event.  An error before the first has a status; a later one is a line."""
        reply, started = self._reply(held), False
        try:
            async for event in stream:
                if line := reply.line(complete(event)):
                    if not started:
                        await self._start(send, stream)
                        started = True
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        except Exception as error:
            if not started:
                raise
            line = ollama.error_body(public(error)) + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _whole(self, held: Held, stream: Answer, send: Send) -> None:
        reply, body = self._reply(held), b""
        async for event in stream:
            body = reply.whole(complete(event)) or body
        self.headers["content-length"] = str(len(body))
        await self._start(send, stream)
        await send({"type": "http.response.body", "body": body})

    async def _start(self, send: Send, stream: Answer) -> None:
        if self._asked.truncate:
            self.headers["x-kvasir-truncated"] = str(stream.n_truncated)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    def _reply(self, held: Held) -> Reply:
        return Reply(self._asked, held.load_s, held.model.token_bytes)


def complete(event: Event) -> Event:
    """The event, unless it ends an answer that somebody cut off.  Raises Busy then."""
    if isinstance(event, Finished) and event.reason == "abort":
        raise Busy(
            "the answer was cut off: the model was unloaded or the server is stopping", hint="ask again"
        )
    return event


def forget(checked: asyncio.Future[Answer]) -> None:
    """Cancels an answer that nobody waits for any more, if it came to one."""
    if not checked.cancelled() and checked.exception() is None:
        checked.result().cancel()


def called(info: ModelInfo, name: str) -> ModelInfo:
    """`info` under the name that a client may see: never with a folder."""
    return replace(info, name=Path(name).name)


def submit(asked: Asked, model: Loaded) -> Answer:
    """Hands the request to the model.  Raises UsageError and CapacityError.  May render, so: in a thread."""
    request = ollama.to_request(asked, model.info.capabilities, model.has_template)
    return model.submit(replace(request, context=asked.context))


async def read_body(request: Request) -> bytes:
    """The whole body.  Raises HTTPException 413 when it is too long, 408 when it does not come."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:20]) > MAX_BODY:
        raise HTTPException(413, f"the body is longer than {MAX_BODY >> 20} MB")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "a compressed body is not accepted; send it as it is")
    parts: list[bytes] = []
    size, chunks = 0, request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(chunks, None), BODY_STALL_S)
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive", {"connection": "close"}) from None
        if part is None:
            return b"".join(parts)
        size += len(part)
        if size > MAX_BODY:
            raise HTTPException(413, f"the body is longer than {MAX_BODY >> 20} MB", {"connection": "close"})
        parts.append(part)


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def warned(asked: Asked) -> dict[str, str]:
    """The header that says what was not understood or has no effect; the log says it too."""
    if not asked.warnings:
        return {}
    text = "; ".join(asked.warnings)
    log.warning("/api/%s: %s", asked.kind, text[:MAX_WARNING])
    return {"x-kvasir-warning": text[:MAX_WARNING]}


def public(error: Exception) -> str:
    """What a client may read of an error: its message without folders and addresses; of a bug, nothing."""
    if isinstance(error, Bug) or not isinstance(error, KvasirError):
        log.error("internal error", exc_info=error)
        return "internal error; the server's log has more"
    text = PATHS.sub(lambda found: found[0].rsplit("/", 1)[1], str(error))
    return ADDRESSES.sub("0x...", text)


def status_of(error: KvasirError) -> int:
    """The status by who can mend it: the client 4xx, more room 503, us 500."""
    if isinstance(error, NotHere):
        return 404
    return 503 if isinstance(error, CapacityError) else 500 if isinstance(error, Bug | Lost) else 400


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, dict(headers or {}), ollama.JSON)


async def on_kvasir_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KvasirError)
    headers = {"retry-after": str(max(ceil(error.wait_s), 1))} if isinstance(error, Busy) else None
    return json_response({"error": public(error)}, status_of(error), headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "not found", 405: "method not allowed"}.get(error.status_code, error.detail)
    return json_response({"error": text}, error.status_code, error.headers)


async def on_bug(request: Request, error: Exception) -> Response:
    return json_response({"error": public(error)}, 500)


async def on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


class Doors:
    """ASGI: turns away foreign Host and Origin headers, and answers CORS for the origins that may come in."""

    def __init__(self, app: ASGIApp, own_host: str):
        self._app, self._own_host = app, own_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if len(request.headers.getlist("host")) > 1 or not doors.host_allowed(host, self._own_host):
            await json_response({"error": "this Host is not served here"}, 403)(scope, receive, send)
        elif origin is None:
            await self._app(scope, receive, send)
        elif not doors.origin_allowed(origin, host):
            await json_response({"error": "this Origin is not served here"}, 403)(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in request.headers:
            wanted = request.headers.get("access-control-request-headers", "content-type")
            await Response(status_code=204, headers=cors(origin, wanted))(scope, receive, send)
        else:
            await self._app(scope, receive, with_headers(send, cors(origin)))


def cors(origin: str, headers: str | None = None) -> dict[str, str]:
    """What lets a page of `origin` read the answer; with `headers`: what lets it ask at all."""
    found = {"access-control-allow-origin": origin, "vary": "origin"}
    if headers is None:
        return {**found, "access-control-expose-headers": "x-kvasir-warning, x-kvasir-truncated"}
    methods = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
    return {
        **found,
        "access-control-allow-methods": methods,
        "access-control-allow-headers": headers,
        "access-control-max-age": "600",
    }


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *raw]
        await send(message)

    return sending


class Patient(H11Protocol):
    """HTTP/1.1 that waits for a request's head only so long.  Mutable."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.conn.their_state.__name__ == "IDLE"
        if not waiting and self._deadline:
            self._deadline.cancel()
            self._deadline = None
        elif waiting and self._deadline is None and self.conn.trailing_data[0]:
            self._deadline = self.loop.call_later(HEADER_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)


def application(house: House) -> ASGIApp:
    """The ASGI application of a house."""
    routes = [
        Route("/", house.root),
        Route("/api/version", house.version),
        Route("/api/tags", house.tags),
        Route("/api/ps", house.ps),
        Route("/api/show", house.show, methods=["POST"]),
        Route("/api/generate", house.generate, methods=["POST"]),
        Route("/api/chat", house.chat, methods=["POST"]),
        *(Route(f"/api/{name}", house.later, methods=["POST", "DELETE"]) for name in LATER),
    ]
    handlers: dict[Any, Any] = {
        KvasirError: on_kvasir_error,
        HTTPException: on_http_error,
        ClientDisconnect: on_gone,
        Exception: on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Doors(app, house.own_host)


def server(house: House, address: Address, access_log: bool = False, grace_s: float = GRACE_S) -> Draining:
    """A server that is ready to run on sockets given to `run(sockets=[...])`."""
    config = uvicorn.Config(
        application(house),
        host=address.host,
        port=address.port,
        http=Patient,
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER,
        timeout_keep_alive=75,
    )
    return Draining(config, house.residents, grace_s)
