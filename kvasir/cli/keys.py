"""`kvasir keys`: who may use the server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kvasir.api.keys import Key, add_key, keys_path, read_keys, remove_key
from kvasir.cli.parser import Parser
from kvasir.errors import UsageError
from kvasir.settings import Settings

ACTIONS = {"add": "add", "ls": "ls", "list": "ls", "rm": "rm", "remove": "rm"}


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises UsageError."""
    it = Parser("keys", "API keys for `kvasir serve`: once there is one, every request needs one.")
    it.add_argument("action", choices=tuple(ACTIONS), metavar="add|ls|rm")
    it.add_argument("name", nargs="?", help="whose key it is, for add and rm")
    it.add_argument(
        "--requests-per-minute", type=int, metavar="N", help="more get 429, and when to come again"
    )
    it.add_argument(
        "--tokens-per-minute", type=int, metavar="N", help="of prompts and answers; more get 429 too"
    )
    it.add_argument(
        "--admin", action="store_true", help="it may also create, copy and delete models, and load adapters"
    )
    values = it.read(words)
    action, path = ACTIONS[values.action], keys_path()
    if (action == "ls") == bool(values.name):
        raise UsageError("`kvasir keys ls` takes no name" if values.name else f"{action} takes a NAME")
    if action != "add" and (values.requests_per_minute or values.tokens_per_minute or values.admin):
        raise UsageError("limits and --admin go with `kvasir keys add`")
    if action == "add":
        text = add_key(path, values.name, values.requests_per_minute, values.tokens_per_minute, values.admin)
        print(text)
        note = f"this is the only time that the key of {values.name} is shown"
        print(f"kvasir: {note}", file=sys.stderr)  # a program that reads the key gets the key alone
    elif action == "rm":
        remove_key(path, values.name)
        print(f"the key of {values.name} is no longer valid")
    else:
        print("\n".join(listed(read_keys(path))))
    return 0


def listed(keys: Sequence[Key]) -> list[str]:
    """A line for each key, under a head."""
    rows = [["NAME", "CREATED", "REQUESTS/MIN", "TOKENS/MIN", "MAY"]]
    for key in keys:
        limits = (key.requests_per_minute, key.tokens_per_minute)
        rows.append([key.name, f"{key.created:%Y-%m-%d}", *(f"{n:,}" if n else "-" for n in limits)])
        rows[-1].append("ask, change models" if key.admin else "ask")
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
