"""The server that is running: what the commands ask of it."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kvasir.errors import KvasirError, UsageError
from kvasir.settings import Address, Settings, parse_address
from kvasir.store.names import find

EVERYWHERE = ("0.0.0.0", "::")
WAIT_S = 10.0


def server_address(settings: Settings, environ: Mapping[str, str] | None = None) -> Address:
    """Where the server is: KVASIR_HOST, else OLLAMA_HOST, else this machine's usual port."""
    source = os.environ if environ is None else environ
    address, other = settings.host, source.get("OLLAMA_HOST", "").strip()
    if not source.get("KVASIR_HOST", "").strip() and other:
        address = parse_address(other)
    return Address("127.0.0.1", address.port) if address.host in EVERYWHERE else address


def ask(
    settings: Settings, method: str, path: str, body: object = None, wait_s: float = WAIT_S
) -> dict[str, Any]:
    """The JSON that the server answers; OLLAMA_API_KEY goes with it, if it is set.

    Raises UsageError for its refusal, and when there is none.
    """
    address = server_address(settings)
    raw = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OLLAMA_API_KEY", "").strip():
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection(address.host, address.port, timeout=wait_s)
    try:
        connection.request(method, path, raw, headers)
        answer = connection.getresponse()
        text = answer.read()
    except ConnectionRefusedError:
        raise UsageError(f"no server answers on {address}", hint="start one with `kvasir serve`") from None
    except (OSError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        raise UsageError(f"the server on {address} does not answer: {why}") from None
    finally:
        connection.close()
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"what answers on {address} is not Kvasir", hint="KVASIR_HOST says where it is")
    if answer.status >= 400:
        told = found.get("error", answer.reason)
        raise UsageError(told.get("message", "") if isinstance(told, dict) else str(told))
    return found


def forget(settings: Settings, name: str) -> None:
    """Has a server, if there is one, drop the process of a model that changed.  One that shares its process
    with the model that it was made from needs nothing.
    """
    with suppress(KvasirError):
        made = find(name).made
        if made and not made.template and not made.adapter:
            return
        ask(settings, "POST", "/api/generate", {"model": name, "keep_alive": 0}, wait_s=1.0)
