"""The server: its routes, and what a request passes on its way to them."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from kvasir.api import adapters, ollama_routes, ollama_store, own, top
from kvasir.api.anthropic import routes as anthropic
from kvasir.api.counting import Counting
from kvasir.api.drain import Draining
from kvasir.api.front import configured
from kvasir.api.gate import Doors
from kvasir.api.gemini import routes as gemini
from kvasir.api.guard import Guard
from kvasir.api.house import House
from kvasir.api.http import on_bug, on_gone, on_http_error, on_kvasir_error
from kvasir.api.openai import routes as openai
from kvasir.errors import KvasirError
from kvasir.settings import GRACE_S, Address

PROTOCOLS = (  # a line each
    own.routes,
    ollama_routes.routes,
    ollama_store.routes,
    top.routes,
    anthropic.routes,  # before OpenAI's, with which they share paths
    gemini.routes,
    openai.routes,
    adapters.routes,
)


def application(house: House) -> ASGIApp:
    """The ASGI application of a house."""
    routes = [route for protocol in PROTOCOLS for route in protocol(house)]
    handlers: dict[Any, Any] = {
        KvasirError: on_kvasir_error,
        HTTPException: on_http_error,
        ClientDisconnect: on_gone,
        Exception: on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Counting(Doors(Guard(app, house.keyring), house.own_host, house.welcome), routes, house.measures)


def server(house: House, address: Address, access_log: bool = False, grace_s: float = GRACE_S) -> Draining:
    """A server that is ready to run on sockets given to `run(sockets=[...])`."""
    config = configured(application(house), address, access_log)
    return Draining(config, grace_s, house.residents)
