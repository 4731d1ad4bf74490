"""Several models under one budget: who goes, who waits, and what a full house says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from kvasir.api.residents import Residents
from kvasir.errors import Busy, CapacityError, Lost
from tests.wire.fake import FakeModel

T = TypeVar("T")


@dataclass
class Shelf:
    """A loader of any name, ten bytes a model but for `sizes`.  Mutable."""

    sizes: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def get(self, name: str) -> FakeModel:
        self.log.append(f"+{name}")
        if self.failure:
            raise self.failure
        return FakeModel()

    def unload(self, name: str) -> bool:
        self.log.append(f"-{name}")
        return True

    def size(self, name: str) -> int:
        return self.sizes.get(name, 10)

    def stage(self, name: str) -> str:
        return ""


async def at_once(work: Callable[[], T]) -> T:
    await asyncio.sleep(0.001)
    return work()


def house(shelf: Shelf, budget: float = 25, **wishes: int) -> Residents:
    def in_thread(work: Callable[[], T]) -> Awaitable[T]:
        return at_once(work)

    return Residents(shelf, 60, in_thread, budget, **wishes)


async def visit(residents: Residents, *names: str) -> None:
    for name in names:
        async with residents.use(name):
            pass


def test_the_least_recently_used_goes_first() -> None:
    async def run() -> None:
        shelf = Shelf()
        residents = house(shelf)
        await visit(residents, "a", "b", "a", "c")
        assert shelf.log == ["+a", "+b", "-b", "+c"]
        shelf.sizes["d"] = 20
        await visit(residents, "d")
        assert shelf.log[4:] == ["-a", "-c", "+d"]
        assert [s.name for s in residents.seats()] == ["d"]
        with pytest.raises(CapacityError, match="may be used"):
            shelf.sizes["e"] = 26
            await visit(residents, "e")
        await visit(residents, "d")
        assert shelf.log[-1] == "+d"

    asyncio.run(run())


def test_what_a_model_really_takes_counts_too() -> None:
    async def run() -> None:
        shelf = Shelf()
        residents = house(shelf)
        async with residents.use("a") as held:
            assert isinstance(held.model, FakeModel)
            held.model.own_bytes = 16
        await visit(residents, "b")
        assert shelf.log == ["+a", "-a", "+b"]

    asyncio.run(run())


def test_one_in_use_finishes_first_and_takes_nobody_new() -> None:
    async def run() -> None:
        shelf = Shelf(sizes={"a": 20})
        residents = house(shelf)
        async with AsyncExitStack() as using:
            await using.enter_async_context(residents.use("a"))
            other = asyncio.create_task(visit(residents, "b"))
            await asyncio.sleep(0.05)
            later = asyncio.create_task(visit(residents, "a"))
            await asyncio.sleep(0.05)
            assert shelf.log == ["+a"] and not other.done() and not later.done()
        await asyncio.gather(other, later)
        assert shelf.log == ["+a", "-a", "+b", "-b", "+a"]

    asyncio.run(run())


def test_whoever_waits_for_room_and_leaves_gives_up_the_claim() -> None:
    async def run() -> None:
        shelf = Shelf(sizes={"a": 20})
        residents = house(shelf)
        async with AsyncExitStack() as using:
            await using.enter_async_context(residents.use("a"))
            other = asyncio.create_task(visit(residents, "b"))
            await asyncio.sleep(0.02)
            other.cancel()
            await asyncio.sleep(0.02)
            await visit(residents, "a")
        assert shelf.log == ["+a"] and residents.n_requests == 0
        await visit(residents, "c")
        assert shelf.log == ["+a", "-a", "+c"]

    asyncio.run(run())


def test_a_model_whose_process_ended_is_loaded_again() -> None:
    async def run() -> None:
        shelf = Shelf()
        residents = house(shelf)
        async with residents.use("a") as held:
            assert isinstance(held.model, FakeModel)
            held.model.alive = False
        await visit(residents, "a")
        assert shelf.log == ["+a", "+a"]

    asyncio.run(run())


def test_all_who_wait_for_a_load_share_its_failure_and_the_next_tries_again() -> None:
    async def run() -> None:
        shelf = Shelf(failure=Lost("it died"))
        residents = house(shelf)
        found = await asyncio.gather(*(visit(residents, "a") for _ in range(9)), return_exceptions=True)
        assert all(isinstance(error, Lost) for error in found) and shelf.log == ["+a"]
        shelf.failure = None
        await visit(residents, "a")
        assert shelf.log == ["+a", "+a"]

    asyncio.run(run())


def test_who_comes_while_a_model_is_freed_does_not_inherit_its_haste() -> None:
    async def run() -> None:
        shelf = Shelf()
        residents = house(shelf)
        await visit(residents, "a")
        await residents.free("a")
        while not residents._seats["a"].lock.locked():
            await asyncio.sleep(0)
        await visit(residents, "a")
        await asyncio.sleep(0.02)
        assert shelf.log == ["+a", "-a", "+a"]

    asyncio.run(run())


def test_a_full_house_refuses() -> None:
    async def run() -> None:
        residents = house(Shelf(), max_requests=3)
        async with AsyncExitStack() as using:
            for _ in range(3):
                await using.enter_async_context(residents.use("a"))
            with pytest.raises(Busy, match="3 requests"):
                await visit(residents, "a")
        await visit(residents, "a")

    asyncio.run(run())
