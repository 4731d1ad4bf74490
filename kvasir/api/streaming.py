"""The answer to one request over HTTP, from loading the model to the last byte."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvasir.api.errors import public
from kvasir.api.face import Asked, Reply
from kvasir.api.guest import Guest, Visit
from kvasir.api.http import until_gone
from kvasir.api.loaded import Answer
from kvasir.api.merge import Merged
from kvasir.api.names import Target
from kvasir.api.residents import Held, InThread, Residents
from kvasir.chat import Event, Finished
from kvasir.errors import Bug, Busy, KvasirError

SSE = "text/event-stream"


class Streaming(Response):
    """Loads the model, hands it the requests, sends the answer; a client that leaves cancels all of it."""

    def __init__(
        self,
        residents: Residents,
        in_thread: InThread,
        asked: Asked,
        target: Target,
        headers: Mapping[str, str],
        visit: Visit,
    ):
        super().__init__(media_type=asked.media_type, headers=headers)
        del self.headers["content-length"]
        if asked.media_type == SSE:  # whoever is between must pass on each event as it comes
            self.headers["cache-control"] = "no-cache"
            self.headers["x-accel-buffering"] = "no"
        self._residents, self._in_thread = residents, in_thread
        self._asked, self._target, self._visit = asked, target, visit
        self._truncates = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Nobody between here and the connection looks at more than an answer's beginning.
        self._straight = scope.get("state", {}).get("straight") or send
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
        async with self._residents.use(self._target, self._asked.keep_alive_s) as held:
            answer, reply, self._truncates = await self._submitted(held)
            self._residents.answers.add(answer)
            try:
                await (self._stream if self._asked.stream else self._whole)(reply, answer, send)
            finally:
                self._residents.answers.discard(answer)
                answer.cancel()

    async def _submitted(self, held: Held) -> tuple[Answer, Reply, bool]:
        """What `submit` gives.  Checking the requests takes time (a template is rendered, a schema
        compiled); if the client leaves meanwhile, what comes of it is cancelled.
        """
        guest = Held(Guest(held.model, self._visit), held.load_s)
        checking = asyncio.ensure_future(self._in_thread(lambda: submit(self._asked, guest)))
        try:
            return await asyncio.shield(checking)
        except asyncio.CancelledError:
            checking.add_done_callback(forget)
            raise

    async def _stream(self, reply: Reply, answer: Answer, send: Send) -> None:
        """What each event adds.  An error before the first has a status; a later one is told there."""
        started = False

        async def put(data: bytes) -> None:
            nonlocal started
            if data and not started:
                started = True
                data = reply.begin(len(answer.prompt_token_ids), answer.n_cached) + data
                await self._start(send, answer)
            if data:
                await self._straight({"type": "http.response.body", "body": data, "more_body": True})

        try:
            async for event in answer:
                await put(reply.line(complete(event)))
            await put(reply.end())
        except Exception as error:
            if not started:
                raise
            await put(reply.broken(told(error)))
        if not started:
            await self._start(send, answer)
        await send({"type": "http.response.body", "body": b""})

    async def _whole(self, reply: Reply, answer: Answer, send: Send) -> None:
        async for event in answer:
            reply.take(complete(event))
        body = reply.whole()
        self.headers["content-length"] = str(len(body))
        await self._start(send, answer)
        await send({"type": "http.response.body", "body": body})

    async def _start(self, send: Send, answer: Answer) -> None:
        if self._truncates:
            self.headers["x-kvasir-truncated"] = str(answer.n_truncated)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})


def submit(asked: Asked, held: Held) -> tuple[Answer, Reply, bool]:
    """Hands the requests to the model, all or none: their answer, what writes it, and whether a prompt may be
    cut for it.

    Raises UsageError and CapacityError.  Takes time, so: in a thread.
    """
    requests, reply = asked.requests(held.model), asked.reply(held.model, held.load_s)
    answers: list[Answer] = []
    try:
        for request in requests:
            answers.append(held.model.submit(request))
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    answer = answers[0] if len(answers) == 1 else Merged(answers, requests[0].params.n if requests else 1)
    return answer, reply, any(request.truncate for request in requests)


def complete(event: Event) -> Event:
    """The event, unless it ends an answer that somebody cut off.  Raises Busy then."""
    if isinstance(event, Finished) and event.reason == "abort":
        raise Busy(
            "the answer was cut off: the model was unloaded or the server is stopping", hint="ask again"
        )
    return event


def forget(checked: asyncio.Future[tuple[Answer, Reply, bool]]) -> None:
    """Cancels an answer that nobody waits for any more, if it came to one."""
    if not checked.cancelled() and checked.exception() is None:
        checked.result()[0].cancel()


def told(error: Exception) -> KvasirError:
    """`error` with words that a client may read."""
    return type(error)(public(error)) if isinstance(error, KvasirError) else Bug(public(error))
