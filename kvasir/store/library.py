"""The models folder as it changes: models are made, copied and deleted, and weights outlive those who share
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kvasir.errors import CapacityError, KvasirError, UsageError
from kvasir.store.blobs import blob_path, blobs_folder, link
from kvasir.store.files import parts
from kvasir.store.made import BLOBS, MANIFESTS, Made
from kvasir.store.manifests import read_manifest, write_manifest
from kvasir.store.name import parse_name
from kvasir.store.names import BUILT_IN, ModelFile, find, listing, manifest_path, manifests, models_folder

try:
    import fcntl
except ImportError:  # Windows: nobody else is waited for
    fcntl = None  # type: ignore[assignment]

FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", re.ASCII)  # a model's file, as clients name it
UNUSED_S = 86400.0  # a blob that nobody refers to, and an upload that did not end, go after


def destination(text: str) -> str:
    """The name under which a model called `text` is written down; case does not make another model.

    Raises UsageError for what is no name, and for one that a file or a built-in model has.
    """
    name = str(parse_name(text))
    for file in listing():
        if file.name.lower() != name.lower():
            continue
        if file.manifest:
            return file.name
        if _built_in(file.name):
            raise UsageError(f"{file.name} is built in and stays what it is", hint="choose another name")
        raise UsageError(
            f"{file.name} is a file of the models folder already",
            hint="delete it first, or choose another name",
        )
    return name


def write(name: str, made: Made) -> str:
    """Writes the model called `name`, in place of an earlier one; its digest.  Raises UsageError."""
    name = destination(name)
    with _alone():
        digest = write_manifest(manifest_path(name), made)
        _drop_unused(ago_s=UNUSED_S)
    return digest


def copy(source: str, name: str) -> str:
    """Gives the model called `source` a further name.  Weights are shared.  Raises ModelError, UsageError."""
    return write(name, based_on(find(source)))


def based_on(file: ModelFile) -> Made:
    """What a model has that is made of `file` and adds nothing."""
    if file.made:
        return replace(file.made, parent=file.name)
    return Made(weights(file), parent=file.name)


def weights(file: ModelFile) -> str:
    """How a manifest names the weights of a plain model: by name when it has one, else by path."""
    if any(file.name == known.name and not known.manifest for known in listing()):
        return file.name
    return str(file.path.resolve())


def deletable(name: str) -> ModelFile:
    """What `delete` would delete.  Raises ModelError, and UsageError for what is built in."""
    file = next((f for f in listing() if f.name in (name, f"{name}:latest")), None) or find(name)
    if _built_in(file.name):
        raise UsageError(f"{file.name} is built in and cannot be deleted")
    return file


def delete(name: str) -> str:
    """Deletes the model called `name`; its whole name.  Raises ModelError, UsageError.

    The weights go with the last model that uses them.
    """
    file = deletable(name)
    with _alone():
        try:
            if file.manifest:
                file.manifest.unlink()
                _remove_empty(file.manifest.parent)
            else:
                _delete_plain(file)
            _drop_unused(ago_s=UNUSED_S, now=file.made.weights if file.made else "")
        except OSError as error:
            raise UsageError(f"{file.name} cannot be deleted: {error.strerror}") from None
    return file.name


def folder_of(files: Mapping[str, str]) -> str:
    """Blobs by the names that a model's files have (name -> digest), as a folder; how a manifest names it.

    Raises UsageError for a blob that is not there and a name that is none.
    """
    found: dict[str, Path] = {}
    for name, digest in files.items():
        if not FILE.fullmatch(name):
            raise UsageError(f"files: {name[:60]!a} is not the name of a file")
        found[name] = blob_path(digest)
        if not found[name].is_file():
            raise UsageError(
                f"files: the blob {digest} of {name} is not here", hint="POST it to /api/blobs first"
            )
    if len(found) == 1 and next(iter(found)).endswith(".gguf"):
        return f"{BLOBS}/{next(iter(found.values())).name}"
    table = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    folder = blobs_folder() / f"folder-{hashlib.sha256(table.encode()).hexdigest()}"
    try:
        _link_all(found, folder)
    except OSError as error:
        raise CapacityError(f"the files cannot be put together: {error.strerror}") from None
    first = next((n for n in sorted(found) if n.endswith("-00001.gguf") or "-00001-of-" in n), "")
    return f"{BLOBS}/{folder.name}" + (f"/{first}" if first else "")


def _link_all(files: Mapping[str, Path], folder: Path) -> None:
    """A folder with these files, whole or not at all."""
    if folder.is_dir():
        return
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, path in files.items():
        link(path, fresh / name)
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(fresh, ignore_errors=True)  # somebody else was quicker


def tidy() -> None:
    """Removes what uploads that did not end have left, and blobs that no model uses, after a day.

    A folder that cannot be written to is left as it is.
    """
    if blobs_folder().is_dir():
        with contextlib.suppress(UsageError), _alone():
            _drop_unused(ago_s=UNUSED_S)


def _delete_plain(file: ModelFile) -> None:
    """Deletes a file or folder of the models folder.  Weights that other models use go to the blobs first."""
    users = [p for p in manifests() if _weights_of(p) == file.name]
    if users:
        kept = _kept(file)
        for manifest in users:
            write_manifest(manifest, replace(read_manifest(manifest), weights=kept))
    if file.path.is_symlink():
        file.path.unlink()
    elif file.path.is_dir():
        gone = file.path.with_name(f".{file.path.name}.{os.getpid()}.part")
        file.path.rename(gone)
        shutil.rmtree(gone)
    else:
        for part in parts(file.path):
            part.unlink()


def _kept(file: ModelFile) -> str:
    """The weights of `file` once more, without a copy of their bytes: a path elsewhere, or links."""
    if file.path.is_symlink():
        return str(file.path.resolve())
    stat = file.path.stat()
    mark = hashlib.sha256(f"{file.name} {stat.st_ino} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = blobs_folder() / f"kept-{mark}"
    if file.path.is_dir():
        for path in file.path.iterdir():
            if path.is_file():
                link(path, folder / path.name)
        return f"{BLOBS}/{folder.name}"
    for path in parts(file.path):
        link(path, folder / path.name)
    return f"{BLOBS}/{folder.name}/{file.path.name}"


def _drop_unused(ago_s: float, now: str = "") -> None:
    """Removes unfinished files, and blobs that no manifest names, which are older than `ago_s`; those of
    `now`, the weights of a model that was just deleted, at once.
    """
    folder = blobs_folder()
    used: set[str] = set()
    for manifest in manifests():
        try:
            used |= _blobs_of(read_manifest(manifest).weights)
        except KvasirError:
            return  # what it needs is not known
    at_once = _blobs_of(now)
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > ago_s
            if path.name not in used and (old or path.name in at_once):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _blobs_of(weights: str) -> set[str]:
    """The names of the blobs that a manifest's weights need."""
    return {weights.split("/")[1]} if weights.startswith(f"{BLOBS}/") else set()


def _weights_of(manifest: Path) -> str:
    try:
        return read_manifest(manifest).weights
    except KvasirError:
        return ""


def _remove_empty(folder: Path) -> None:
    while folder.name != MANIFESTS and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _built_in(name: str) -> bool:
    return name.removesuffix(":latest").lower() in BUILT_IN


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time changes the models folder."""
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise UsageError(f"the models folder cannot be written: {error.strerror}") from None
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def lock(handle: int) -> None:
    """Waits until no other process holds the file; it is let go when the file is closed."""
    if fcntl:
        fcntl.flock(handle, fcntl.LOCK_EX)
