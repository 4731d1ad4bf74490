"""The answer to a request as it comes: an iterator for threads and for asyncio alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from kvasir.chat import Event, Finished
from kvasir.errors import KvasirError


class Stream:
    """Events of one request, in order, for one consumer.  Mutable: the engine's thread puts, it takes.

    Iterating raises the KvasirError that ended the request, if one did.  `cancel()` may be called from
    anywhere, any number of times; the stream then ends with `Finished("abort")` for the answers not yet done.
    """

    def __init__(
        self,
        n_answers: int,
        prompt_token_ids: tuple[int, ...],
        cancel: Callable[[Stream], None],
        n_truncated: int = 0,
    ):
        self.prompt_token_ids, self.n_truncated = prompt_token_ids, n_truncated
        self._open = n_answers
        self._cancel = cancel
        self._events: deque[Event | KvasirError] = deque()
        self._forward: Callable[[Event | KvasirError], None] | None = None
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._told = False  # the waiter has been woken and has not slept since

    def cancel(self) -> None:
        """Asks the engine to drop the request and free its cache blocks before its next step."""
        self._cancel(self)

    def put(self, event: Event | KvasirError) -> None:
        """The next event, or the error that ends them all.  Never raises: the engine's thread must live."""
        with self._changed:
            if self._forward:
                self._forward(event)
                return
            self._events.append(event)
            self._changed.notify()
            if self._waiter and not self._told:
                loop, flag = self._waiter
                self._told = True
                with suppress(RuntimeError):  # the consumer's loop is closed: nobody reads this any more
                    loop.call_soon_threadsafe(flag.set)

    def forward(self, take: Callable[[Event | KvasirError], None]) -> None:
        """Calls `take` with what has come and with all that will, on the thread that puts it.  It must not
        block.  Nobody iterates then.
        """
        with self._changed:
            for event in self._events:
                take(event)
            self._events.clear()
            self._forward = take

    def __iter__(self) -> Iterator[Event]:
        while self._open:
            with self._changed:
                # A bounded wait, so that Ctrl-C reaches a program that sits here on every platform.
                while not self._events:
                    self._changed.wait(0.2)
                event = self._events.popleft()
            yield self._take(event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        flag = asyncio.Event()
        with self._changed:
            self._waiter = (asyncio.get_running_loop(), flag)
        while self._open:
            with self._changed:
                event = self._events.popleft() if self._events else None
                if event is None:
                    flag.clear()
                    self._told = False
            if event is None:
                await flag.wait()
            else:
                yield self._take(event)

    def _take(self, event: Event | KvasirError) -> Event:
        if isinstance(event, KvasirError):
            self._open = 0
            raise event
        if isinstance(event, Finished):
            self._open -= 1
        return event
