"""Models made of others: a manifest names the weights, and what goes with them.

A manifest is a JSON file, `manifests/[HOST/][NAMESPACE/]MODEL/TAG.json` in the models folder.  Weights are
never copied: they are a built-in model or one of the folder by name, a path elsewhere, or a blob.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from kvasir.chat import ChatRequest, Message
from kvasir.errors import UsageError
from kvasir.records import dataclass

FORM = 1  # of the file; a later one that this program cannot read has another
MANIFESTS, BLOBS = "manifests", "blobs"


@dataclass(frozen=True)
class Turn:
    """A message that stands before every conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Made:
    """What a name stands for: weights, and what goes with them.

    `weights`: the name of a built-in model or of a file or folder in the models folder; a path that begins
    with "/"; or "blobs/..." there.  `parent`: the model that it was made from, as it was called.
    `parameters`: Ollama's options.  `template`: empty for the weights' own.  `adapter`: the path of a LoRA
    adapter that answers.
    """

    weights: str
    parent: str = ""
    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Turn, ...] = ()
    license: tuple[str, ...] = ()
    adapter: str = ""
    form: int = FORM

    def applied(self, request: ChatRequest) -> ChatRequest:
        """`request` with the system message and the messages that go before every conversation.

        A system message of the request's own wins; what continues a `context` has them already.
        """
        sent = request.messages
        if not sent or request.context or not (self.system or self.messages):
            return request
        own = sent[:1] if sent[0].role == "system" else ()
        first = own or ((Message("system", self.system),) if self.system else ())
        turns = (Message(t.role, t.content) for t in self.messages)
        return replace(request, messages=(*first, *turns, *sent[len(own) :]))


def manifest_digest(path: Path) -> str:
    """64 hex digits over a manifest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, raw: bytes) -> None:
    """`raw` at `path`, durably: a reader finds the old file or the new one, whatever ends this process.

    Raises UsageError for a full disk, a read-only folder.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with fresh.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise UsageError(f"{path.name} cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Makes what was renamed into `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
