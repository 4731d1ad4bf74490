"""A model in a process of its own, with the face of `runner.model.Model`."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from time import monotonic

from kvasir.chat import ChatRequest, Embedding, Spelled
from kvasir.errors import CapacityError, KvasirError, Lost, UsageError
from kvasir.runner import messages
from kvasir.runner.adapters import AdapterInfo
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.memory import MAX_SEQUENCES
from kvasir.runner.messages import Answer, Batch, Failed, Frame, Frames, Load, Progress, Ready, error_of
from kvasir.runner.pulse import Pulse, Watch, outside
from kvasir.runner.spawn import Started
from kvasir.runner.stream import Ring, Stream

log = logging.getLogger("kvasir")

NO_ADAPTERS: Mapping[str, str] = {}
LOOK_S = 1.0  # between two looks at a process that says nothing
CLOSE_S = 5.0  # a process that was told to end is killed after
LAST_LINES = 20  # of its standard error, kept for the reason of its end
WHY = {
    signal.SIGKILL: "often for want of memory",
    signal.SIGSEGV: "a bug in native code",
    signal.SIGBUS: "its file was cut short or cannot be read",
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGABRT: "a bug in native code",
}


class Inbox:
    """What goes to the process, written by a thread of its own: a process that does not read blocks nobody.
    Mutable and thread-safe.
    """

    def __init__(self, channel: socket.socket):
        self._channel, self._changed = channel, threading.Condition()
        self._frames: deque[bytes] = deque()
        self._closed = False
        threading.Thread(target=self._run, name="to runner", daemon=True).start()

    def put(self, frame: bytes) -> None:
        with self._changed:
            self._frames.append(frame)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._frames and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                frame = b"".join(self._frames)
                self._frames.clear()
            try:
                self._channel.sendall(frame)
            except OSError:
                return  # the thread that reads sees the end too, and tells everyone


class _Asked:
    """A stream under way, and how many of its answers are.  Mutable; guarded by the model's lock."""

    def __init__(self, stream: Stream, n_answers: int):
        self.stream, self.n_left = stream, n_answers


