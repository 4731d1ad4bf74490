"""`kvasir push`: what it says until there is somewhere to push to."""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.cli.parser import Parser
from kvasir.errors import UsageError
from kvasir.settings import Settings


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises UsageError."""
    it = Parser("push", "Upload a model (not supported yet).")
    it.add_argument("model", help="its name")
    it.add_argument("--insecure", action="store_true", help="taken for Ollama's sake")
    it.read(words)
    raise UsageError("Kvasir cannot upload models yet", hint="models are plain files: share those")
