"""`kvasir serve` from the moment it listens to its end."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread, Timer

from kvasir.api.doors import Welcome
from kvasir.api.house import House, Lending
from kvasir.api.keys import Keyring
from kvasir.api.server import server
from kvasir.cli.served import Served
from kvasir.runner.client import ModelProcess
from kvasir.runner.memory import budget_bytes
from kvasir.runner.registry import Models
from kvasir.runner.spawn import Started
from kvasir.settings import Address, Settings
from kvasir.store.library import tidy

SPARE_S = 600.0  # a process that no model was asked for is ended after


def run(
    listener: socket.socket,
    bound: Address,
    names: Served,
    values: argparse.Namespace,
    settings: Settings,
    spare: Started,
    keyring: Keyring | None,
    welcome: Welcome,
) -> None:
    """Answers until a signal ends it.  The first model goes into `spare`."""
    logging.basicConfig(
        level=logging.INFO if settings.debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )

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

    models = Models(load, bytes_beside=names.bytes_beside)
    budget = int(values.memory * 1e9) if values.memory else budget_bytes()
    house = House(
        models,
        settings.keep_alive_s,
        names.aliases,
        bound.host,
        budget,
        values.queue,
        names.adapters,
        keyring,
        Lending(Path(values.adapters_from), names.remember) if values.adapters_from else None,
        values.debug_state,
        welcome,
    )
    timer = Timer(SPARE_S, spare.drop)
    timer.daemon = True
    timer.start()
    Thread(target=tidy, name="tidy", daemon=True).start()
    try:
        server(house, bound, settings.debug > 0, values.grace).run(sockets=[listener])
    finally:
        house.close()
        for model in models.loaded():
            model.close()
        if models.n_loading:  # its process ends with this one; its thread would keep us waiting
            os._exit(0)
