"""A server with real models, on a free port, for tests of clients; and a tiny encoder."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from kvasir.api.house import House
from kvasir.api.server import server
from kvasir.cli.served import Served
from kvasir.runner.client import ModelProcess
from kvasir.runner.registry import Models
from kvasir.settings import Address
from tests.parity.cases import GOLDEN


@contextmanager
def real_server(names: Served | None = None, **wishes) -> Iterator[str]:
    """The address of a server whose models run in processes of their own, as under `kvasir serve`."""
    if names:
        wishes |= {"aliases": names.aliases, "adapters": names.adapters}

    def load(name: str, **told) -> ModelProcess:
        return ModelProcess.load(name, threads=1, adapters=names.of(name) if names else {}, **told)

    models = Models(load)
    house = House(models, **wishes)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    port = sock.getsockname()[1]
    running = server(house, Address("127.0.0.1", port))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(20)
        house.close()
        for model in models.loaded():
            model.close()
        assert not thread.is_alive()


def encoder(folder: Path) -> Path:
    """A random BERT [32 wide, 64 tokens] whose words are "a" and "b", as a folder with safetensors."""
    shutil.copytree(GOLDEN / "bert", folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.decoder = tokenizers.decoders.WordPiece()
    words.save(str(folder / "tokenizer.json"))
    return folder
