"""What a model is, read from its file without loading its weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Sequence
from datetime import UTC, datetime
from math import prod
from pathlib import Path

from kvasir.checkpoint.gguf import Strings
from kvasir.checkpoint.open import Checkpoint, open_checkpoint
from kvasir.models import build
from kvasir.parsers.marks import thinks
from kvasir.plan import Plan
from kvasir.records import dataclass
from kvasir.runner.prompt import template_source
from kvasir.store.made import Made, manifest_digest
from kvasir.store.names import ModelFile, find
from kvasir.text import jinja_of
from kvasir.text.infill import has_marks


@dataclass(frozen=True)
class ModelInfo:
    """A model as people and APIs describe it.  `digest`: 64 hex digits over what the model is (see
    `_digest`).
    """

    name: str
    path: Path
    kind: str  # "gguf" or "safetensors"
    architecture: str
    n_parameters: int
    quantization: str  # the format that holds most of the weights: "Q8_0"
    context: int
    embedding_length: int
    size_bytes: int
    modified: datetime
    digest: str
    license: str
    capabilities: tuple[str, ...]  # of completion, embedding, tools, thinking, insert
    made: Made | None = None  # what a model that was made of another adds to it
    gpu_share: float = 0.0  # of its memory that is a GPU's, once it is loaded
    placement: str = ""  # and why

    @property
    def parameter_size(self) -> str:
        """As Ollama writes it: 8.0B, 494.03M."""
        n = self.n_parameters
        return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.2f}M" if n >= 1e6 else f"{n / 1e3:.2f}K"


def describe(name: str) -> ModelInfo:
    """What the model called `name` is.  Raises ModelError or CheckpointError."""
    file = find(name)
    checkpoint = open_checkpoint(file.path)
    plan, _ = build(checkpoint)
    return info(file, checkpoint, plan)


def info(file: ModelFile, checkpoint: Checkpoint, plan: Plan) -> ModelInfo:
    """What is known of an opened model."""
    weights = Counter[str]()
    for tensor in checkpoint.tensors.values():
        weights[tensor.format.name] += prod(tensor.shape)
    stat = file.path.stat()
    made = file.made
    template = jinja_of(made.template) if made and made.template else template_source(checkpoint) or ""
    embedding = plan.output is not None and plan.output.rows == "N"
    capabilities = ["embedding" if embedding else "completion"]
    if not embedding and "tools" in template:
        capabilities.append("tools")
    if not embedding and thinks(template):
        capabilities.append("thinking")
    if not embedding and has_marks(_spellings(checkpoint)):
        capabilities.append("insert")
    return ModelInfo(
        name=file.name,
        path=file.path,
        kind=checkpoint.kind,
        architecture=plan.name,
        n_parameters=sum(weights.values()),
        quantization=weights.most_common(1)[0][0] if weights else "none",
        context=plan.context,
        embedding_length=next(op.out.width for op in plan.ops),
        size_bytes=sum(t.n_bytes for t in checkpoint.tensors.values()),
        modified=datetime.fromtimestamp((file.manifest or file.path).stat().st_mtime, UTC),
        digest=manifest_digest(file.manifest)
        if file.manifest
        else _digest(file.path, stat.st_size, stat.st_mtime_ns, checkpoint),
        license="\n".join(made.license if made else ())
        or str(checkpoint.metadata.get("general.license", "")),
        capabilities=tuple(capabilities),
        made=made,
    )


def _spellings(checkpoint: Checkpoint) -> Container[str]:
    """The spellings of tokens that a file lists; of a folder, those of its special tokens."""
    listed = checkpoint.metadata.get("tokenizer.ggml.tokens")
    if isinstance(listed, Strings):
        return listed
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return frozenset(str(token) for token in listed)
    settings = checkpoint.folder.get("tokenizer_config.json")
    return settings.read_text("utf-8", "replace") if settings else ""


def _digest(path: Path, size: int, changed_ns: int, checkpoint: Checkpoint) -> str:
    """SHA-256 over path, size, time of change and tensor table: an identity that costs no read of the
    weights.
    """
    state = hashlib.sha256(f"{path.resolve()}\n{size}\n{changed_ns}\n".encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        state.update(f"{name} {tensor.format.name} {tensor.shape}\n".encode())
    return state.hexdigest()
