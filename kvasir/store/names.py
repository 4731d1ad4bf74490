"""From the name a user types to the file that holds the model."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from kvasir.errors import CheckpointError, ModelError
from kvasir.records import dataclass
from kvasir.settings import read_settings
from kvasir.store import read_manifest
from kvasir.store.made import MANIFESTS, Made
from kvasir.store.name import canonical

DATA = Path(__file__).resolve().parent.parent / "data"
BUILT_IN = {"mead": DATA / "mead.gguf", "mead-draft": DATA / "mead-draft.gguf"}
FURTHER_PART = re.compile(
    r"-(?!00001)\d{5}-of-\d{5}\.gguf$"
)  # of a split file only the first part names the model


@dataclass(frozen=True)
class ModelFile:
    """A model that can be opened: the name to show, and its GGUF file or safetensors folder.

    `manifest`: where a model that was made of another is written down; `made`: what is written there, None
    while it is not read or cannot be.
    """

    name: str
    path: Path
    manifest: Path | None = None
    made: Made | None = None


def models_folder() -> Path:
    """Where the user keeps models: $KVASIR_MODELS, else ~/.kvasir/models."""
    return read_settings().models


def find(name: str) -> ModelFile:
    """The model a user means by `name`: a built-in, a path, or NAME[:TAG] in the models folder.

    Raises ModelError with the nearest names when there is none, or when the weights of a made model are
    gone; CheckpointError for a manifest that cannot be read.
    """
    if not name or "\0" in name:
        raise ModelError("the model's name is empty or has a NUL in it", hint="try `kvasir run mead`")
    whole = canonical(name)
    short = whole.removesuffix(":latest")
    if short in BUILT_IN:
        return ModelFile(f"{short}:latest", BUILT_IN[short])
    path = Path(name).expanduser()
    if _looks_like_path(name) or _is_model(path):
        if not path.exists():
            raise ModelError(
                f"no such file or folder: {name}", hint="`kvasir list` shows the models there are"
            )
        return ModelFile(name, path)
    for known in listing():
        if known.name in (name, f"{name}:latest", whole):
            return _complete(known)
    names = [f.name for f in listing()]
    near = difflib.get_close_matches(name, [*names, *(n.split(":")[0] for n in names)], 3, 0.6)
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?"
        if near
        else "`kvasir list` shows the models there are"
    )
    raise ModelError(f"model '{name}' not found", hint=hint)


def listing() -> list[ModelFile]:
    """Every model known by name: the built-in ones, then the models folder, newest first, then those that
    were made of others, by name.
    """
    built_in = [ModelFile(f"{name}:latest", path) for name, path in BUILT_IN.items() if path.exists()]
    folder = models_folder()
    paths = [p for p in folder.iterdir() if _is_model(p)] if folder.is_dir() else []
    paths.sort(key=lambda p: -p.stat().st_mtime)
    plain = [*built_in, *(ModelFile(_name_of(p), p) for p in paths)]
    taken = {file.name for file in plain}
    return [*plain, *(file for file in _made(folder, plain) if file.name not in taken)]


def manifests() -> list[Path]:
    """The manifests in the models folder."""
    return sorted((models_folder() / MANIFESTS).glob("**/*.json"))


def manifest_path(name: str) -> Path:
    """Where the manifest of the model called `name` (as lists show it) stands."""
    path, _, tag = name.rpartition(":")
    return models_folder() / MANIFESTS / path / f"{tag}.json"


def _made(folder: Path, plain: list[ModelFile]) -> list[ModelFile]:
    """The models with a manifest; one that cannot be read has its manifest for a path."""
    found = []
    paths = {file.name: file.path for file in plain}
    for manifest in manifests():
        name = f"{manifest.parent.relative_to(folder / MANIFESTS).as_posix()}:{manifest.stem}"
        try:
            made = read_manifest(manifest)
        except CheckpointError:
            found.append(ModelFile(name, manifest, manifest))
            continue
        path = paths.get(made.weights) or folder / made.weights  # an absolute path stays one
        found.append(ModelFile(name, path, manifest, made))
    return found


def _complete(file: ModelFile) -> ModelFile:
    """`file`, unless it was made of something that is not there any more."""
    if file.manifest and file.made is None:
        read_manifest(file.manifest)  # which raises
    if file.made and not file.path.exists():
        raise ModelError(
            f"the weights of {file.name} are gone: {file.made.weights}",
            hint=f"put them back, or `kvasir rm {file.name}` and make it again",
        )
    return file


def _name_of(path: Path) -> str:
    stem = path.stem if path.suffix == ".gguf" else path.name
    return stem if ":" in stem else f"{stem}:latest"


def _is_model(path: Path) -> bool:
    try:
        if path.is_dir():
            return (path / "config.json").is_file()
        return path.suffix == ".gguf" and path.is_file() and not FURTHER_PART.search(path.name)
    except OSError:
        return False


def _looks_like_path(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors")) or name.startswith((".", "/", "~"))
