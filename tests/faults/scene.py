"""A server with real processes behind it, in this process, and clients that keep what they saw and when."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.models import SHAPES, write
from kvasir.runner.client import ModelProcess
from kvasir.runner.registry import Models
from tests.wire.test_server import serving

LONG = "t " * 600  # a prompt of 1,200 tokens
N_STREAMS = 16


def write_models(folder: Path) -> None:
    """Two models of random weights that never stop by themselves: `one` and `two`."""
    for name, ffn in (("one", 512), ("two", 256)):
        write(folder / f"{name}.gguf", name, replace(SHAPES["tiny"], ffn=ffn, context=32768), "Q4_0")


@dataclass
class Client:
    """One request: what came, and when it began to come and ended.  Mutable; filled by its thread."""

    model: str
    prompt: str
    n_tokens: int
    stream: bool = True
    pin: bool = False
    form: object = None
    status: int = 0
    pieces: list[str] = field(default_factory=list)
    error: str = ""
    done: bool = False
    sent_at: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    thread: threading.Thread | None = None
    connection: http.client.HTTPConnection | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_open(self) -> bool:
        assert self.thread
        return self.thread.is_alive()

    def leave(self) -> None:
        """Closes the connection, and waits until the client has seen it."""
        with suppress(OSError):
            if self.connection and self.connection.sock:
                self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.wait()

    def wait(self, wait_s: float = 60.0) -> Client:
        assert self.thread
        self.thread.join(wait_s)
        assert not self.thread.is_alive(), "a client waits for ever"
        return self


@dataclass
class Scene:
    """The server's address and its models."""

    url: str
    models: Models[ModelProcess]
    connections: set[http.client.HTTPConnection] = field(default_factory=set)

    def ask(
        self, model: str, prompt: str = "a", n_tokens: int = 8, stream: bool = True, pin: bool = False,
        form: object = None,
    ) -> Client:  # fmt: skip
        """Sends a request from a thread of its own."""
        client = Client(model, prompt, n_tokens, stream, pin, form)
        client.thread = threading.Thread(target=self._run, args=(client,), daemon=True)
        client.thread.start()
        return client

    def answer(self, model: str, prompt: str = "a", n_tokens: int = 8) -> str:
        """The text of an answer that must come whole."""
        client = self.ask(model, prompt, n_tokens).wait()
        assert client.done and not client.error, client
        return client.text

    def process(self, model: str) -> ModelProcess:
        """The process that runs `model`, loaded if need be."""
        self.answer(model, n_tokens=1)
        return self.models.get(model)

    def unload(self, model: str) -> None:
        body = {"model": model, "prompt": "", "keep_alive": 0}
        connection = self._connect()
        connection.request("POST", "/api/generate", json.dumps(body))
        assert connection.getresponse().read()
        while any(m.info.name == f"{model}:latest" and m.alive for m in self.models.loaded()):
            time.sleep(0.01)

    def get(self, path: str) -> dict[str, object]:
        connection = self._connect()
        connection.request("GET", path)
        found: dict[str, object] = json.loads(connection.getresponse().read())
        return found

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)

    def _run(self, client: Client) -> None:
        connection = client.connection = self._connect()
        try:
            options = {"temperature": 0, "num_predict": client.n_tokens, "num_ctx": 32768}
            body = {"model": client.model, "prompt": client.prompt, "raw": True, "options": options}
            body |= {"stream": client.stream, "pin": client.pin, "format": client.form}
            connection.request("POST", "/api/generate", json.dumps(body))
            client.sent_at = time.monotonic()
            response = connection.getresponse()
            client.status, client.headers = response.status, dict(response.getheaders())
            for line in response:
                said = json.loads(line)
                client.began_at = client.began_at or time.monotonic()
                client.error = said.get("error", "")
                client.pieces.append(said.get("response", ""))
                client.done = said.get("done", False)
        except (OSError, http.client.HTTPException, ValueError) as error:
            client.error = f"not told: {error!r}"
        finally:
            client.ended_at = time.monotonic()
            connection.close()


@contextmanager
def scene(**wishes: object) -> Iterator[Scene]:
    """A server over the models of KVASIR_MODELS."""
    models: Models[ModelProcess] = Models(lambda name, **how: ModelProcess.load(name, threads=1, **how))
    try:
        with serving(None, loader=models, keep_alive_s=600, **wishes) as url:  # type: ignore[arg-type]
            yield Scene(url, models)
    finally:
        models.close()


@contextmanager
def fault(spec: str) -> Iterator[None]:
    """Processes that start meanwhile fail so."""
    os.environ["KVASIR_FAULT"] = spec
    try:
        yield
    finally:
        del os.environ["KVASIR_FAULT"]


def ended_at(pid: int, wait_s: float = 30.0) -> float:
    """The moment at which a child of ours ends, to some milliseconds."""
    end = time.monotonic() + wait_s
    with suppress(ChildProcessError, ProcessLookupError):
        while time.monotonic() < end:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                break
            time.sleep(0.002)
    return time.monotonic()
