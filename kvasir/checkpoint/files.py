"""Regular files, mapped read-only: what every checkpoint reader stands on."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvasir.errors import CheckpointError, ModelError

Bytes = npt.NDArray[np.uint8]
JSON_LIMIT_BYTES = 16 << 20
# Three bytes of JSON may become seventy in memory: what is counted is containers and values, not bytes alone.
MAX_JSON_CONTAINERS = 1 << 19
MAX_JSON_COMMAS = 1 << 20
WANTED = "a model is a GGUF file, or a folder with config.json and *.safetensors"
KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/fd/")


def regular_size(path: Path) -> int:
    """Bytes of the regular file `path` (links followed).

    Raises ModelError when nothing is there, CheckpointError for a device, a pipe, a socket, a folder, or a
    file that the kernel makes up: such things never end, never answer, or change under the reader.
    """
    try:
        info = path.stat()
        real = os.path.realpath(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file", hint="check the path") from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path.name!r}: cannot be opened: {_reason(e)}") from None
    if not stat.S_ISREG(info.st_mode) or real.startswith(KERNEL_FOLDERS):
        raise CheckpointError(f"{path}: not a regular file", hint=WANTED)
    return info.st_size


def map_file(path: Path) -> Bytes:
    """The bytes of a regular, non-empty file: uint8 [size], mapped: nothing is read before it is used."""
    if regular_size(path) == 0:
        raise CheckpointError(f"{path.name}: the file is empty (0 bytes)", hint="download it again")
    try:
        # O_NONBLOCK: should a pipe have taken the file's place since, opening it does not wait.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CheckpointError(f"{path}: not a regular file", hint=WANTED)
            return np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), np.uint8)
        finally:
            os.close(fd)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path.name}: cannot be read: {_reason(e)}") from None


def is_mapped(array: Bytes) -> bool:
    """Whether the bytes are a file's, mapped read-only: their pages can be given back and had again."""
    return _map_of(array) is not None


def give_back(arrays: Iterable[Bytes]) -> None:
    """The pages of the whole files that these arrays lie in leave this process, those around the arrays
    included; what is read again comes from the file.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in {m for array in arrays if (m := _map_of(array))}:
            mapped.madvise(mmap.MADV_DONTNEED)


def _map_of(array: Bytes) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    held = base.obj if isinstance(base, memoryview) else None
    return held if isinstance(held, mmap.mmap) else None


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, a file of that folder itself.

    Raises CheckpointError for a name with a path in it, and for a link that leads out, unless it is one of
    the Hugging Face cache's own: from <model>/snapshots/<revision>/ to <model>/blobs/.
    """
    if not name or name in (".", "..") or len(name) > 255 or any(c in name for c in "/\\:\0"):
        raise CheckpointError(f"{name[:80]!r} is not the name of a file in the model's folder")
    path = folder / name
    here, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    cache = here.parents[1] / "blobs" if here.parent.name == "snapshots" else None
    if not real.is_relative_to(here) and (cache is None or not real.is_relative_to(cache)):
        raise CheckpointError(
            f"{name}: a link that leads out of the model's folder", hint="copy the file there"
        )
    return path


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file of at most 16 MB.  Raises CheckpointError for anything else."""
    size = regular_size(path)
    if size > JSON_LIMIT_BYTES:
        raise CheckpointError(f"{path.name}: {size} bytes, at most {JSON_LIMIT_BYTES} are read")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path.name}: cannot be read: {_reason(e)}") from None
    return parse_json(data, path.name)


def parse_json(data: bytes, where: str) -> dict[str, object]:
    """The JSON object in `data`.  Raises CheckpointError for bad JSON, a key given twice, or no object."""
    if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS or data.count(b",") > MAX_JSON_COMMAS:
        raise CheckpointError(f"{where}: JSON with more entries than any model has")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_nan)
    except RecursionError:
        raise CheckpointError(f"{where}: JSON nested too deeply") from None
    except MemoryError:
        raise CheckpointError(f"{where}: JSON too large to read") from None
    except ValueError as e:
        raise CheckpointError(f"{where}: not valid JSON: {str(e)[:120]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object was expected")
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} is given twice")
            seen.add(key)
    return values


def _no_nan(name: str) -> float:
    # Python's json writes Infinity for an open limit; NaN means nothing anywhere.
    if name == "NaN":
        raise ValueError("NaN is not JSON")
    return float(name)


def _reason(e: Exception) -> str:
    # The text of an OSError repeats the path; only the reason is wanted.
    return (e.strerror or type(e).__name__) if isinstance(e, OSError) else str(e)
