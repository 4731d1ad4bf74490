"""The answer to a request as it comes: an iterator for threads and for asyncio alike."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from kvasir.chat import Event, Finished
from kvasir.errors import KvasirError
from kvasir.runner import arriving

Ring = Callable[[], object]  # wakes all who have been marked


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
        self.n_cached = 0  # of the prompt: found in the prefix cache; known with the first event
        self._open = n_answers
        self._cancel = cancel
        self._events: deque[Event | KvasirError] = deque()
        self._forward: Callable[[Event | KvasirError], None] | None = None
        self._changed = threading.Condition()
        self._wake: Callable[[], Ring] | None = None
        self._told = False  # who waits has been woken and has not slept since

    def cancel(self) -> None:
        """Asks the engine to drop the request and free its cache blocks before its next step."""
        self._cancel(self)

    def put(self, event: Event | KvasirError) -> None:
        """The next event, or the error that ends them all.  Never raises: the engine's thread must live."""
        if ring := self.add(event):
            with suppress(RuntimeError):  # the consumer's loop is closed: nobody reads this any more
                ring()

    def add(self, event: Event | KvasirError) -> Ring | None:
        """`put`, but for waking who waits: for that call what it gives, once for all that give the same."""
        with self._changed:
            if self._forward:
                self._forward(event)
                return None
            self._events.append(event)
            self._changed.notify()
            if not self._wake or self._told:
                return None
            self._told = True
            return self._wake()

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

    def __aiter__(self) -> AsyncIterator[Event]:
        return arriving(self)

    @property
    def is_open(self) -> bool:
        """Whether there is more to come."""
        return self._open > 0

    def wake(self, how: Callable[[], Ring]) -> None:
        """Calls `how` when something has come after `poll` found nothing, on the thread that puts it, and
        what it gives thereafter.
        """
        with self._changed:
            self._wake = how

    def poll(self, sleeping: Callable[[], None]) -> Event | None:
        """The next event if it has come.  If not, calls `sleeping` before the next call of what `wake` gave.

        Raises the KvasirError that ended the request.
        """
        if not self._events:
            with self._changed:
                if not self._events:
                    sleeping()
                    self._told = False
                    return None
        return self._take(self._events.popleft())  # one consumer: what is there stays there

    def _take(self, event: Event | KvasirError) -> Event:
        if isinstance(event, KvasirError):
            self._open = 0
            raise event
        if isinstance(event, Finished):
            self._open -= 1
        return event
