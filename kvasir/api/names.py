"""From the name in a request to a model that the server knows; never a path, which would probe the disk."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from kvasir.api.words import short
from kvasir.errors import ModelError
from kvasir.store.names import listing


class NotHere(ModelError):
    """No model of that name is known."""


def resolve(name: str, aliases: Mapping[str, str]) -> str:
    """The name or path under which the model called `name` is loaded: an alias, or a name of the list.

    Tags default to "latest"; case does not matter.  Raises NotHere, with the same words whether or not a file
    of that name exists.
    """
    for form in (name, name.removesuffix(":latest")):
        if form in aliases:
            return aliases[form]
    names = [file.name for file in listing()]
    wanted = (name.lower(), f"{name.lower()}:latest")
    for known in sorted(names, key=lambda n: n not in (name, f"{name}:latest")):
        if known.lower() in wanted:
            return known
    if "*" in aliases:
        return aliases["*"]
    told = [*(n.removesuffix(":latest") for n in names), *aliases]
    near = difflib.get_close_matches(name.removesuffix(":latest")[:100], told, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else "GET /api/tags lists the models there are"
    raise NotHere(f"model '{short(name)[1:-1]}' not found", hint=hint)
