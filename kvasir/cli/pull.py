"""`kvasir pull` and `kvasir push`: what they say until there is somewhere to pull from."""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.cli.parser import Parser
from kvasir.errors import ModelError, UsageError
from kvasir.settings import Settings
from kvasir.store.names import find, models_folder


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command: a model that is here needs no pull.  Raises UsageError for any other."""
    it = Parser("pull", "Download a model (not supported yet).")
    it.add_argument("model", help="its name")
    it.add_argument("--insecure", action="store_true", help="taken for Ollama's sake")
    name = it.read(words).model
    try:
        print(f"{find(name).name} is here already")
    except ModelError:
        raise UsageError(
            "Kvasir cannot download models yet",
            hint=f"put a GGUF file or a safetensors folder into {models_folder()}, or run it by its path",
        ) from None
    return 0
