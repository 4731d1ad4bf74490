"""Messages to the text that a model was trained on, by the model's own chat template."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvasir import child
from kvasir.chat import Message
from kvasir.errors import CheckpointError, ModelError, UsageError

MAX_SOURCE_BYTES = 1 << 20
MAX_TEXT = 64 << 20
RENDER_S = 2.0
START_S = 20.0
MEMORY_BYTES = 256 << 20
_MAX_ANSWER = 1 << 30
# Names a request may not set: they are ours, or options of the function that templates were written for.
RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "raise_exception"}
    | {"strftime_now", "tokenize", "chat_template", "continue_final_message", "return_tensors", "return_dict"}
    | {"padding", "truncation", "max_length", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)


class ChatTemplate:
    """A chat template and the process that renders it (mutable: it starts at the first use, or by `warm`).

    Bounds: 2 s and 256 MB a rendering, the text at most 16 times its input and 1 MB.  A process that
    takes too long is killed, and the next rendering starts another.  What the model supports is read off the
    names in the source, and guessed no further.
    """

    def __init__(self, source: str, bos: str = "", eos: str = "", special: Mapping[str, str] | None = None):
        if len(source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
            raise ModelError(f"the chat template is over {MAX_SOURCE_BYTES:,} bytes")
        self.source = source
        self._tokens = {**(special or {}), "bos_token": bos, "eos_token": eos}
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._names = frozenset(re.findall(r"[A-Za-z_]\w*", source))
        self.supports_tools = "tools" in self._names
        self.supports_thinking = bool({"enable_thinking", "thinking", "reasoning_effort"} & self._names) or (
            "<think>" in source
        )
        self._knows_none = re.search(r"""content['"]?\]? is (not )?none""", source) is not None
        self.supports_system = "system" in self._names

    def warm(self) -> None:
        """Starts the process without waiting for it, so that the first rendering finds it ready."""
        with self._lock:
            if self._worker is None:
                self._worker = _Worker(self.source)

    def close(self) -> None:
        """Ends the process; a later rendering starts it again."""
        with self._lock:
            if self._worker is not None:
                self._worker.kill()
            self._worker = None

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.kill()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        think: bool | str | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for `messages`; encode it without `add_special`: the template writes BOS itself.

        `think` sets what templates call it: `enable_thinking`, `thinking`, `reasoning_effort` for a word.
        Raises UsageError for what the template refuses and for `extra` names that it does not use, ModelError
        for a template that fails.
        """
        for name in extra:
            if name in RESERVED or name not in self._names:
                why = (
                    "is set by the server"
                    if name in RESERVED
                    else "is not a variable of this model's template"
                )
                raise UsageError(f"chat template variable {name!r} {why}")
        variables = {
            **self._tokens,
            **_thinking(think),
            **extra,
            "messages": [as_mapping(message, self._knows_none) for message in messages],
            "tools": [dict(tool) for tool in tools] or None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            size = len(json.dumps(variables, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the messages are not JSON: {error}") from None
        if size > MAX_TEXT:
            raise UsageError(f"messages of {size:,} bytes, the limit is {MAX_TEXT:,}")
        return self._answer({"variables": variables, "limit": min(MAX_TEXT, 16 * size + (1 << 20))}, size)

    def _answer(self, request: Mapping[str, Any], size: int) -> str:
        seconds = RENDER_S + size / (4 << 20)
        with self._lock:
            worker = self._worker = self._worker or _Worker(self.source)
            try:
                answer = worker.ask(request, seconds)
            except BaseException as error:
                worker.kill()
                self._worker = None
                if isinstance(error, TimeoutError):
                    raise ModelError(f"the chat template took over {seconds:.0f} s") from None
                if isinstance(error, (OSError, EOFError, ValueError)):
                    raise ModelError(f"the chat template ended its process ({error})") from None
                raise
        if "ok" in answer:
            return str(answer["ok"])
        if answer["kind"] == "input":
            raise UsageError(f"the model's chat template refuses the messages: {answer['error']}")
        raise ModelError(f"the model's chat template fails: {answer['error']}")


class _Worker:
    """One rendering process (mutable)."""

    def __init__(self, source: str):
        script = Path(__file__).with_name("render.py")
        wanted = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TZ")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in wanted if name in os.environ},
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        except OSError as error:
            raise ModelError(f"the process for chat templates does not start: {error}") from None
        self._ready, self._refused = (
            False,
            dict[str, str](),
        )  # why the source does not compile, if it does not
        self._send({"source": source, "memory_bytes": MEMORY_BYTES})

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, str]:
        """The answer to one rendering.  Raises TimeoutError, OSError, EOFError."""
        if not self._ready:
            self._receive(time.monotonic() + START_S)
            compiled = self._receive(time.monotonic() + seconds)
            self._ready, self._refused = True, {} if "ok" in compiled else compiled
        if self._refused:
            return self._refused
        deadline = time.monotonic() + seconds
        self._send(request)
        return self._receive(deadline)

    def kill(self) -> None:
        child.end(self._process)

    def _send(self, value: Any) -> None:
        body = json.dumps(value).encode()
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(len(body).to_bytes(4, "big") + body)
        stdin.flush()

    def _receive(self, deadline: float) -> dict[str, str]:
        n_bytes = int.from_bytes(self._read(4, deadline), "big")
        if n_bytes > _MAX_ANSWER:
            raise EOFError("an answer over the limit")
        answer: dict[str, str] = json.loads(self._read(n_bytes, deadline))
        return answer

    def _read(self, n_bytes: int, deadline: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        parts = []
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while n_bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                parts.append(os.read(stdout.fileno(), min(n_bytes, 1 << 20)))
                if not parts[-1]:
                    raise EOFError("no answer")
                n_bytes -= len(parts[-1])
        return b"".join(parts)


def as_mapping(message: Message, knows_none: bool = False) -> dict[str, Any]:
    """A message as Hugging Face's templates read it; what is empty is absent, save the content.

    `knows_none`: the template asks whether a content is none, as that of a call is when nothing was said.
    """
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if knows_none and message.tool_calls and not message.content:
        made["content"] = None
    if message.thinking:
        made["reasoning_content"] = made["thinking"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        made["name"] = message.tool_name
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, str):
        return {"reasoning_effort": think, "enable_thinking": True, "thinking": True}
    return {"enable_thinking": think, "thinking": think}


def select_template(declared: object, has_tools: bool = False) -> str:
    """The template to use of what a model declares: a text, or a list or mapping of named ones.

    `declared` is tokenizer_config.json's `chat_template` or GGUF's `tokenizer.chat_template`.  With tools the
    one named `tool_use`, else `default`.  Raises ModelError when there is none.
    """
    if isinstance(declared, Sequence) and not isinstance(declared, str):
        declared = {
            str(e["name"]): e.get("template") for e in declared if isinstance(e, Mapping) and "name" in e
        }
    if isinstance(declared, Mapping):
        chosen = declared.get("tool_use") if has_tools else None
        declared = chosen or declared.get("default")
    if not isinstance(declared, str) or not declared.strip():
        raise ModelError("the model has no chat template", hint="give it a raw prompt instead of messages")
    return declared


def template_from_folder(folder: Path, has_tools: bool = False) -> str:
    """The chat template of a Hugging Face folder: chat_template.jinja, .json, or tokenizer_config.json's.

    Raises ModelError when there is none, CheckpointError for files that cannot be read.
    """
    try:
        named = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        if has_tools and "tool_use" in named:
            return _read(named["tool_use"])
        if (folder / "chat_template.jinja").is_file():
            return _read(folder / "chat_template.jinja")
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = folder / name
            declared = json.loads(_read(path, 64 << 20)) if path.is_file() else None
            if isinstance(declared, dict) and declared.get("chat_template"):
                return select_template(declared["chat_template"], has_tools)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder.name}: the chat template cannot be read: {error}") from None
    return select_template(None)


def _read(path: Path, limit: int = MAX_SOURCE_BYTES) -> str:
    if path.stat().st_size > limit:
        raise CheckpointError(f"{path.name} is over {limit:,} bytes")
    return path.read_text("utf-8")
