"""`kvasir rm MODEL...`: deletes models."""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.cli.parser import Parser
from kvasir.cli.remote import forget
from kvasir.settings import Settings
from kvasir.store import library


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command, up to one that cannot be deleted.  Raises ModelError, UsageError."""
    it = Parser("rm", "Delete models.  Weights go with the last model that uses them.")
    it.add_argument("models", nargs="+", metavar="model", help="a name from `kvasir list`")
    for name in it.read(words).models:
        library.deletable(name)  # raises before the server lets go of it
        forget(settings, name)
        library.delete(name)
        print(f"deleted '{name}'")
    return 0
