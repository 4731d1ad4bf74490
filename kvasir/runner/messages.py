"""What a model's process and the server say to each other: typed frames over a stream socket.

A frame is one byte of version, four of length (most significant first), and a msgpack map with a `type`.  The
server sends Load first and then anything of `ToRunner`; the process answers Ready or Failed, and then with
batches.  Within a batch: accepted before begun before deltas before ends before failures, so each stream
stays in order.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from kvasir import errors
from kvasir.chat import ChatRequest, Delta, Finished
from kvasir.errors import Bug, Busy, KvasirError, UsageError
from kvasir.runner.adapters import AdapterInfo
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.memory import MAX_SEQUENCES
from kvasir.runner.pulse import Pulse

VERSION = 1
MAX_FRAME = 64 << 20  # a context of token ids, or a thousand embeddings; a body of HTTP is smaller
HEAD = struct.Struct(">BI")


class Frame(msgspec.Struct, tag_field="type", tag=str.lower):
    """Anything that crosses."""


class Load(Frame):
    """The first frame.  `nth`: how many processes ran this model in this server, this one included."""

    name: str
    backend: str = ""
    threads: int | None = None
    context: int | None = None
    n_blocks: int | None = None
    kv_format: str | None = None
    draft: str | None = None
    nth: int = 1
    adapters: dict[str, str] = {}
    max_sequences: int = MAX_SEQUENCES


class Submit(Frame):
    id: int
    request: ChatRequest


class Cancel(Frame):
    id: int


class Embed(Frame):
    id: int
    inputs: list[str | list[int]]
    truncate: bool = False


class Tokenize(Frame):
    id: int
    request: ChatRequest


class Spell(Frame):
    id: int
    token_ids: list[int]


class Adapt(Frame):
    """Asks for the adapter at `path` under `name`, or without a path for its end."""

    id: int
    name: str
    path: str


class Check(Frame):
    """Asks whether every cache block is accounted for."""

    id: int


class Close(Frame):
    """The last frame: answers under way end with "abort", and the process with them."""


class Failure(msgspec.Struct):
    """An error on its way: the name of its class in `kvasir.errors`, and what it says."""

    kind: str
    message: str
    hint: str = ""
    wait_s: float = 0.0


class Progress(Frame):
    """What loading is at."""

    stage: str


class Ready(Frame):
    """The model is loaded."""

    info: ModelInfo
    has_template: bool
    load_s: float
    referenced: list[str]
    adapters: dict[str, AdapterInfo] = {}


class Failed(Frame):
    """The model cannot be loaded; the process ends."""

    failure: Failure


class Accepted(msgspec.Struct):
    """A request has become a prompt and is queued."""

    id: int
    prompt_token_ids: tuple[int, ...]
    n_truncated: int


class Batch(Frame):
    """What happened since the last batch, and the pulse of the thread that steps.

    `begun`: requests with their first piece, and how much of their prompts was in the prefix cache.
    `pieces`: the bytes of tokens that log-probabilities name.  The ends come without their prompt, which
    `accepted` brought.
    """

    pulse: Pulse
    accepted: list[Accepted] = []
    begun: list[tuple[int, int]] = []
    deltas: list[tuple[int, Delta]] = []
    ends: list[tuple[int, Finished]] = []
    failures: list[tuple[int, Failure]] = []
    pieces: dict[int, bytes] = {}


class Answer(Frame):
    """The result of an Embed, each embedding as its float32s, tokens, and tokens cut off; of a Tokenize, a
    Spell, an Adapt (all adapters that there are then), or a Check.
    """

    id: int
    failure: Failure | None = None
    embeddings: list[tuple[bytes, int, int]] = []
    tokens: list[int] = []
    text: str = ""
    pieces: list[bytes] = []
    adapters: dict[str, AdapterInfo] = {}


ToRunner = Load | Submit | Cancel | Embed | Tokenize | Spell | Adapt | Check | Close
FromRunner = Progress | Ready | Failed | Batch | Answer


def failure(error: BaseException) -> Failure:
    """`error` as it crosses; what is none of ours crosses as a Bug."""
    if not isinstance(error, KvasirError):
        error = Bug(f"{type(error).__name__}: {error}")
    return Failure(type(error).__name__, error.message, error.hint, getattr(error, "wait_s", 0.0))


def error_of(failed: Failure) -> KvasirError:
    """The error itself, as its own type."""
    kind = getattr(errors, failed.kind, Bug)
    if kind is Busy:
        return Busy(failed.message, failed.hint, failed.wait_s)
    if not (isinstance(kind, type) and issubclass(kind, KvasirError)):
        kind = Bug
    return kind(failed.message, failed.hint)


def _outwards(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot cross")


def _inwards(kind: type, value: Any) -> Any:
    return kind(value) if issubclass(kind, Path) else value


_encoder = msgspec.msgpack.Encoder(enc_hook=_outwards)
_to_runner = msgspec.msgpack.Decoder(ToRunner, dec_hook=_inwards)
_from_runner = msgspec.msgpack.Decoder(FromRunner, dec_hook=_inwards)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame.  Raises UsageError for what msgpack cannot carry or is over the limit."""
    try:
        body = _encoder.encode(frame)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"the request cannot be sent to the model: {error}") from None
    if len(body) > MAX_FRAME:
        raise UsageError(f"the request has {len(body):,} bytes and {MAX_FRAME:,} are the most")
    return HEAD.pack(VERSION, len(body)) + body


class Frames:
    """Bytes as they come, whole frames out.  Mutable."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies of the frames that are whole now.  Raises Bug for anything but frames."""
        self._bytes += data
        while len(self._bytes) >= HEAD.size:
            version, size = HEAD.unpack_from(self._bytes)
            if version != VERSION or size > MAX_FRAME:
                raise Bug(f"a frame of version {version} with {size:,} bytes")
            if len(self._bytes) < HEAD.size + size:
                return
            body = bytes(memoryview(self._bytes)[HEAD.size : HEAD.size + size])
            del self._bytes[: HEAD.size + size]
            yield body


def to_runner(body: bytes) -> ToRunner:
    """A frame that the server sent.  Raises Bug."""
    try:
        frame: ToRunner = _to_runner.decode(body)
        return frame
    except msgspec.MsgspecError as error:
        raise Bug(f"a frame that the server cannot have sent: {error}") from None


def from_runner(body: bytes) -> FromRunner:
    """A frame that a model's process sent.  Raises Bug."""
    try:
        frame: FromRunner = _from_runner.decode(body)
        return frame
    except msgspec.MsgspecError as error:
        raise Bug(f"a frame that a model's process cannot have sent: {error}") from None


def received(channel: socket.socket) -> Iterator[bytes]:
    """The frames of a blocking socket, until the other side is gone."""
    frames = Frames()
    while True:
        try:
            data = channel.recv(1 << 18)
        except OSError:
            return
        if not data:
            return
        yield from frames.feed(data)


def without_prompt(finished: Finished) -> Finished:
    """An end as it crosses: the prompt has gone before."""
    return replace(finished, prompt_token_ids=())
