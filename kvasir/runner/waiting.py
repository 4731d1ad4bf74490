"""The events of a stream for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from kvasir.chat import Event
from kvasir.runner.stream import Stream


async def arriving(stream: Stream) -> AsyncIterator[Event]:
    """The events as they come.  Raises the KvasirError that ended the request."""
    flag, loop = asyncio.Event(), asyncio.get_running_loop()
    stream.wake(lambda: loop.call_soon_threadsafe(flag.set))
    while stream.is_open:
        event = stream.poll(flag.clear)
        if event is None:
            await flag.wait()
        else:
            yield event
