"""`kvasir stop MODEL`: the server frees it, after its last answer."""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.cli.parser import Parser
from kvasir.cli.remote import ask
from kvasir.settings import Settings


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises UsageError when no server runs, or for a model that it does not know."""
    it = Parser("stop", "Have the server free a model, after its last answer.")
    it.add_argument("model", help="a name from `kvasir ps`")
    ask(settings, "POST", "/api/generate", {"model": it.read(words).model, "keep_alive": 0})
    return 0
