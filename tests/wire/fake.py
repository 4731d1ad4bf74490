"""A scripted model for tests of the faces: its answers are written down and its requests are kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvasir.chat import ChatRequest, Delta, Embedding, Finished, Metrics, Spelled
from kvasir.errors import KvasirError, ModelError, UsageError
from kvasir.runner.adapters import AdapterInfo
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.pulse import Pulse
from kvasir.runner.stream import Stream
from kvasir.store.names import find

INFO = ModelInfo(
    name="mead:latest",
    path=Path("/secret/folder/mead.gguf"),
    kind="gguf",
    architecture="qwen3",
    n_parameters=8_100_000,
    quantization="Q8_0",
    context=512,
    embedding_length=256,
    size_bytes=9_000_000,
    modified=datetime(2026, 1, 2, tzinfo=UTC),
    digest="ab" * 32,
    license="Apache-2.0",
    capabilities=("completion",),
)


class FakePrompter:
    """A token a character."""

    template: object | None = object()

    def tokens(self, request: ChatRequest, limit: int) -> tuple[list[int], int]:
        text = (
            request.prompt
            if isinstance(request.prompt, str)
            else "".join(m.content for m in request.messages)
        )
        return ([*request.prompt] if isinstance(request.prompt, tuple) else [ord(c) % 256 for c in text]), 0


@dataclass
class FakeModel:
    """Answers with `words`, `pace_s` apart; an exception among them is raised there.  Mutable.

    A Delta among them goes out as it is; if one calls a tool, that is the reason of the end.
    """

    words: Sequence[str | Delta | KvasirError] = ("Hello", ", ", "world")
    pace_s: float = 0.0
    info: ModelInfo = INFO
    prompter: Any = field(default_factory=FakePrompter)
    has_template: bool = True
    alive: bool = True
    own_bytes: int = 0
    pulse: Pulse = field(default_factory=Pulse)
    load_s: float = 0.0
    requests: list[ChatRequest] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    n_cancelled: int = 0
    n_closed: int = 0

    def submit(self, request: ChatRequest) -> Stream:
        self.requests.append(request)
        tokens, _ = self.prompter.tokens(request, self.info.context)
        tokens = [*request.context, *tokens]
        limit = min(request.max_context or self.info.context, self.info.context)
        if len(tokens) >= limit and not request.truncate:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens and the context holds {limit}", hint="shorten it"
            )
        stop = threading.Event()
        stream = Stream(1, tuple(tokens[:limit]), lambda _: self._cancel(stop), max(len(tokens) - limit, 0))
        threading.Thread(
            target=self._play, args=(request, stream, stop, len(tokens), limit), daemon=True
        ).start()
        return stream

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        self.adapters[name] = path
        return AdapterInfo(name, Path(path), path, 1, 1)

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    def tokenize(self, request: ChatRequest) -> list[int]:
        self.requests.append(request)
        return [*request.context, *self.prompter.tokens(request, 0)[0]]

    def embeddings(self, inputs: Sequence[str | Sequence[int]], truncate: bool = False) -> list[Embedding]:
        """[length, 3, 4] for each input; the context is that of `info`."""
        if "embedding" not in self.info.capabilities:
            raise UsageError(f"{self.info.name} writes text and gives no embeddings")
        limit, found = self.info.context, []
        for each in inputs:
            if len(each) > limit and not truncate:
                raise UsageError(f"the text has {len(each)} tokens and the context holds {limit}")
            n = min(len(each), limit)
            found.append(Embedding([float(n), 3.0, 4.0], n, len(each) - n))
        return found

    def spell(self, token_ids: Sequence[int]) -> Spelled:
        pieces = tuple(self.token_bytes(i) for i in token_ids)
        return Spelled(b"".join(pieces).decode("latin-1"), pieces)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id % 256,))

    def close(self) -> None:
        self.n_closed += 1

    def _cancel(self, stop: threading.Event) -> None:
        if not stop.is_set():
            self.n_cancelled += 1
            stop.set()

    def _play(
        self, request: ChatRequest, stream: Stream, stop: threading.Event, n_prompt: int, limit: int
    ) -> None:
        words = list(self.words)[: request.params.max_tokens]
        for n, word in enumerate(words):
            if stop.wait(self.pace_s):
                stream.put(Finished("abort"))
                return
            if isinstance(word, KvasirError):
                stream.put(word)
                stop.set()
                return
            stream.put(word if isinstance(word, Delta) else Delta(word, (100 + n,)))
        stop.set()
        called = any(isinstance(word, Delta) and word.tool_calls for word in words)
        reason = "length" if len(words) < len(self.words) else "tool_calls" if called else "stop"
        cut = max(n_prompt - limit, 0)
        metrics = Metrics(
            prefill_s=0.25,
            decode_s=0.5,
            total_s=1.0,
            n_prompt=n_prompt - cut,
            n_generated=len(words),
            n_truncated=cut,
        )
        stream.put(Finished(reason, metrics, prompt_token_ids=stream.prompt_token_ids))


class FakeModels:
    """A loader with one model, or with the error that loading gives.  Mutable and thread-safe."""

    def __init__(
        self, model: FakeModel | KvasirError, load_s: float = 0.0, on_load: Callable[[], None] = lambda: None
    ):
        self.model, self.load_s, self.on_load = model, load_s, on_load
        self.n_loads = self.n_unloads = 0
        self.sizes: dict[str, int] = {}

    def get(self, name: str) -> FakeModel:
        self.n_loads += 1
        self.on_load()
        time.sleep(self.load_s)
        if isinstance(self.model, KvasirError):
            raise self.model
        if "mead" not in name:
            raise ModelError(find(name).name)
        return self.model

    def size(self, name: str) -> int:
        return self.sizes.get(name, 1)

    def stage(self, name: str) -> str:
        return "reading the file"

    def unload(self, name: str) -> bool:
        self.n_unloads += 1
        return True
