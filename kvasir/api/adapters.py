"""Adapters that clients load and unload while the server runs, on vLLM's paths.

Only files in the folder that the server was told of can be loaded, so a client learns nothing of others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kvasir.api.body import decode, typed, unknown
from kvasir.api.errors import Wrong
from kvasir.api.house import House, Lending, warned
from kvasir.api.http import read_body
from kvasir.api.loaded import Adaptable
from kvasir.api.names import NotHere, Target
from kvasir.checkpoint.adapters import WEIGHTS
from kvasir.errors import UsageError
from kvasir.store.names import listing


class LoadWish(msgspec.Struct):
    """The body of a load.  Without `base_model_name` the part of the name before its last colon is the
    model's.
    """

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadWish(msgspec.Struct):
    """The body of an unload.  `lora_int_id`: vLLM's, without meaning here."""

    lora_name: str
    lora_int_id: int | None = None


def routes(house: House) -> list[Route]:
    """What the server answers about adapters."""
    desk = Desk(house)
    return [
        Route("/v1/load_lora_adapter", desk.load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", desk.unload, methods=["POST"]),
    ]


class Desk:
    """The handlers.  They change the house's names, so they run in its event loop."""

    def __init__(self, house: House):
        self._house = house

    async def load(self, request: Request) -> Response:
        """Loads the model too, if it is not in memory: whether an adapter fits is known only then."""
        raw = decode(await read_body(request))
        wish, house, lending = typed(raw, LoadWish), self._house, self._allowed()
        path = await house.in_thread(lambda: inside(lending.folder, wish.lora_path))
        name = wish.lora_name
        model = wish.base_model_name or name.rpartition(":")[0]
        if not model:
            raise Wrong(
                f"{name[:80]!a} does not say of which model",
                hint="call it MODEL:NAME, or add base_model_name",
                param="lora_name",
            )
        base = await house.resolved(model)
        if base.adapter:
            raise Wrong(f"{model[:80]!a} is a model with an adapter", param="base_model_name")
        is_ours = house.adapters.get(name) == name and house.aliases[name] == base.load
        if not is_ours and (name in house.aliases or await house.in_thread(lambda: _is_listed(name))):
            raise Wrong(f"the name {name[:80]!a} is taken", hint="choose another", param="lora_name")
        async with house.residents.use(Target(base.load, base.load)) as held:
            loaded = cast(Adaptable, held.model)
            if is_ours and wish.load_inplace:
                await house.in_loader(lambda: loaded.unload_adapter(name))
            await house.in_loader(lambda: loaded.load_adapter(name, str(path)))
        lending.remember(base.load, name, str(path))
        house.aliases = {**house.aliases, name: base.load}
        house.adapters = {**house.adapters, name: name}
        return PlainTextResponse(
            f"Success: {name} is loaded.", headers=warned(request, unknown(raw, LoadWish))
        )

    async def unload(self, request: Request) -> Response:
        """Answers under way go on to their end."""
        raw = decode(await read_body(request))
        wish, house, lending = typed(raw, UnloadWish), self._house, self._allowed()
        name = wish.lora_name
        if house.adapters.get(name) != name:
            raise NotHere(f"no adapter {name[:80]!a} was loaded here")
        base = house.aliases[name]
        house.aliases = {key: model for key, model in house.aliases.items() if key != name}
        house.adapters = {key: own for key, own in house.adapters.items() if key != name}
        lending.remember(base, name, "")
        for seat in house.residents.seats():
            if seat.name == base and seat.model and seat.model.alive:
                loaded = cast(Adaptable, seat.model)
                await house.in_loader(lambda loaded=loaded: loaded.unload_adapter(name))  # type: ignore[misc]
        return PlainTextResponse(
            f"Success: {name} is gone.", headers=warned(request, unknown(raw, UnloadWish))
        )

    def _allowed(self) -> Lending:
        if self._house.lending is None:
            raise UsageError("this server loads no adapters for its clients",
                             hint="start it with --adapters-from FOLDER")  # fmt: skip
        return self._house.lending


def inside(folder: Path, wanted: str) -> Path:
    """The adapter that a client means, a file or folder under `folder`.

    Raises Wrong, with the same words for what is not there and what lies elsewhere.
    """
    real = Path(os.path.realpath(folder / wanted)) if "\0" not in wanted else folder
    ours = Path(os.path.realpath(folder))
    # What a folder's weights are a link to must not lead out either; `open_adapter` sees to that.
    if real == ours or not real.is_relative_to(ours) or not (real.is_file() or (real / WEIGHTS).is_file()):
        raise Wrong("there is no such adapter in the folder of adapters", param="lora_path")
    return real


def _is_listed(name: str) -> bool:
    return any(file.name in (name, f"{name}:latest") for file in listing())
