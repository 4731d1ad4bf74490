"""ASGI: who may come in with which key, and how often."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kvasir.api.allowance import Allowance
from kvasir.api.errors import Fault
from kvasir.api.http import fault_response
from kvasir.api.keys import Key, Keyring

# What says that the server is there, and no more.
PUBLIC = ("/", "/health", "/ping", "/api/version")
# What changes the models that there are: for keys that were made with --admin.
CHANGING = re.compile(
    r"/api/(create|copy|delete|pull|push|blobs/.*)|(/v1)?/v1/(un)?load_lora_adapter", re.DOTALL
)
IN_QUERY = ("/v1beta", "/v1alpha")  # Google's clients put the key into the address
MAX_PRESENTED = 4


class Guard:
    """Asks for a key, keeps to its limits, and tells the house who asks: `state["tenant"]`, `state["spend"]`.

    `keyring` None: nobody is asked for a key.  Mutable: it knows what each key has used.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring | None):
        self._app, self._keyring = app, keyring
        self._allowances: dict[Key, Allowance] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keyring and self._keyring.needed and not public(scope):
            fault = self._stopped(scope, self._keyring)
            if fault:
                headers = {"www-authenticate": 'Bearer realm="kvasir"'} if fault.status == 401 else {}
                await fault_response(scope["path"], fault, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _stopped(self, scope: Scope, keyring: Keyring) -> Fault | None:
        """Why this request may not come in; None if it may."""
        texts = list(presented(scope))
        if not texts:
            return Fault(401, "an API key is needed (Authorization: Bearer KEY, x-api-key or x-goog-api-key)")
        key = keyring.find(texts) if len(texts) <= MAX_PRESENTED else None
        if key is None:
            return Fault(401, "this API key is not known here (`kvasir keys add NAME` makes one)")
        if CHANGING.fullmatch(scope["path"]) and not key.admin:
            return Fault(403, f"the key {key.name} may not change models (`kvasir keys add NAME --admin`)")
        allowance = self._allowance(key, keyring)
        if scope["method"] == "POST":
            why, wait_s = allowance.ask()
            if wait_s:
                seconds = max(ceil(wait_s), 1)
                return Fault(429, f"{why} (come again in {seconds} s)", wait_s=seconds)
        scope.setdefault("state", {}).update(tenant=key.tenant, spend=allowance.spend)
        return None

    def _allowance(self, key: Key, keyring: Keyring) -> Allowance:
        if key not in self._allowances:
            known = set(keyring.keys)
            self._allowances = {k: a for k, a in self._allowances.items() if k in known}
            self._allowances[key] = Allowance(key)
        return self._allowances[key]


def public(scope: Scope) -> bool:
    """Whether a path is for everybody: exactly as it is written here, and only to be read."""
    return scope["path"] in PUBLIC and scope["method"] in ("GET", "HEAD")


def presented(scope: Scope) -> Iterator[str]:
    """The keys that a request brings.  One in the address is taken out of it: no log shall have it."""
    request = Request(scope)
    for value in request.headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            yield key.strip()
    for name in ("x-api-key", "x-goog-api-key"):
        yield from (value for value in request.headers.getlist(name) if value)
    if scope["path"].startswith(IN_QUERY) and b"key=" in scope["query_string"]:
        yield from (value for value in request.query_params.getlist("key") if value)
        pairs = scope["query_string"].split(b"&")
        scope["query_string"] = b"&".join(p for p in pairs if not p.startswith(b"key="))
