"""Ollama's create, copy, delete, blobs, pull and push: bodies to wishes, and what is refused by name.

Source: Ollama's API types (api/types.go) and its handlers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from kvasir.api.body import decode, typed, unknown
from kvasir.api.create import Wish, is_digest, turns
from kvasir.api.errors import Wrong
from kvasir.api.words import short

MAX_FILES = 1000
# Fields of /api/create that are known and cannot be honoured.
REFUSED = {
    "adapters": "an adapter goes with ADAPTER in a Modelfile, or `kvasir serve --adapter`",
    "draft_files": "a draft model goes with `kvasir run --draft`",
    "quantize": "Kvasir runs weights in the format that they have",
    "quantization": "Kvasir runs weights in the format that they have",
    "draft_quantize": "Kvasir runs weights in the format that they have",
    "renderer": "a model's own template, or `template`, writes its prompts",
    "parser": "what reads an answer is chosen by the model's template",
    "remote_host": "models run on this machine",
}


class CreateBody(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    base: str | None = msgspec.field(name="from", default=None)
    files: dict[str, str] | None = None
    template: str | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    messages: Any = None
    stream: bool | None = None
    adapters: Any = None
    draft_files: Any = None
    quantize: str | None = None
    quantization: str | None = None
    draft_quantize: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    remote_host: str | None = None
    info: Any = None


class CopyBody(msgspec.Struct):
    source: str | None = None
    destination: str | None = None


class NameBody(msgspec.Struct):
    """Of delete, pull and push."""

    model: str | None = None
    name: str | None = None
    insecure: bool | None = None
    username: str | None = None
    password: str | None = None
    stream: bool | None = None


@dataclass(frozen=True)
class Told:
    """What a body asks for, whether its progress is streamed, and what nobody knows of it."""

    wish: Wish
    stream: bool
    warnings: tuple[str, ...]


def parse_create(raw: bytes) -> Told:
    """What the body of /api/create asks for.  Raises UsageError that names the field."""
    values = decode(raw)
    body = typed(values, CreateBody)
    name = body.model or body.name
    if not name:
        raise Wrong("model is required", param="model")
    for key, why in REFUSED.items():
        if values.get(key):
            raise Wrong(f"{key} is not supported: {why}", param=key)
    if not body.base and not body.files:
        raise Wrong("neither 'from' nor 'files' was given", hint="name a model in `from`", param="from")
    if body.base and body.files:
        raise Wrong("'from' and 'files' were both given", hint="leave one out", param="files")
    if len(body.files or {}) > MAX_FILES:
        raise Wrong(f"files has {len(body.files or {}):,} entries, the limit is {MAX_FILES:,}", param="files")
    for file, digest in (body.files or {}).items():
        if not is_digest(digest):
            raise Wrong(f"files: {short(digest)} is not a digest", hint="write sha256: and 64 hex digits")
        if file in ("", ".", ".."):
            raise Wrong("files: a file has no name", param="files")
    licenses = [body.license] if isinstance(body.license, str) else body.license or []
    wish = Wish(
        name=name,
        base=body.base or "",
        files=body.files or {},
        template=body.template or None,
        system=body.system,
        parameters=body.parameters or {},
        messages=turns(body.messages),
        license=tuple(text for text in licenses if text),
    )
    idle = tuple(f"{key} has no effect" for key in ("requires", "info") if values.get(key))
    return Told(wish, body.stream is not False, (*unknown(values, CreateBody), *idle))


def parse_copy(raw: bytes) -> tuple[str, str]:
    """Source and destination.  Raises UsageError that names the field."""
    body = typed(decode(raw), CopyBody)
    if not body.source or not body.destination:
        name = "destination" if body.source else "source"
        raise Wrong(f"{name} is required", param=name)
    return body.source, body.destination


def parse_name(raw: bytes) -> tuple[str, bool]:
    """The model of delete, pull or push, and whether progress is streamed.  Raises UsageError."""
    body = typed(decode(raw), NameBody)
    name = body.model or body.name
    if not name:
        raise Wrong("model is required", param="model")
    return name, body.stream is not False


def status_line(status: str) -> bytes:
    """A line of progress."""
    return msgspec.json.encode({"status": status}) + b"\n"
