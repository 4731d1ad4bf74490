"""The models in memory: loaded once, shared by all who name them, started again when their process ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import Generic, Protocol, TypeVar

from kvasir.errors import Busy, Lost, ModelError
from kvasir.records import dataclass
from kvasir.runner.client import ModelProcess
from kvasir.runner.memory import expected_bytes
from kvasir.store.names import find

DEATHS = 5  # processes that ended while loading, one after another, until the next has to wait
WAIT_S, LONGEST_WAIT_S = 10.0, 300.0  # how long: doubled with every further one


class Member(Protocol):
    """What the registry needs of a loaded model."""

    @property
    def alive(self) -> bool: ...
    def close(self) -> None: ...


M = TypeVar("M", bound=Member)
M_co = TypeVar("M_co", bound=Member, covariant=True)


class Load(Protocol[M_co]):
    """Loads a model.  `nth`: how many times it was loaded here, this time included."""

    def __call__(self, name: str, /, *, nth: int, progress: Callable[[str], None]) -> M_co: ...


@dataclass
class _Past:
    """What became of earlier loads of a model.  Mutable; guarded by the registry's lock."""

    n_loads: int = 0
    n_deaths: int = 0  # running
    reason: str = ""
    not_before: float = 0.0  # seconds of `monotonic`
    stage: str = ""

    def died(self, reason: str, now: float) -> None:
        self.n_deaths += 1
        self.reason = reason
        if self.n_deaths >= DEATHS:
            self.not_before = now + min(WAIT_S * 2 ** min(self.n_deaths - DEATHS, 10), LONGEST_WAIT_S)


class Models(Generic[M]):
    """Loaded models by name.  Mutable and thread-safe; while one thread loads a model, others wait for it."""

    def __init__(
        self,
        load: Load[M] = ModelProcess.load,  # type: ignore[assignment]
        now: Callable[[], float] = monotonic,
        bytes_beside: Callable[[Path], int] = lambda file: 0,
    ):
        """`bytes_beside`: what goes into memory with a model's file: its adapters."""
        self._load, self._now, self._bytes_beside = load, now, bytes_beside
        self._models: dict[str, Future[M]] = {}
        self._past: dict[str, _Past] = {}
        self._keys: dict[str, str] = {}  # from what was asked for: its file may be gone when it is freed
        self._lock = threading.Lock()

    def get(self, name: str) -> M:
        """The model called `name`, loaded if it is not, or no longer.

        Raises what loading raises, and keeps no failure; and Busy without trying, for a while, when the
        processes of the last five loads ended in the middle of it.
        """
        key = find(name).name
        with self._lock:
            self._keys[name] = key
            past = self._past.setdefault(key, _Past())
            future = self._models.get(key)
            if future and future.done() and future.exception() is None and not future.result().alive:
                future = None
            mine = future is None
            if future is None:
                self._may_try(key, past)
                past.n_loads += 1
                future = self._models[key] = Future()
        if mine:
            self._fill(future, name, key, past)
        return future.result()

    def size(self, name: str) -> int:
        """Bytes that the model called `name` is expected to take.  Raises ModelError."""
        try:
            file = find(name).path
            return expected_bytes(file) + self._bytes_beside(file)
        except OSError as error:
            raise ModelError(f"{name} cannot be read: {error.strerror}") from None

    def stage(self, name: str) -> str:
        """What loading the model called `name` is at; empty when it is not being loaded."""
        past = self._past.get(self._keys.get(name, name))
        return past.stage if past else ""

    def loaded(self) -> list[M]:
        """The models that are ready, oldest first."""
        with self._lock:
            ready = [f for f in self._models.values() if f.done() and f.exception() is None]
        return [f.result() for f in ready]

    @property
    def n_loading(self) -> int:
        with self._lock:
            return sum(not future.done() for future in self._models.values())

    def unload(self, name: str) -> bool:
        """Frees the model called `name`, once it is loaded; False when it was not in memory."""
        key = self._keys.get(name) or find(name).name
        with self._lock:
            future = self._models.pop(key, None)
        if future is None or future.exception() is not None:
            return False
        future.result().close()
        return True

    def close(self) -> None:
        """Frees every model, those being loaded too."""
        with self._lock:
            futures, self._models = list(self._models.values()), {}
        for future in futures:
            if future.exception() is None:
                future.result().close()

    def _may_try(self, key: str, past: _Past) -> None:
        wait_s = past.not_before - self._now()
        if wait_s > 0:
            raise Busy(
                f"{key} was started {past.n_deaths} times running and did not get up: {past.reason}",
                hint=f"the next try is in {wait_s:.0f} s",
                wait_s=wait_s,
            )

    def _fill(self, future: Future[M], name: str, key: str, past: _Past) -> None:
        """Loads, and tells those who wait."""

        def progress(stage: str) -> None:
            past.stage = stage

        past.stage = "starting"
        try:
            model = self._load(name, nth=past.n_loads, progress=progress)
        except BaseException as error:
            with self._lock:
                if self._models.get(key) is future:
                    del self._models[key]
                if isinstance(error, Lost):
                    past.died(error.message, self._now())
            past.stage = ""
            future.set_exception(error)
        else:
            past.n_deaths, past.stage = 0, ""
            future.set_result(model)
