"""The process of one loaded model: `python -m kvasir.runner.process FD PARENT NAME`, started by
`kvasir.runner.spawn`.

The main thread reads frames, a few threads turn requests into tokens, the engine's thread steps, and one
thread writes: what has happened since it last wrote goes out as one frame, and once a second a frame goes out
even if nothing has.  The process ends when the server says so, or is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

from kvasir import faults
from kvasir.chat import ChatRequest, Delta, Event, Finished
from kvasir.errors import KvasirError
from kvasir.runner import messages
from kvasir.runner.messages import Accepted, Answer, Batch, Failed, Frame, Load, Progress, Ready, failure
from kvasir.runner.model import Model
from kvasir.runner.pulse import Pulse
from kvasir.runner.stream import Stream
from kvasir.settings import read_settings

BEAT_S = 1.0
PACE_S = 0.004  # between two frames: steps of a small model are shorter, and each frame wakes two threads
TOKENIZERS = 8  # threads; one long prompt, or a large schema, does not hold up the others
PR_SET_PDEATHSIG = 1
BROKEN = 70  # the exit status then: EX_SOFTWARE of sysexits.h
OOM_SCORE = "300"  # when memory runs out, rather this process than the server


class Outbox:
    """What goes to the server, written by a thread of its own.  Mutable and thread-safe.  Never blocks those
    who put.
    """

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self._changed = threading.Condition()
        self._frames: list[bytes] = []
        self._batch = Batch(Pulse())
        self._fresh = self._closing = False
        self.pulse: Callable[[], Pulse] = Pulse
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """Raises UsageError for a frame over the limit."""
        body = messages.encode(frame)
        with self._changed:
            self._frames.append(body)
            self._changed.notify()

    def accepted(self, accepted: Accepted) -> None:
        with self._changed:
            self._batch.accepted.append(accepted)
            self._wake()

    def begun(self, id: int, n_cached: int) -> None:
        with self._changed:
            self._batch.begun.append((id, n_cached))

    def event(self, id: int, event: Event | KvasirError, pieces: dict[int, bytes]) -> None:
        with self._changed:
            if isinstance(event, Delta):
                self._batch.deltas.append((id, event))
            elif isinstance(event, Finished):
                self._batch.ends.append((id, event))
            else:
                self._batch.failures.append((id, failure(event)))
            self._batch.pieces.update(pieces)
            self._wake()

    def close(self, wait_s: float = 5.0) -> None:
        """Writes what there is and ends."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)

    def _wake(self) -> None:
        if not self._fresh:
            self._fresh = True
            self._changed.notify()

    def _run(self) -> None:
        closing, sent_at = False, 0.0
        while not closing:
            with self._changed:
                if not (self._frames or self._fresh or self._closing):
                    self._changed.wait(BEAT_S)
            if (early_s := sent_at + PACE_S - monotonic()) > 0:
                sleep(early_s)
            with self._changed:
                frames, self._frames = self._frames, []
                batch, self._batch = self._batch, Batch(Pulse())
                self._fresh, closing = False, self._closing
            batch.pulse = self.pulse()
            faults.reach("runner.send")
            sent_at = monotonic()
            data = b"".join((*frames, messages.encode(batch)))
            try:
                self._channel.sendall(data)
            except OSError:
                os._exit(0)  # the server is gone


