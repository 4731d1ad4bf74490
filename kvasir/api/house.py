"""What the server serves from, and how a request becomes an answer of a model."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from kvasir.api.doors import Welcome
from kvasir.api.face import Asked, Called, Sent
from kvasir.api.guest import Guest, Visit
from kvasir.api.http import JSON, read_body
from kvasir.api.keys import Keyring
from kvasir.api.measures import Measures
from kvasir.api.names import Target, target
from kvasir.api.residents import Loader, Residents
from kvasir.api.streaming import Streaming
from kvasir.errors import KvasirError, UsageError
from kvasir.runner.inspect import ModelInfo, describe
from kvasir.settings import MAX_REQUESTS
from kvasir.store.name import is_name
from kvasir.store.names import listing

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("kvasir")

THREADS = 8  # for checking requests
LOADERS = 16  # threads in which models are loaded and freed: they only wait for the models' processes
CALLERS = 32  # threads that wait for answers in one piece: embeddings, counts of tokens
MAX_WARNING = 800  # characters of warnings in a header


@dataclass(frozen=True)
class Lending:
    """What clients may load: adapters under `folder`.  `remember(model, name, path)` has the model started
    with the adapter from now on, or without it where the path is empty.
    """

    folder: Path
    remember: Callable[[str, str, str], None]


@dataclass
class House:
    """What the server serves from.  Mutable: its residents come and go.

    `aliases`: names of requests to names or paths of models; "*" stands for any name that is not known.
    `adapters`: which of the aliases mean an adapter of their model, and its name there; clients add to both
    what `lending` allows.
    `keyring` None: nobody is asked for an API key.  `debug_state`: /kvasir/debug/state is there.
    `welcome`: foreign hosts and pages that may come in.
    """

    loader: Loader
    keep_alive_s: float = 300.0
    aliases: Mapping[str, str] = field(default_factory=dict)
    own_host: str = "127.0.0.1"
    budget_bytes: float = inf
    max_requests: int = MAX_REQUESTS
    adapters: Mapping[str, str] = field(default_factory=dict)
    keyring: Keyring | None = None
    lending: Lending | None = None
    debug_state: bool = False
    welcome: Welcome = field(default_factory=Welcome)
    measures: Measures = field(default_factory=Measures)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "server")
        self._loaders = ThreadPoolExecutor(LOADERS, "loader")
        self._callers = ThreadPoolExecutor(CALLERS, "caller")
        self.residents = Residents(
            self.loader, self.keep_alive_s, self.in_loader, self.budget_bytes, self.max_requests
        )
        self._described: dict[tuple[str, float, int], ModelInfo] = {}

    def in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        """Runs what takes a moment, so that the event loop goes on."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def in_loader(self, work: Callable[[], T]) -> Awaitable[T]:
        """Runs what waits for a model's process."""
        return asyncio.get_running_loop().run_in_executor(self._loaders, work)

    def close(self) -> None:
        for pool in (self._pool, self._loaders, self._callers):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- requests to models -----------------------------------------------------------------------

    def asking(self, parse: Callable[[Sent], Asked]) -> Handler:
        """The handler of a path whose answer a model writes."""

        async def handler(request: Request) -> Response:
            return await self.answer(request, await self.parsed(request, parse))

        return handler

    def calling(self, parse: Callable[[Sent], Called]) -> Handler:
        """The handler of a path that one piece of JSON answers."""

        async def handler(request: Request) -> Response:
            called = await self.parsed(request, parse)
            target = await self.resolved(called.model)
            loop, visit = asyncio.get_running_loop(), self.visit(request)
            async with self.residents.use(target, called.keep_alive_s) as held:
                guest = Guest(held.model, visit)
                body = await loop.run_in_executor(self._callers, lambda: called.answer(guest, held.load_s))
            return Response(body, media_type=JSON, headers=warned(request, called.warnings))

        return handler

    async def parsed(self, request: Request, parse: Callable[[Sent], T]) -> T:
        """What a protocol makes of a request.  Raises what `parse` and `read_body` raise."""
        body = await read_body(request)
        tenant = self.visit(request).tenant
        sent = Sent(body, request.path_params, request.query_params, request.headers, tenant)
        return await self.in_thread(lambda: parse(sent))

    async def answer(self, request: Request, asked: Asked) -> Response:
        """The answer to what was asked, as it is written."""
        target = await self.resolved(asked.model)
        headers = warned(request, asked.warnings)
        return Streaming(self.residents, self.in_thread, asked, target, headers, self.visit(request))

    def visit(self, request: Request) -> Visit:
        """Whose request it is, as the guard knows."""
        state = request.scope.get("state", {})
        spend = state.get("spend", lambda n_tokens: None)
        return Visit(state.get("tenant", ""), spend, self.measures, state.get("began") or perf_counter())

    async def resolved(self, name: str) -> Target:
        """The model called `name`, as `residents.use` takes it; without a name, the only one in memory.

        Raises NotHere, and UsageError where none is meant.
        """
        if not name and "*" not in self.aliases:
            seats = self.residents.seats()
            if len(seats) != 1:
                raise UsageError("model is required", hint="GET /v1/models lists the models there are")
            return Target(seats[0].name, seats[0].name)
        return await self.in_thread(lambda: target(name, self.aliases, self.adapters))

    # -- what there is ----------------------------------------------------------------------------

    def infos(self) -> list[ModelInfo]:
        """All models there are, the newest first.  Reads files, so: in a thread."""
        found = []
        for file in listing():
            try:
                stat = (file.manifest or file.path).stat()
                key = (file.name, stat.st_mtime, stat.st_size)
                if key not in self._described:
                    self._described[key] = describe(file.name)
                found.append(self._described[key])
            except (KvasirError, OSError) as error:
                log.warning("%s is left out of the list: %s", file.name, error)
        found += [adapted for name in self.adapters for adapted in self._adapted(name, found)]
        return sorted(found, key=lambda info: info.modified, reverse=True)

    def _adapted(self, name: str, models: list[ModelInfo]) -> list[ModelInfo]:
        """The adapter called `name` as a model of the list, if its base is one."""
        base = [info for info in models if info.name == self.aliases[name]]
        return [
            replace(info, name=name, digest=hashlib.sha256(f"{info.digest} {name}".encode()).hexdigest())
            for info in base
        ]


def called_by(info: ModelInfo, name: str) -> ModelInfo:
    """`info` under the name that a client may see: never with a folder."""
    return replace(info, name=name if is_name(name) else Path(name).name)


def warned(request: Request, warnings: tuple[str, ...]) -> dict[str, str]:
    """The header that says what was not understood or has no effect; the log says it too."""
    if not warnings:
        return {}
    text = "; ".join(warnings)[:MAX_WARNING]
    log.warning("%s: %s", request.url.path, text)
    return {"x-kvasir-warning": text}
