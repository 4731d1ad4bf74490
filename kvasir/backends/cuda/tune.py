"""`kvasir tune`: which configuration of a kernel is fastest on this GPU, found by measuring, kept as JSON.

A table is a file a GPU, ~/.cache/kvasir/tuned/NAME.json (or XDG_CACHE_HOME), and beside it those that come
with the package (kernels/tables).  Kernels ask `chosen` for a configuration by their name and key, and
without one they have a rule of their own; nothing is measured while a model runs, or when anything is
imported.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
Config = Mapping[str, int]
PACKAGED = Path(__file__).parent / "kernels" / "tables"


@dataclass(frozen=True)
class Trial:
    """One question: a kernel at a key ("gemv q4_0 4096x4096 rows 1"), and how each candidate is run.

    `run(config)` gives seconds, the best of a few, and raises what the compiler raises; `right(config)` says
    whether its result is that of the plain operation.
    """

    kernel: str
    key: str
    candidates: Sequence[Config]
    run: Callable[[Config], float]
    right: Callable[[Config], bool]


@dataclass(frozen=True)
class Found:
    """The answer: the fastest candidate that is right, its seconds, and those of the first candidate."""

    config: Config
    seconds: float
    default_s: float


def file_of(gpu: str, folder: Path | None = None) -> Path:
    """The table of a GPU by its name, "NVIDIA H100 80GB HBM3"."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return (folder or tuned_folder()) / f"{name}.json"


def key_of(shape: Sequence[int]) -> str:
    """A kernel's key: what fixes its shape, as the kernels name it (rows, outputs, width, 1 if gated)."""
    return "x".join(map(str, shape))


def tuned_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "kvasir" / "tuned"


def best(trial: Trial) -> Found | None:
    """Tries every candidate; those that do not compile or are wrong are out.  None if all are."""
    times = dict[int, float]()
    for i, config in enumerate(trial.candidates):
        try:
            if trial.right(config):
                times[i] = trial.run(config)
        except Exception:  # too much shared memory, too many registers: another candidate has to do
            continue
    if not times:
        return None
    i = min(times, key=lambda i: times[i])
    return Found(trial.candidates[i], times[i], times.get(0, times[i]))


def tune(trials: Sequence[Trial], say: Callable[[str], None]) -> dict[str, dict[str, Config]]:
    """The table of all trials, told line by line: kernel -> key -> configuration."""
    table: dict[str, dict[str, Config]] = {}
    for trial in trials:
        found = best(trial)
        if found is None:
            say(f"{trial.kernel} {trial.key}: no candidate works here")
            continue
        table.setdefault(trial.kernel, {})[trial.key] = dict(found.config)
        gain = found.default_s / found.seconds
        took = f"{found.seconds * 1e6:.1f} us, {gain:.2f} times the rule"
        say(f"{trial.kernel} {trial.key}: {dict(found.config)} {took}")
    return table


def save(path: Path, gpu: str, table: Mapping[str, Mapping[str, Config]]) -> None:
    """Writes a table whole or not at all, over what is there; keys that were not tried stay as they were."""
    merged = {kernel: dict(keys) for kernel, keys in load(path).items()}
    for kernel, keys in table.items():
        merged.setdefault(kernel, {}).update(keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, "gpu": gpu, "kernels": merged}, indent=1, sort_keys=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text + "\n")
    os.replace(part.name, path)


def load(path: Path) -> dict[str, dict[str, Config]]:
    """A table; an empty one where the file is missing, of another version, or not what it should be."""
    try:
        told: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if (
        not isinstance(told, dict)
        or told.get("version") != VERSION
        or not isinstance(told.get("kernels"), dict)
    ):
        return {}
    return {
        str(kernel): {str(key): config for key, config in keys.items() if _is_config(config)}
        for kernel, keys in told["kernels"].items()
        if isinstance(keys, dict)
    }


def _is_config(it: object) -> bool:
    return isinstance(it, dict) and all(isinstance(k, str) and type(v) is int for k, v in it.items())


class Tables:
    """What is tuned for one GPU: the user's own table, and below it the package's.  Read once, when made."""

    def __init__(self, gpu: str, own: Path | None = None, packaged: Path = PACKAGED) -> None:
        self._tables = [load(file_of(gpu, own)), load(file_of(gpu, packaged))]

    def chosen(self, kernel: str, key: str) -> Config | None:
        """The configuration for a kernel at a key; None where nobody measured it."""
        for table in self._tables:
            if config := table.get(kernel, {}).get(key):
                return config
        return None