class ModelProcess:
    """A loaded model behind a pipe.  Thread-safe.  One thread reads what the process says and sees it end."""

    info: ModelInfo
    has_template: bool
    load_s: float
    referenced: frozenset[str]
    adapters: Mapping[str, AdapterInfo]

    def __init__(self, wishes: Load, progress: Callable[[str], None], started: Started):
        self.name, self._wishes, self._progress = wishes.name, wishes, progress
        self.pulse = Pulse()
        self._lock, self._loaded = threading.Lock(), threading.Event()
        self._asked: dict[int, _Asked] = {}
        self._calls: dict[int, Future[Answer]] = {}
        self._pieces: dict[int, bytes] = {}
        self._n_ids, self._closing = 0, False
        self._error: KvasirError | None = None  # why it takes no more requests
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._started, self._channel = started, started.channel
        self._inbox = Inbox(self._channel)
        self._inbox.put(messages.encode(wishes))
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"runner {self.name}", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        backend: str = "",
        threads: int | None = None,
        context: int | None = None,
        n_blocks: int | None = None,
        kv_format: str | None = None,
        draft: str | None = None,
        adapters: Mapping[str, str] = NO_ADAPTERS,
        max_sequences: int = MAX_SEQUENCES,
        nth: int = 1,
        progress: Callable[[str], None] = lambda stage: None,
        spare: Started | None = None,
    ) -> ModelProcess:
        """Starts a process that loads the model called `name`, and waits until it has.

        `spare` is a process to take for it, if it is still there and nobody has taken it before.
        Raises what `Model.load` raises, and Lost when the process ended meanwhile; none is left then.
        """
        wishes = Load(
            name, backend, threads, context, n_blocks, kv_format, draft, nth, dict(adapters), max_sequences
        )
        started = spare if spare and spare.take() else Started(name)
        model = cls(wishes, progress, started)
        try:
            while not model._loaded.wait(0.2):  # bounded, so that Ctrl-C is heard
                pass
        except BaseException:
            model.kill()
            raise
        if model._error:
            model._thread.join(CLOSE_S)
            raise model._error
        return model

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._error is None and not self._closing

    @property
    def is_embedding(self) -> bool:
        return "embedding" in self.info.capabilities

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def own_bytes(self) -> int:
        """Memory that would be free without it; 0 where the system does not tell."""
        return outside(self.pid).own_bytes if self.pid else 0

    def token_bytes(self, token_id: int) -> bytes:
        """How a token is spelled that a log-probability has named."""
        return self._pieces.get(token_id, b"")

    def submit(self, request: ChatRequest) -> Stream:
        """Queues a request, at once; what `Model.submit` raises, the stream raises.

        Raises Lost or CapacityError when the process has ended.
        """
        with self._lock:
            self._must_live()
            id = self._next_id()
        frame = messages.encode(messages.Submit(id, request))
        stream = Stream(request.params.n, (), lambda _: self._cancel(id))
        with self._lock:
            self._must_live()
            self._asked[id] = _Asked(stream, request.params.n)
            self._inbox.put(frame)
        return stream

    def embed(self, texts: list[str]) -> list[list[float]]:
        """One embedding [D] a text.  Raises what `Model.embed` raises, and Lost."""
        return [each.values for each in self.embeddings(texts)]

    def embeddings(self, inputs: Sequence[str | Sequence[int]], truncate: bool = False) -> list[Embedding]:
        """One embedding an input.  Raises what `Model.embeddings` raises, and Lost."""
        sent = [each if isinstance(each, str) else list(each) for each in inputs]
        found = self._call(lambda id: messages.Embed(id, sent, truncate)).embeddings
        return [Embedding(array("f", raw).tolist(), n, n_truncated) for raw, n, n_truncated in found]

    def tokenize(self, request: ChatRequest) -> list[int]:
        """The token ids of the request's whole prompt.  Raises what `Model.tokenize` raises, and Lost."""
        return self._call(lambda id: messages.Tokenize(id, request)).tokens

    def spell(self, token_ids: Sequence[int]) -> Spelled:
        """Token ids as text.  Raises what `Model.spell` raises, and Lost."""
        answer = self._call(lambda id: messages.Spell(id, list(token_ids)))
        return Spelled(answer.text, tuple(answer.pieces))

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Requests may choose this adapter by `name` from now on.  Raises what `Model.load_adapter` raises,
        and Lost.
        """
        if not path:
            raise UsageError("the adapter's path is empty")
        self.adapters = self._call(lambda id: messages.Adapt(id, name, path)).adapters
        return self.adapters[name]

    def unload_adapter(self, name: str) -> None:
        """No request may choose it any more.  Raises what `Model.unload_adapter` raises, and Lost."""
        self.adapters = self._call(lambda id: messages.Adapt(id, name, "")).adapters

    def check(self) -> None:
        """Raises Bug unless every cache block is accounted for.  Only while idle."""
        self._call(messages.Check)

    def close(self) -> None:
        """Ends every answer under way and the process.  Any number of times, and from any thread."""
        with self._lock:
            if self.alive:
                self._closing = True
                self._inbox.put(messages.encode(messages.Close()))
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)
            self.kill()
            self._thread.join(CLOSE_S)

    def kill(self) -> None:
        """Ends the process at once."""
        with self._lock:
            self._closing = True
        process = self._process
        if process and process.poll() is None:
            process.kill()

    # -- what callers' threads do -----------------------------------------------------------------

    def _next_id(self) -> int:
        self._n_ids += 1
        return self._n_ids

    def _must_live(self) -> None:
        if self._error:
            raise self._error
        if self._closing:
            raise CapacityError(f"{self.name} is being unloaded", hint="try again")

    def _cancel(self, id: int) -> None:
        with self._lock:
            if id in self._asked:
                self._inbox.put(messages.encode(messages.Cancel(id)))

    def _call(self, frame: Callable[[int], Frame]) -> Answer:
        future: Future[Answer] = Future()
        with self._lock:
            self._must_live()
            id = self._next_id()
            sent = messages.encode(frame(id))
            self._calls[id] = future
            self._inbox.put(sent)
        answer = future.result()
        if answer.failure:
            raise error_of(answer.failure)
        return answer

    # -- the thread of the process ----------------------------------------------------------------

    def _run(self) -> None:
        why = ""
        try:
            self._process = self._started.running()
            why = self._read(self._process)
        except OSError as error:
            why = f"it cannot be started: {error}"
        except Exception as error:
            log.exception("%s: reading from its process failed", self.name)
            why = f"it sent what it should not: {error}"
        finally:
            self._end(why)

    def _read(self, process: subprocess.Popen[bytes]) -> str:
        """Takes frames until the process ends, by itself or because it is stuck; why, if it is."""
        watch, frames, looked_at = Watch(), Frames(), monotonic()
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        with selectors.DefaultSelector() as ready:
            ready.register(self._channel, selectors.EVENT_READ)
            ready.register(process.stdout, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select(LOOK_S):
                    if key.fileobj is process.stdout:
                        if not self._say(process):
                            ready.unregister(process.stdout)
                        continue
                    try:
                        data = self._channel.recv(1 << 18)
                    except ConnectionError:
                        data = b""
                    if not data:
                        return ""
                    watch.heard()
                    for body in frames.feed(data):
                        self._take(messages.from_runner(body), watch)
                if (now := monotonic()) - looked_at >= LOOK_S:
                    why = watch.looked(now - looked_at, outside(process.pid))
                    looked_at = now
                    if why:
                        return why

    def _take(self, frame: messages.FromRunner, watch: Watch) -> None:
        if isinstance(frame, Batch):
            watch.heard(frame.pulse)
            self.pulse = frame.pulse
            self._spread(frame)
        elif isinstance(frame, Progress):
            self._progress(frame.stage)
        elif isinstance(frame, Ready):
            self.info, self.has_template, self.load_s = frame.info, frame.has_template, frame.load_s
            self.referenced, self.adapters = frozenset(frame.referenced), frame.adapters
            self._loaded.set()
        elif isinstance(frame, Failed):
            self._error = error_of(frame.failure)
        else:
            with self._lock:
                call = self._calls.pop(frame.id, None)
            if call:
                call.set_result(frame)

    def _spread(self, batch: Batch) -> None:
        """Hands a batch to the streams that it is for; what is for none was cancelled."""
        self._pieces.update(batch.pieces)
        rings: set[Ring | None] = set()  # once for all that wait in one loop
        with self._lock:
            for accepted in batch.accepted:
                if asked := self._asked.get(accepted.id):
                    asked.stream.prompt_token_ids = accepted.prompt_token_ids
                    asked.stream.n_truncated = accepted.n_truncated
            for id, n_cached in batch.begun:
                if asked := self._asked.get(id):
                    asked.stream.n_cached = n_cached
            for id, delta in batch.deltas:
                if asked := self._asked.get(id):
                    rings.add(asked.stream.add(delta))
            for id, end in batch.ends:
                if asked := self._asked.get(id):
                    rings.add(asked.stream.add(replace(end, prompt_token_ids=asked.stream.prompt_token_ids)))
                    asked.n_left -= 1
                    if not asked.n_left:
                        del self._asked[id]
            for id, failed in batch.failures:
                if asked := self._asked.pop(id, None):
                    rings.add(asked.stream.add(error_of(failed)))
        for ring in filter(None, rings):
            with contextlib.suppress(RuntimeError):  # that loop is closed
                ring()

    def _say(self, process: subprocess.Popen[bytes]) -> bool:
        """Passes on what the process wrote, a line at a time; False at its end."""
        assert process.stdout
        data = process.stdout.read()
        if data is None:
            return True
        for line in data.decode("utf-8", "replace").splitlines():
            if line.strip():
                self._last_lines.append(line)
                print(f"{self.name}: {line}", file=sys.stderr, flush=True)
        return bool(data)

    def _end(self, stuck: str) -> None:
        """Sees to it that no process is left, and tells everyone who waits why."""
        ended = stuck or self._reaped()
        if stuck:
            self.kill_process()
        with self._lock:
            closing, loaded = self._closing, self._loaded.is_set()
            if self._error is None:
                self._error = self._reason(ended, closing, loaded)
            asked, self._asked = list(self._asked.values()), {}
            calls, self._calls = list(self._calls.values()), {}
        if not closing and isinstance(self._error, Lost):
            log.error("%s", self._error.message)
        for one in asked:
            one.stream.put(self._error)
        for call in calls:
            call.set_exception(self._error)
        self._loaded.set()
        self._inbox.close()
        self._channel.close()
        self._started.over()

    def _reaped(self) -> str:
        """How the process ended."""
        if self._process is None:
            return "it did not start"
        try:
            status = self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill_process()
            return "it stopped listening"
        with contextlib.suppress(OSError, ValueError):
            self._say(self._process)
        return how(status)

    def kill_process(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _reason(self, ended: str, closing: bool, loaded: bool) -> KvasirError:
        if closing:
            return CapacityError(f"{self.name} was unloaded", hint="try again")
        when = "" if loaded else " while it was loading"
        last = f"; its last words: {self._last_lines[-1][:200]}" if self._last_lines and not loaded else ""
        return Lost(
            f"the process of {self.name} ended{when}: {ended}{last}",
            hint="ask again" if loaded else "the log has more",
        )


def how(status: int) -> str:
    """A process's exit status in words."""
    if status >= 0:
        return f"it left with status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"killed by signal {-status}"
    why = WHY.get(number)
    return f"killed by signal {-status} ({number.name}{', ' + why if why else ''})"
