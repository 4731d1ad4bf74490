"""class LLM: the Python face, in process, in vLLM's shape."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

from kvasir.chat import ChatRequest, Delta, Event, Finished, Message, Metrics, TokenLogprob, ToolCall
from kvasir.engine.stats import Stats
from kvasir.errors import UsageError
from kvasir.runner.adapters import AdapterInfo
from kvasir.runner.model import Model
from kvasir.runner.stream import Stream
from kvasir.sampling import SamplingParams
from kvasir.structured import StructuredOutputsParams

Prompt = str | Sequence[int] | Mapping[str, Any]
NO_ADAPTERS: Mapping[str, str] = {}
FORMS = tuple(field.name for field in fields(StructuredOutputsParams))
PROGRESS_FROM = 2  # prompts: from here on a progress bar is worth its line


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class RequestOutput:
    """A prompt with its answers; the first answer's fields can be read directly."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[Completion, ...]
    metrics: Metrics
    finished: bool = True
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason


@dataclass(frozen=True)
class LoRARequest:
    """Which adapter answers, in vLLM's shape.  It is loaded from `lora_path` when it is named first; without
    a path it must be one of LLM's `adapters`.  `lora_int_id` means nothing here: names tell adapters apart.
    """

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


Lora = LoRARequest | str | None  # a request, the name of an adapter that is loaded, or neither


