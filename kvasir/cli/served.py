"""What `kvasir serve` is told of names: --alias NAME=MODEL and --adapter MODEL:NAME=PATH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from kvasir.errors import UsageError
from kvasir.records import dataclass
from kvasir.store.names import find, listing


@dataclass(frozen=True)
class Served:
    """`aliases`: names of requests, and of the models that answer them.  `adapters`: of those names the ones
    that mean an adapter too, and its own name.  `paths`: by a model's file, its adapters' paths by name;
    mutable, clients may add some.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    paths: dict[Path, dict[str, str]] = field(default_factory=dict)

    def of(self, model: str) -> Mapping[str, str]:
        """The adapters that the model called `model` is loaded with."""
        return self._there(find(model).path)

    def remember(self, model: str, name: str, path: str) -> None:
        """The model called `model` is loaded with this adapter from now on; without a path, no longer."""
        file = find(model).path.resolve()
        others = {key: own for key, own in self.paths.get(file, {}).items() if key != name}
        self.paths[file] = {**others, name: path} if path else others

    def bytes_beside(self, file: Path) -> int:
        """What the adapters of a model's file take."""
        from kvasir.checkpoint.adapters import open_adapter  # noqa: PLC0415  only where there are any

        return sum(open_adapter(path).n_bytes for path in self._there(file).values())

    def _there(self, file: Path) -> Mapping[str, str]:
        """The adapters of a model's file; one that is gone must not keep the model from starting."""
        return {
            name: path for name, path in self.paths.get(file.resolve(), {}).items() if Path(path).exists()
        }


def served(aliases: Sequence[str], adapters: Sequence[str]) -> Served:
    """The options' values, checked: the models and adapters are there.

    Raises UsageError, ModelError, CheckpointError.
    """
    names, meant, paths = dict[str, str](), dict[str, str](), dict[Path, dict[str, str]]()
    later = []  # aliases of adapters
    for text in aliases:
        name, equals, model = text.partition("=")
        if not (name and equals and model):
            raise UsageError(f"--alias {text[:60]!r}: write NAME=MODEL")
        if any(each.startswith(f"{model}=") for each in adapters):
            later.append((name, model))
        else:
            names[name] = _own_name(model)
    for text in adapters:
        whole, equals, path = text.partition("=")
        model, colon, name = whole.rpartition(":")
        if not (model and colon and name and equals and path):
            raise UsageError(f"--adapter {text[:60]!r}: write MODEL:NAME=PATH",
                             hint="requests ask for it as MODEL:NAME")  # fmt: skip
        base = names.get(model) or _own_name(model)
        if whole in names or _is_model(whole):
            raise UsageError(f"--adapter {whole}: that name is taken", hint="choose another")
        from kvasir.checkpoint.adapters import open_adapter  # noqa: PLC0415  numpy, only where it is needed

        full = str(Path(path).expanduser().absolute())
        open_adapter(full)
        names[whole] = base
        meant[whole] = whole
        paths.setdefault(find(base).path.resolve(), {})[whole] = full
    for name, whole in later:
        names[name], meant[name] = names[whole], meant[whole]
    return Served(names, meant, paths)


def _is_model(name: str) -> bool:
    return any(file.name in (name, f"{name}:latest") for file in listing())


def _own_name(model: str) -> str:
    """A model's name in the list, if it has one, so that it is not loaded twice; else what was given."""
    file = find(model)
    if file.made:
        return file.name
    known = (
        each.name for each in listing() if not each.manifest and each.path.resolve() == file.path.resolve()
    )
    return next(known, model)
