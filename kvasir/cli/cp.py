"""`kvasir cp SOURCE NAME`: a further name for a model."""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.cli.parser import Parser
from kvasir.cli.remote import forget
from kvasir.settings import Settings
from kvasir.store import library


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises ModelError, UsageError."""
    it = Parser("cp", "Give a model a further name.  The weights are shared, not copied.")
    it.add_argument("source", help="a name from `kvasir list`, or a path")
    it.add_argument("name", help="the further name: NAME or NAME:TAG")
    values = it.read(words)
    library.copy(values.source, values.name)
    forget(settings, values.name)
    print(f"copied '{values.source}' to '{values.name}'")
    return 0