class LLM:
    """A model to ask.  `LLM("mead").generate(["What is DNS?"], temperature=0, max_tokens=64)[0].text`

    `model`: a built-in name, a GGUF file, a safetensors folder.  `max_model_len` caps the context below the
    model's own.  `draft` names a smaller model with the same vocabulary that guesses ahead: faster where it
    guesses well, the same answers always.  `adapters`: paths of LoRA adapters by the names that
    `lora_request` chooses them by; any number of them answer side by side.  Use it as a context manager, or
    `close()` it, to free the memory early.
    """

    def __init__(
        self,
        model: str,
        *,
        backend: str = "",
        threads: int | None = None,
        max_model_len: int | None = None,
        kv_format: str | None = None,
        draft: str | None = None,
        adapters: Mapping[str, str] = NO_ADAPTERS,
        seed: int | None = None,
    ):
        self._model = Model.load(
            str(model),
            backend=backend,
            threads=threads,
            context=max_model_len,
            kv_format=kv_format,
            draft=draft,
            adapters={name: str(path) for name, path in adapters.items()},
        )
        self._seed = seed
        self._lora_paths: dict[str, str] = {}  # of the adapters that LoRARequests brought

    @property
    def model(self) -> Model:
        return self._model

    def get_default_sampling_params(self) -> SamplingParams:
        return SamplingParams()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Lora | Sequence[Lora] = None,
        pin: bool = False,
        **wishes: Any,
    ) -> list[RequestOutput]:
        """The answers to prompts, in their order: texts used as they are, or lists of token ids.

        Sampling parameters come as one object, one for each prompt, or as plain keywords; the fields of
        StructuredOutputsParams may stand among these: `regex="[0-9]+"`.  `lora_request`: the adapter that
        answers, or one for each prompt.  `pin`: the prompts stay in the prefix cache.
        Raises UsageError, CapacityError before anything is computed.
        """
        many = _prompts(prompts)
        params = self._params(sampling_params, wishes, len(many))
        requests = [
            ChatRequest(
                params=p, prompt=prompt if isinstance(prompt, str) else tuple(prompt), adapter=a, pin=pin
            )
            for prompt, p, a in zip(many, params, self._adapters(lora_request, len(many)), strict=True)
        ]
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool | None = None,
        lora_request: Lora | Sequence[Lora] = None,
        pin: bool = False,
        **wishes: Any,
    ) -> list[RequestOutput]:
        """The answer to a conversation, or to each of several: dicts or Messages with `role` and
        `content`.
        """
        many = _conversations(messages)
        params = self._params(sampling_params, wishes, len(many))
        requests = [
            ChatRequest(params=p, messages=m, tools=tuple(tools or ()), think=think, adapter=a, pin=pin)
            for m, p, a in zip(many, params, self._adapters(lora_request, len(many)), strict=True)
        ]
        return self._run(requests, use_tqdm)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        lora_request: Lora = None,
        **wishes: Any,
    ) -> Iterator[RequestOutput]:
        """The answer to one prompt as it grows: each item holds all of it so far, the last is `finished`."""
        (one,) = _prompts(prompt)
        (params,) = self._params(sampling_params, wishes, 1)
        (adapter,) = self._adapters(lora_request, 1)
        prompt = one if isinstance(one, str) else tuple(one)
        return self._grow(ChatRequest(params=params, prompt=prompt, adapter=adapter))

    def stream_chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool | None = None,
        lora_request: Lora = None,
        **wishes: Any,
    ) -> Iterator[RequestOutput]:
        """The answer to one conversation as it grows."""
        (one,) = _conversations(messages)
        (params,) = self._params(sampling_params, wishes, 1)
        (adapter,) = self._adapters(lora_request, 1)
        request = ChatRequest(params=params, messages=one, tools=tuple(tools or ()), think=think)
        return self._grow(replace(request, adapter=adapter))

    def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """One embedding a text, as the model's pooling gives it."""
        return self._model.embed([texts] if isinstance(texts, str) else list(texts))

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """The adapters that may be named, by name."""
        return self._model.adapters

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """The adapter at `path` may be named from now on.  Raises UsageError, ModelError, CheckpointError."""
        return self._model.load_adapter(name, str(path))

    def unload_adapter(self, name: str) -> None:
        """It may not be named any more, and is freed when nothing uses it.  Raises UsageError."""
        self._model.unload_adapter(name)
        self._lora_paths.pop(name, None)

    def stats(self) -> Stats:
        """What was computed so far, what was saved, and how full the KV cache is."""
        return self._model.stats()

    def close(self) -> None:
        self._model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, wishes: Mapping[str, Any], count: int
    ) -> list[SamplingParams]:
        if given is not None and wishes:
            raise UsageError(f"give sampling_params or keywords, not both: {', '.join(wishes)}")
        if given is None:
            form = {name: wishes[name] for name in FORMS if wishes.get(name) is not None}
            rest = {name: wish for name, wish in wishes.items() if name not in FORMS}
            if form and rest.get("structured_outputs") is not None:
                raise UsageError(f"give structured_outputs or {', '.join(form)}, not both")
            if form:
                rest["structured_outputs"] = StructuredOutputsParams(**form)
            try:
                given = SamplingParams(**rest)
            except TypeError as e:
                raise UsageError(f"sampling parameters: {e}", hint="see kvasir.SamplingParams") from None
        many = [given] * count if isinstance(given, SamplingParams) else list(given)
        if len(many) != count:
            raise UsageError(f"{len(many)} sampling parameters for {count} prompts")
        return [replace(p, seed=self._seed) if p.seed is None else p for p in many]

    def _adapters(self, given: Lora | Sequence[Lora], count: int) -> list[str]:
        """The name of the adapter of each prompt, loaded if it is not; "" without one."""
        many = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
        if len(many) != count:
            raise UsageError(f"{len(many)} LoRA requests for {count} prompts")
        for lora in many:
            if not isinstance(lora, LoRARequest | str | None):
                raise UsageError(f"a LoRA request is {type(lora).__name__}", hint="use kvasir.LoRARequest")
            if isinstance(lora, LoRARequest) and lora.lora_path:
                path = str(lora.lora_path)
                if self._lora_paths.get(lora.lora_name) != path:
                    self._model.load_adapter(lora.lora_name, path)
                    self._lora_paths[lora.lora_name] = path
        return [lora.lora_name if isinstance(lora, LoRARequest) else lora or "" for lora in many]

    def _run(self, requests: list[ChatRequest], use_bar: bool) -> list[RequestOutput]:
        streams = self._submit(requests)
        bar = _Bar(len(requests), use_bar and len(requests) >= PROGRESS_FROM)
        try:
            done = []
            for n, (request, stream) in enumerate(zip(requests, streams, strict=True)):
                done.append(_gather(str(n), request, stream))
                bar.advance(done[-1])
            return done
        except BaseException:  # Ctrl-C included: what nobody waits for must not go on computing
            for stream in streams:
                stream.cancel()
            raise
        finally:
            bar.close()

    def _submit(self, requests: list[ChatRequest]) -> list[Stream]:
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self._model.submit(request))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _grow(self, request: ChatRequest) -> Iterator[RequestOutput]:
        stream = self._model.submit(request)
        gathering = _Gathering("0", request, stream)
        try:
            for event in stream:
                gathering.take(event)
                yield gathering.output()
        finally:
            stream.cancel()


