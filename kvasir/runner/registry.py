"""The models in memory: loaded once, shared by everyone who names them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from kvasir.runner.model import Model
from kvasir.store.names import find


class Models:
    """Loaded models by name.  Mutable and thread-safe; while one thread loads a model, others wait for it."""

    def __init__(self, load: Callable[[str], Model] = Model.load):
        self._load = load
        self._models: dict[str, Future[Model]] = {}
        self._keys: dict[str, str] = {}  # from what was asked for: its file may be gone when it is freed
        self._lock = threading.Lock()

    def get(self, name: str) -> Model:
        """The model called `name`, loaded if it is not.  Raises what loading raises, and keeps no failure."""
        key = find(name).name
        with self._lock:
            self._keys[name] = key
            future = self._models.get(key)
            mine = future is None
            if future is None:
                future = self._models[key] = Future()
        if mine:
            try:
                future.set_result(self._load(name))
            except BaseException as e:
                with self._lock:
                    if self._models.get(key) is future:
                        del self._models[key]
                future.set_exception(e)
        return future.result()

    def loaded(self) -> list[Model]:
        """The models that are ready, oldest first."""
        with self._lock:
            ready = [f for f in self._models.values() if f.done() and f.exception() is None]
        return [f.result() for f in ready]

    def unload(self, name: str) -> bool:
        """Frees the model called `name`, once it is loaded; False when it was not in memory."""
        key = self._keys.pop(name, None) or find(name).name
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
