"""The house behind `kvasir serve`: all that a server needs beyond the port it listens on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread, Timer

from kvasir.api.doors import Welcome
from kvasir.api.house import House, Lending
from kvasir.api.keys import Keyring
from kvasir.api.measures import Measures
from kvasir.api.server import application
from kvasir.cli.served import Served
from kvasir.runner.client import ModelProcess
from kvasir.runner.memory import budget_bytes
from kvasir.runner.registry import Models
from kvasir.runner.spawn import Started
from kvasir.settings import Address, Settings
from kvasir.store.library import tidy

SPARE_S = 600.0  # a process that no model was asked for is ended after


class Opened:
    """A house that serves.  The first model goes into `spare`."""

    def __init__(
        self,
        bound: Address,
        names: Served,
        values: argparse.Namespace,
        settings: Settings,
        spare: Started,
        keyring: Keyring | None,
        welcome: Welcome,
        measures: Measures,
    ):
        def load(name: str, /, *, nth: int, progress: Callable[[str], None]) -> ModelProcess:
            return ModelProcess.load(
                name,
                threads=settings.threads,
                kv_format=settings.kv,
                adapters=names.of(name),
                nth=nth,
                progress=progress,
                spare=spare,
            )

        self._models = Models(load, bytes_beside=names.bytes_beside)
        self._house = House(
            self._models,
            settings.keep_alive_s,
            names.aliases,
            bound.host,
            int(values.memory * 1e9) if values.memory else budget_bytes(),
            values.queue,
            names.adapters,
            keyring,
            Lending(Path(values.adapters_from), names.remember) if values.adapters_from else None,
            values.debug_state,
            welcome,
            measures,
        )
        self.app, self.residents = application(self._house), self._house.residents
        timer = Timer(SPARE_S, spare.drop)
        timer.daemon = True
        timer.start()
        Thread(target=tidy, name="tidy", daemon=True).start()

    def close(self) -> None:
        """Frees all models."""
        self._house.close()
        for model in self._models.loaded():
            model.close()
        if self._models.n_loading:  # its process ends with this one; its thread would keep us waiting
            os._exit(0)
