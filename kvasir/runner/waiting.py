"""The events of a stream for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary, ref

from kvasir.chat import Event
from kvasir.runner.stream import Ring, Stream


class Bell:
    """Wakes those of one event loop who were marked since it last rang: a step's pieces wake it once.

    Mutable; marked and rung from any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = ref(loop)  # which keeps its bell, not the other way round
        self._marked: deque[asyncio.Event] = deque()

    def mark(self, flag: asyncio.Event) -> Ring:
        """`flag` is set with the next ring."""
        self._marked.append(flag)
        return self.ring

    def ring(self) -> None:
        """Raises RuntimeError when the loop is closed."""
        loop = self._loop()
        if loop and self._marked:
            loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        while self._marked:
            self._marked.popleft().set()


_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = WeakKeyDictionary()


async def arriving(stream: Stream) -> AsyncIterator[Event]:
    """The events as they come.  Raises the KvasirError that ended the request."""
    flag, loop = asyncio.Event(), asyncio.get_running_loop()
    bell = _bells.get(loop) or _bells.setdefault(loop, Bell(loop))
    stream.wake(lambda: bell.mark(flag))
    while stream.is_open:
        event = stream.poll(flag.clear)
        if event is None:
            await flag.wait()
        else:
            yield event
