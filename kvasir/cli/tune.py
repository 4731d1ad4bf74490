"""`kvasir tune MODEL`: finds the fastest configurations of the GPU's kernels for a model's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from kvasir.backends.devices import cuda_backend
from kvasir.checkpoint.open import open_checkpoint
from kvasir.cli.parser import Parser
from kvasir.models import build
from kvasir.settings import Settings
from kvasir.store.names import find


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises UsageError without torch or a GPU, and what opening a model raises."""
    it = Parser("tune", "Measure which configurations of the GPU's kernels are fastest, and keep them.")
    it.add_argument("model", help="a model whose shapes are tried: a name, a GGUF file or a folder")
    name = it.read(words).model
    cuda_backend()  # says what is missing
    plan, _ = build(open_checkpoint(find(name).path))
    import_module("kvasir.backends.cuda.trials").tune_plan(plan)
    return 0
