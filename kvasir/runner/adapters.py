"""The adapters of a loaded model, by the names that requests use."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from kvasir.checkpoint.adapters import open_adapter
from kvasir.checkpoint.config import Config
from kvasir.checkpoint.tensor import LowRank
from kvasir.errors import CapacityError, UsageError
from kvasir.models.adapters import fit_adapter
from kvasir.plan import Plan
from kvasir.records import dataclass
from kvasir.runner.memory import available_bytes

MAX_NAME = 128


@dataclass(frozen=True)
class AdapterInfo:
    """A loaded adapter.  `key`: SHA-256 of its content.  `n_bytes`: what it takes in memory."""

    name: str
    path: Path
    key: str
    rank: int
    n_bytes: int


@dataclass(frozen=True)
class Base:
    """What an adapter must fit: the model's configuration and its plan."""

    config: Config
    plan: Plan

    def open(self, name: str, path: Path | str) -> tuple[AdapterInfo, Mapping[str, LowRank]]:
        """The adapter at `path`, brought to the model's products.

        Raises UsageError for a bad name, ModelError when there is no adapter, CheckpointError for one that is
        damaged, does more than LoRA or is for another model, CapacityError when memory has no room for it.
        """
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise UsageError(f"{name[:MAX_NAME]!r} is no name for an adapter", hint="use letters and digits")
        file = open_adapter(Path(path).expanduser())
        room = available_bytes()
        if file.n_bytes > room:
            raise CapacityError(f"the adapter {name} needs {file.n_bytes:,} bytes and {room:,} are free",
                                hint="unload another adapter or model")  # fmt: skip
        fitted = fit_adapter(file, self.config, self.plan)
        n_bytes = sum(low.n_bytes for low in fitted.values())
        return AdapterInfo(name, file.path, file.digest(), file.rank, n_bytes), fitted


def unknown(name: str, known: Mapping[str, AdapterInfo]) -> UsageError:
    """What a request for an adapter is told that is not there."""
    if not known:
        return UsageError(f"no adapter {name[:MAX_NAME]!r} is loaded", hint="the model has none")
    near = difflib.get_close_matches(name[:MAX_NAME], known, 1, 0.5) or sorted(known)[:8]
    return UsageError(f"no adapter {name[:MAX_NAME]!r} is loaded", hint=f"there is {', '.join(near)}")
