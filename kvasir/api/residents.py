"""Which models are in memory, who uses them, and when each may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isinf
from time import perf_counter
from typing import Protocol, TypeVar

from kvasir.api.loaded import Loaded
from kvasir.errors import KvasirError

T = TypeVar("T")
FOREVER = timedelta(days=365 * 100)


class InThread(Protocol):
    """Runs work in a thread, so that the event loop goes on."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


class Loader(Protocol):
    """What loads and frees models; see runner.registry.Models.  Called from threads."""

    def get(self, name: str) -> Loaded: ...
    def unload(self, name: str) -> bool: ...


@dataclass(eq=False)
class Seat:
    """A model's place in memory.  Mutable; touched by the event loop alone.  `expires` None: in use."""

    name: str
    keep_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    model: Loaded | None = None
    users: int = 0
    timer: asyncio.TimerHandle | None = None
    expires: datetime | None = None


@dataclass(frozen=True)
class Held:
    """A model in use, and the seconds that its user waited for it."""

    model: Loaded
    load_s: float


class Residents:
    """Loads models on first use and frees them `keep_s` after the last.  Mutable; lives in one event loop."""

    def __init__(self, loader: Loader, keep_s: float, in_thread: InThread):
        self._loader, self._keep_s, self._in_thread = loader, keep_s, in_thread
        self._seats: dict[str, Seat] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self, name: str, keep_s: float | None = None) -> AsyncIterator[Held]:
        """The model called `name`, loaded if need be, not freed meanwhile.

        `keep_s` changes how long it stays afterwards; None leaves that as it is.  Raises what loading raises.
        """
        start = perf_counter()
        seat = self._seats.setdefault(name, Seat(name, self._keep_s))
        seat.users += 1
        if seat.timer:
            seat.timer.cancel()
        seat.timer = seat.expires = None
        try:
            async with seat.lock:
                if seat.model is None:
                    seat.model = await self._in_thread(lambda: self._loader.get(name))
                model = seat.model
            yield Held(model, perf_counter() - start)
            seat.keep_s = seat.keep_s if keep_s is None else keep_s
        finally:
            seat.users -= 1
            if seat.users == 0:
                self._leave(seat)

    async def free(self, name: str) -> None:
        """Frees the model called `name` as soon as nobody uses it."""
        if seat := self._seats.get(name):
            seat.keep_s = 0
            if seat.users == 0:
                self._leave(seat)

    def seats(self) -> list[Seat]:
        """The models in memory, the one that stays longest first."""
        far = datetime.max.replace(tzinfo=UTC)
        return sorted(
            (s for s in self._seats.values() if s.model), key=lambda s: s.expires or far, reverse=True
        )

    def _leave(self, seat: Seat) -> None:
        """Starts the clock for a model that nobody uses."""
        if isinf(seat.keep_s):
            seat.expires = datetime.now(UTC) + FOREVER
            return
        seat.expires = datetime.now(UTC) + timedelta(seconds=seat.keep_s)
        if seat.timer:
            seat.timer.cancel()
        loop = asyncio.get_running_loop()
        seat.timer = loop.call_later(seat.keep_s, self._expire, seat)

    def _expire(self, seat: Seat) -> None:
        task = asyncio.get_running_loop().create_task(self._unload(seat))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _unload(self, seat: Seat) -> None:
        async with seat.lock:
            if seat.users:
                return
            seat.model = None
            with suppress(KvasirError):  # its file may be gone by now
                await self._in_thread(lambda: self._loader.unload(seat.name))
            if not seat.users:
                self._seats.pop(seat.name, None)
