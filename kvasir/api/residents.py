"""Which models are in memory, who uses them, and when each may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf, isinf
from time import monotonic, perf_counter
from typing import Protocol, TypeVar

from kvasir.api.dressed import dressed
from kvasir.api.loaded import Answer, Loaded
from kvasir.api.names import Target
from kvasir.errors import Busy, CapacityError, KvasirError
from kvasir.settings import MAX_REQUESTS

T = TypeVar("T")
FOREVER = timedelta(days=365 * 100)


class InThread(Protocol):
    """Runs work in a thread, so that the event loop goes on."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


class Loader(Protocol):
    """What loads and frees models; see runner.registry.Models.  Called from threads; `stage` never blocks."""

    def get(self, name: str) -> Loaded: ...
    def unload(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def stage(self, name: str) -> str: ...


@dataclass(eq=False)
class Seat:
    """A model's place in memory.  Mutable; touched by the event loop alone.

    `expires` None: in use.  `expected_bytes`: what it was thought to need when it got room; None: it has no
    room.  `leaving`: no new user may sit down, since another model needs the room.
    """

    name: str
    keep_s: float
    called: str = ""  # by who asked for it last
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    model: Loaded | None = None
    users: int = 0
    timer: asyncio.TimerHandle | None = None
    expires: datetime | None = None
    used_at: float = 0.0
    expected_bytes: int | None = None
    leaving: bool = False
    failure: Exception | None = None  # of the last load that failed
    n_failures: int = 0

    @property
    def bytes(self) -> int:
        """What it takes up, as expected or as measured, whichever is more."""
        return max(self.expected_bytes or 0, self.model.own_bytes if self.model else 0)


@dataclass(frozen=True)
class Held:
    """A model in use, and the seconds that its user waited for it."""

    model: Loaded
    load_s: float


class Residents:
    """Loads models on first use and frees them `keep_s` after the last.  Mutable; lives in one event loop.

    All of them together stay under `budget_bytes`: to load another, those that nobody uses go, least recently
    used first; and if that is not enough, one in use is closed to newcomers and goes after its last answer.
    """

    def __init__(
        self,
        loader: Loader,
        keep_s: float,
        in_thread: InThread,
        budget_bytes: float = inf,
        max_requests: int = MAX_REQUESTS,
    ):
        self._loader, self._keep_s, self._in_thread = loader, keep_s, in_thread
        self._budget_bytes, self._max_requests = budget_bytes, max_requests
        self.n_requests = 0
        self.answers: set[Answer] = set()  # under way; kept by those who read them
        self._seats: dict[str, Seat] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Lock()  # one at a time makes room, in the order of arrival
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def use(self, target: Target | str, keep_s: float | None = None) -> AsyncIterator[Held]:
        """The model that is meant, loaded if need be, not freed meanwhile.

        `keep_s` changes how long it stays afterwards; None leaves that as it is.  Raises what loading raises,
        Busy when too many wait already, and CapacityError for a model over the budget.
        """
        start = perf_counter()
        if self.n_requests >= self._max_requests:
            raise Busy(f"{self._max_requests} requests are being answered or wait", hint="try again later")
        self.n_requests += 1
        try:
            target = target if isinstance(target, Target) else Target(target, target)
            seat = await self._seat(target)
            try:
                model = await self._model(seat)
                yield Held(dressed(target.name, model, target.made, target.adapter), perf_counter() - start)
                seat.keep_s = seat.keep_s if keep_s is None else keep_s
            finally:
                seat.users -= 1
                if seat.users == 0:
                    self._leave(seat)
        finally:
            self.n_requests -= 1

    async def free(self, target: Target | str) -> None:
        """Frees the model as soon as nobody uses it."""
        if seat := self._seats.get(target.load if isinstance(target, Target) else target):
            seat.keep_s = 0
            if seat.users == 0:
                self._leave(seat)

    def cut_off(self) -> None:
        """Ends all answers under way, which is an error to those who read them."""
        for answer in self.answers:
            answer.cancel()

    def seats(self) -> list[Seat]:
        """The models in memory and those being loaded, the one that stays longest first."""
        far = datetime.max.replace(tzinfo=UTC)
        known = (s for s in self._seats.values() if s.model or s.users)
        return sorted(known, key=lambda s: s.expires or far, reverse=True)

    async def _seat(self, target: Target) -> Seat:
        """A seat with one user more."""
        called = target.load if target.adapter else target.name  # an adapter has no process of its own
        fresh = Seat(target.load, self._keep_s, called)
        while (seat := self._seats.setdefault(target.load, fresh)).leaving:
            await self._wait()
        seat.users += 1
        seat.called = called
        seat.used_at = monotonic()
        if seat.timer:
            seat.timer.cancel()
        seat.timer = seat.expires = None
        return seat

    async def _model(self, seat: Seat) -> Loaded:
        """The seat's model, loaded if it is not in memory, or if its process has ended."""
        n_failures = seat.n_failures
        async with seat.lock:
            if seat.failure and seat.n_failures > n_failures:
                raise seat.failure  # of the load that we waited for
            if seat.model is None or not seat.model.alive:
                seat.model = seat.expected_bytes = None
                await self._make_room(seat)
                try:
                    seat.model = await self._in_thread(lambda: self._loader.get(seat.name))
                except Exception as error:
                    seat.expected_bytes, seat.failure = None, error
                    seat.n_failures += 1
                    raise
            return seat.model

    async def _make_room(self, seat: Seat) -> None:
        """Returns when the seat's model has room under the budget."""
        need = await self._in_thread(lambda: self._loader.size(seat.name))
        if need > self._budget_bytes:
            have = self._budget_bytes
            raise CapacityError(
                f"{seat.name} needs about {need / 1e9:.1f} GB and {have / 1e9:.1f} GB may be used",
                hint="choose a smaller model, or start the server with more --memory",
            )
        async with self._room:
            while sum(s.bytes for s in self._seats.values() if s is not seat) + need > self._budget_bytes:
                others = [s for s in self._seats.values() if s is not seat and s.expected_bytes is not None]
                if not others:
                    break
                await self._remove(min(others, key=lambda s: (s.users > 0, s.used_at)))
            seat.expected_bytes = need

    async def _remove(self, seat: Seat) -> None:
        """Frees a model, after its last answer if it has users."""
        seat.leaving = True
        try:
            while seat.users:
                await self._wait()
            await self._unload(seat)
        finally:
            seat.leaving = False
            if not seat.users and seat.expected_bytes is not None:
                self._leave(seat)  # nobody wants the room any more, and its clock stood still
            self._notify()

    def _leave(self, seat: Seat) -> None:
        """Starts the clock for a model that nobody uses."""
        if seat.leaving:
            self._notify()
            return
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
            seat.expected_bytes, seat.keep_s = None, self._keep_s  # whoever waits for it begins anew
            if not seat.users and self._seats.get(seat.name) is seat:
                del self._seats[seat.name]

    async def _wait(self) -> None:
        """Until somebody notifies."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _notify(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
