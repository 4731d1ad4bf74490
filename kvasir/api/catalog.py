"""Ollama's descriptions of models: tags, ps, show.  Pure functions from what is known to what is said."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from kvasir.api.body import decode, typed
from kvasir.checkpoint.open import Checkpoint
from kvasir.errors import UsageError
from kvasir.runner.inspect import ModelInfo
from kvasir.store.made import Made
from kvasir.store.modelfile import parameters_text, write_modelfile

LONG_ARRAY = 5  # elements of a metadata array that are shown unless everything is asked for


class ShowBody(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


def parse_show(raw: bytes) -> tuple[str, bool]:
    """The model that /api/show is asked about, and whether with everything.  Raises UsageError."""
    body = typed(decode(raw), ShowBody)
    name = body.model or body.name
    if not name:
        raise UsageError("model is required")
    return name, bool(body.verbose)


def listed(info: ModelInfo) -> dict[str, Any]:
    """An entry of /api/tags."""
    return {
        "name": info.name,
        "model": info.name,
        "modified_at": rfc3339(info.modified),
        "size": info.size_bytes,
        "digest": info.digest,
        "details": _details(info),
        "capabilities": list(info.capabilities),
    }


def running(info: ModelInfo, expires: datetime) -> dict[str, Any]:
    """An entry of /api/ps."""
    return {
        "name": info.name,
        "model": info.name,
        "size": info.size_bytes,
        "digest": info.digest,
        "details": _details(info),
        "expires_at": rfc3339(expires),
        "size_vram": round(info.gpu_share * info.size_bytes),
        "context_length": info.context,
    }


def loading(name: str, stage: str, size_bytes: int) -> dict[str, Any]:
    """An entry of /api/ps for a model that is being loaded; `stage` is not Ollama's."""
    return {"name": name, "model": name, "size": size_bytes, "size_vram": 0, "stage": stage}


def shown(info: ModelInfo, checkpoint: Checkpoint, template: str, verbose: bool) -> dict[str, Any]:
    """The answer of /api/show.  `template`: the one that writes prompts; with `verbose` the tensors too."""
    made, metadata = info.made or Made(""), checkpoint.metadata
    facts: dict[str, Any] = {
        "general.architecture": info.architecture,
        "general.parameter_count": info.n_parameters,
        f"{info.architecture}.context_length": info.context,
        f"{info.architecture}.embedding_length": info.embedding_length,
    }
    hidden = ("general.name", "tokenizer.chat_template")
    facts |= {k: _plain(v, verbose) for k, v in metadata.items() if k not in hidden}
    body = {
        "license": info.license,
        "modelfile": modelfile(info).replace(made.adapter or "\0", Path(made.adapter).name),  # no folders
        "parameters": parameters_text(made.parameters),
        "template": template,
        "system": made.system,
        "messages": [{"role": turn.role, "content": turn.content} for turn in made.messages],
        "details": _details(info),
        "model_info": facts,
        "capabilities": list(info.capabilities),
        "modified_at": rfc3339(info.modified),
    }
    if verbose:
        body["tensors"] = [
            {"name": name, "type": tensor.format.name, "shape": list(tensor.shape)}
            for name, tensor in checkpoint.tensors.items()
        ]
    return {k: v for k, v in body.items() if v not in ("", [])}


def modelfile(info: ModelInfo) -> str:
    """The Modelfile that makes the model again."""
    base = (info.made and info.made.parent) or info.name
    return f"# Modelfile of {info.name}, by Kvasir\n\n" + write_modelfile(base, info.made or Made(""))


def rfc3339(at: datetime) -> str:
    """A moment as JSON carries it: 2026-01-02T03:04:05.678901Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": info.made.parent if info.made else "",
        "format": info.kind,
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": info.parameter_size,
        "quantization_level": info.quantization,
        "context_length": info.context,
        "embedding_length": info.embedding_length,
    }


def _plain(value: object, verbose: bool) -> Any:
    """A metadata value that JSON can carry; long arrays are emptied unless `verbose`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, Iterable):
        return str(value)
    items = list(value)
    return [] if len(items) > LONG_ARRAY and not verbose else [_plain(item, verbose) for item in items]
