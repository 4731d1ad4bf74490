"""`kvasir list [PREFIX]`: the models there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from kvasir.cli.parser import Parser
from kvasir.cli.terminal import columns, human_bytes, human_time
from kvasir.errors import KvasirError
from kvasir.runner.inspect import describe
from kvasir.settings import Settings
from kvasir.store.names import listing


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command."""
    it = Parser("list", "The models there are: built-in ones, and those in the models folder.")
    it.add_argument("prefix", nargs="?", default="", help="only names that begin so")
    print(table(it.read(words).prefix))
    return 0


def table(prefix: str) -> str:
    """Name, identity, size and age of each model whose name begins with `prefix`.  A broken one says so."""
    rows = [("NAME", "ID", "SIZE", "MODIFIED")]
    for file in listing():
        if not file.name.lower().startswith(prefix.lower()):
            continue
        try:
            info = describe(file.name)
        except KvasirError as error:
            rows.append((file.name, "-", "-", f"unusable: {error.message}"))
            continue
        age_s = (datetime.now(UTC) - info.modified).total_seconds()
        rows.append((info.name, info.digest[:12], human_bytes(info.size_bytes), human_time(age_s)))
    return columns(rows)