class Runner:
    """Answers the server's frames with one model.  Mutable: knows the streams under way."""

    def __init__(self, model: Model, outbox: Outbox):
        self._model, self._outbox = model, outbox
        self._streams: dict[int, Stream] = {}
        self._waiting: set[int] = set()  # requests without a stream yet; a cancelled one is taken out
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(TOKENIZERS, "tokens")

    def take(self, frame: messages.ToRunner) -> None:
        """Does what a frame asks; returns at once."""
        if isinstance(frame, messages.Submit):
            with self._lock:
                self._waiting.add(frame.id)
            self._pool.submit(self._submit, frame.id, frame.request)
        elif isinstance(frame, messages.Cancel):
            with self._lock:
                stream = self._streams.get(frame.id)
                self._waiting.discard(frame.id)
            if stream:
                stream.cancel()
        elif isinstance(frame, messages.Embed):
            self._pool.submit(self._embed, frame)
        elif isinstance(frame, messages.Tokenize):
            self._pool.submit(self._tokenize, frame)
        elif isinstance(frame, messages.Spell):
            self._pool.submit(self._spell, frame)
        elif isinstance(frame, messages.Adapt):
            self._pool.submit(self._adapt, frame)
        elif isinstance(frame, messages.Check):
            self._pool.submit(self._check, frame.id)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._model.close()

    def _submit(self, id: int, request: ChatRequest) -> None:
        try:
            if id not in self._waiting:
                for index in range(request.params.n):
                    self._outbox.event(id, Finished("abort", index=index), {})
                return
            faults.reach("runner.tokens")
            stream = self._model.submit(request)
        except BaseException as error:
            with self._lock:
                self._waiting.discard(id)
            known = error if isinstance(error, KvasirError) else messages.error_of(failure(error))
            self._outbox.event(id, known, {})
            return
        self._outbox.accepted(Accepted(id, stream.prompt_token_ids, stream.n_truncated))
        with self._lock:
            self._streams[id] = stream
            cancelled = id not in self._waiting
            self._waiting.discard(id)
        left, begun = request.params.n, False

        def take(event: Event | KvasirError) -> None:
            nonlocal left, begun
            if stream.n_cached and not begun:
                begun = True
                self._outbox.begun(id, stream.n_cached)
            left -= isinstance(event, Finished)
            if not left or isinstance(event, KvasirError):
                with self._lock:
                    self._streams.pop(id, None)
            pieces = self._pieces(event)
            if isinstance(event, Finished):
                event = messages.without_prompt(event)
            self._outbox.event(id, event, pieces)

        stream.forward(take)
        if cancelled:
            stream.cancel()

    def _pieces(self, event: Event | KvasirError) -> dict[int, bytes]:
        """The spellings of the tokens that the event's log-probabilities name, and of a prompt's first."""
        if isinstance(event, KvasirError):
            return {}
        named = event.logprobs if isinstance(event, Delta) else event.prompt_logprobs
        ids = {t for p in named if p for t in (p.token_id, *(i for i, _ in p.top))}
        if isinstance(event, Finished) and named:
            ids |= set(event.prompt_token_ids[:1])
        return {i: self._model.token_bytes(i) for i in ids}

    def _embed(self, frame: messages.Embed) -> None:
        try:
            found = self._model.embeddings(frame.inputs, frame.truncate)
            packed = [(array("f", e.values).tobytes(), e.n_tokens, e.n_truncated) for e in found]
            self._outbox.put(Answer(frame.id, embeddings=packed))
        except BaseException as error:
            self._outbox.put(Answer(frame.id, failure(error)))

    def _tokenize(self, frame: messages.Tokenize) -> None:
        try:
            self._outbox.put(Answer(frame.id, tokens=self._model.tokenize(frame.request)))
        except BaseException as error:
            self._outbox.put(Answer(frame.id, failure(error)))

    def _spell(self, frame: messages.Spell) -> None:
        try:
            spelled = self._model.spell(frame.token_ids)
            self._outbox.put(Answer(frame.id, text=spelled.text, pieces=list(spelled.pieces)))
        except BaseException as error:
            self._outbox.put(Answer(frame.id, failure(error)))

    def _adapt(self, frame: messages.Adapt) -> None:
        try:
            if frame.path:
                self._model.load_adapter(frame.name, frame.path)
            else:
                self._model.unload_adapter(frame.name)
            self._outbox.put(Answer(frame.id, adapters=dict(self._model.adapters)))
        except BaseException as error:
            self._outbox.put(Answer(frame.id, failure(error)))

    def _check(self, id: int) -> None:
        try:
            self._model.check()
            self._outbox.put(Answer(id))
        except BaseException as error:
            self._outbox.put(Answer(id, failure(error)))


def load(frame: Load, outbox: Outbox) -> Model | None:
    """The model that the first frame asks for; None when that failed, and the server has been told."""
    try:
        faults.arm(read_settings().faults, frame.name, frame.nth)
        faults.reach("runner.load")
        model = Model.load(
            frame.name,
            backend=frame.backend,
            threads=frame.threads,
            context=frame.context,
            n_blocks=frame.n_blocks,
            kv_format=frame.kv_format,
            draft=frame.draft,
            adapters=frame.adapters,
            max_sequences=frame.max_sequences,
            progress=lambda stage: outbox.put(Progress(stage)),
        )
    except BaseException as error:
        outbox.put(Failed(failure(error)))
        return None
    outbox.pulse = lambda: model.pulse
    told = sorted(model.referenced), dict(model.adapters)
    outbox.put(Ready(model.info, model.has_template, model.load_s, *told))
    return model


def serve(channel: socket.socket) -> None:
    """Loads what the first frame says and answers the others, until Close or the end of the server."""
    outbox, runner = Outbox(channel), None
    for body in messages.received(channel):
        frame = messages.to_runner(body)
        if isinstance(frame, Load):
            model = load(frame, outbox)
            if model is None:
                break
            runner = Runner(model, outbox)
        elif isinstance(frame, messages.Close):
            break
        elif runner:
            runner.take(frame)
    else:
        os._exit(0)  # the server is gone, and nobody reads the rest
    if runner:
        runner.close()
    outbox.close()


def depend_on(parent: int) -> None:
    """Ends this process with the thread that started it, even if it stands still then.  Linux only; elsewhere
    the end of the channel is the sign.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)
    if os.getppid() != parent:
        os._exit(0)  # it ended before we could ask


def give_up(what: threading.ExceptHookArgs) -> None:
    """A thread has ended that should not: without it the process would live on and answer nobody."""
    threading.__excepthook__(what)
    sys.stderr.flush()
    os._exit(BROKEN)


def main() -> None:
    """The process, from its arguments to its end."""
    depend_on(int(sys.argv[2]))
    faulthandler.enable()
    threading.excepthook = give_up
    # The server says when to end: Ctrl-C and SIGTERM to the whole group must not cut off answers under way.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and threads may be in the middle of something


if __name__ == "__main__":
    main()
