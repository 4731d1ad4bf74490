"""Several answers as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from kvasir.api.loaded import Answer
from kvasir.chat import Event


class Merged:
    """The events of several answers as they come, indexes counted through: those of answer `i` begin at
    `i * n_each`.  An error of one ends them all.
    """

    def __init__(self, answers: Sequence[Answer], n_each: int):
        self._answers, self._n_each = tuple(answers), n_each

    @property
    def n_truncated(self) -> int:
        return sum(answer.n_truncated for answer in self._answers)

    @property
    def n_cached(self) -> int:
        return sum(answer.n_cached for answer in self._answers)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """Of all of them, one after another."""
        return tuple(token for answer in self._answers for token in answer.prompt_token_ids)

    def cancel(self) -> None:
        for answer in self._answers:
            answer.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event | Exception | None] = (
            asyncio.Queue()
        )  # None: an answer has come to its end
        readers = [asyncio.ensure_future(self._read(i, queue)) for i in range(len(self._answers))]
        try:
            left = len(readers)
            while left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(self, i: int, queue: asyncio.Queue[Event | Exception | None]) -> None:
        try:
            async for event in self._answers[i]:
                queue.put_nowait(replace(event, index=event.index + i * self._n_each))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)