class _Gathering:
    """Answers being put together from events.  Mutable."""

    def __init__(self, request_id: str, request: ChatRequest, stream: Stream):
        n = request.params.n
        self.request_id, self.stream = request_id, stream
        self.prompt = request.prompt if isinstance(request.prompt, str) else None
        self.texts: list[list[str]] = [[] for _ in range(n)]
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
        self.ends: list[Finished | None] = [None] * n

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.texts[event.index].append(event.text)
            self.ids[event.index] += event.token_ids
            self.logprobs[event.index] += event.logprobs
        else:
            self.ends[event.index] = event

    def output(self) -> RequestOutput:
        ends = [e for e in self.ends if e]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.stream.prompt_token_ids,
            outputs=tuple(
                Completion(
                    index=i,
                    text="".join(self.texts[i]),
                    token_ids=tuple(self.ids[i]),
                    finish_reason=end.reason if end else None,
                    stop_reason=end.stop_reason if end else None,
                    logprobs=tuple(self.logprobs[i]),
                )
                for i, end in enumerate(self.ends)
            ),
            metrics=ends[-1].metrics if ends else Metrics(),
            finished=len(ends) == len(self.ends),
            prompt_logprobs=next((e.prompt_logprobs for e in ends if e.prompt_logprobs), ()),
        )


def _gather(request_id: str, request: ChatRequest, stream: Stream) -> RequestOutput:
    gathering = _Gathering(request_id, request, stream)
    for event in stream:
        gathering.take(event)
    return gathering.output()


class _Bar:
    """Progress on standard error, only for a person: prompts done and tokens a second.  Mutable."""

    def __init__(self, total: int, wanted: bool):
        self._bar: Any = None
        if wanted and sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

            columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[tokens]} tokens"), transient=True)
            self._bar.start()
            self._task, self._tokens = self._bar.add_task("prompts", total=total, tokens=0), 0

    def advance(self, output: RequestOutput) -> None:
        if self._bar:
            self._tokens += sum(len(o.token_ids) for o in output.outputs)
            self._bar.update(self._task, advance=1, tokens=self._tokens)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _prompts(prompts: Any) -> list[str | list[int]]:
    """One prompt or many, each a text, token ids, or vLLM's {"prompt": ...} / {"prompt_token_ids": ...}."""
    if isinstance(prompts, str | Mapping):
        prompts = [prompts]
    if not isinstance(prompts, Iterable):
        raise UsageError(f"prompts are texts or lists of token ids, not {type(prompts).__name__}")
    many = list(prompts)
    found: list[str | list[int]] = []
    for prompt in [many] if _is_ids(many) else many:
        if isinstance(prompt, Mapping):
            prompt = prompt.get("prompt_token_ids") or prompt.get("prompt")
        if not (isinstance(prompt, str) or _is_ids(prompt)):
            raise UsageError(f"a prompt is a text or a list of token ids, not {type(prompt).__name__}")
        found.append(prompt if isinstance(prompt, str) else list(prompt))
    return found


def _is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)


def _conversations(messages: Sequence[Any]) -> list[tuple[Message, ...]]:
    if not messages:
        raise UsageError("a chat needs at least one message")
    one = isinstance(messages[0], Message | Mapping)
    many = [messages] if one else messages
    return [tuple(_message(m) for m in conversation) for conversation in many]


def _message(given: Any) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise UsageError(f"a message is a dict with role and content, not {given!r}")
    content = given.get("content") or ""
    if not isinstance(content, str):
        content = "".join(_text_part(part) for part in content)
    return Message(
        role=given["role"],
        content=content,
        tool_calls=tuple(_call(c) for c in given.get("tool_calls") or ()),
        tool_name=given.get("name") or given.get("tool_name") or "",
        tool_call_id=given.get("tool_call_id") or "",
    )


def _call(given: Any) -> ToolCall:
    """A call as OpenAI writes it, its arguments as JSON, or as Ollama does, as a mapping."""
    function = given.get("function", given) if isinstance(given, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise UsageError(f"the arguments of {name} are not JSON: {arguments!r}") from None
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise UsageError(f"a tool call has a name and arguments, got {given!r}")
    return ToolCall(name, arguments, given.get("id") or "")


def _text_part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UsageError(f"a content part must be of type text, got {part!r}")
