"""From the name in a request to a model that the server knows; never a path, which would probe the disk."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvasir.api.words import short
from kvasir.errors import ModelError
from kvasir.store.made import Made
from kvasir.store.name import canonical
from kvasir.store.names import find, listing

NO_ADAPTERS: Mapping[str, str] = {}


class NotHere(ModelError):
    """No model of that name is known."""


@dataclass(frozen=True)
class Target:
    """A model that the server knows.  `load`: the name or path under which it is loaded, which models that
    share weights and template have in common; `made`: what is then to be added to each request; `adapter`:
    the name of the model's adapter that is meant.
    """

    name: str
    load: str
    made: Made | None = None
    adapter: str = ""


def resolve(name: str, aliases: Mapping[str, str]) -> str:
    """The name or path of the model called `name`: an alias, or a name of the list.

    Tags default to "latest"; case does not matter.  Raises NotHere, with the same words whether or not a file
    of that name exists.
    """
    for form in (name, name.removesuffix(":latest")):
        if form in aliases:
            return aliases[form]
    names = [file.name for file in listing()]
    wanted = (name.lower(), f"{name.lower()}:latest", canonical(name).lower())
    for known in sorted(names, key=lambda n: n not in (name, f"{name}:latest")):
        if known.lower() in wanted:
            return known
    if "*" in aliases:
        return aliases["*"]
    told = [*(n.removesuffix(":latest") for n in names), *aliases]
    near = difflib.get_close_matches(name.removesuffix(":latest")[:100], told, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else "GET /api/tags lists the models there are"
    raise NotHere(f"model '{short(name)[1:-1]}' not found", hint=hint)


def target(name: str, aliases: Mapping[str, str], adapters: Mapping[str, str] = NO_ADAPTERS) -> Target:
    """The model called `name`, as it is loaded.  Raises NotHere, and what `find` raises."""
    for form in (name, name.removesuffix(":latest")):
        if form in adapters:
            return replace(target(name, aliases), name=form, adapter=adapters[form])
    known = resolve(name, aliases)
    files = {file.name: file for file in listing()}
    if known not in files or not files[known].manifest:
        return Target(known, known)
    file = find(known)
    if file.made is None or file.made.template or file.made.adapter:
        return Target(known, known)  # a template or an adapter of its own goes into a process of its own
    weights = file.made.weights
    plain = weights in files and not files[weights].manifest
    return Target(known, weights if plain else str(file.path), file.made)
