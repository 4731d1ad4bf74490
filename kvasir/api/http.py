"""Bodies in and answers out, in HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from kvasir.api.errors import Fault, fault_of
from kvasir.api.shapes import error_body
from kvasir.errors import KvasirError

MAX_BODY = 8 << 20  # more than any context holds
BODY_STALL_S = 20.0  # a body that brings nothing for so long is given up
JSON = "application/json; charset=utf-8"


async def read_body(request: Request) -> bytes:
    """The whole body.  Raises HTTPException 413 when it is too long, 408 when it does not come."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:20]) > MAX_BODY:
        raise HTTPException(413, f"the body is longer than {MAX_BODY >> 20} MB")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "a compressed body is not accepted; send it as it is")
    parts: list[bytes] = []
    size, chunks = 0, request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(chunks, None), BODY_STALL_S)
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive", {"connection": "close"}) from None
        if part is None:
            return b"".join(parts)
        size += len(part)
        if size > MAX_BODY:
            raise HTTPException(413, f"the body is longer than {MAX_BODY >> 20} MB", {"connection": "close"})
        parts.append(part)


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, dict(headers or {}), JSON)


def fault_response(path: str, fault: Fault, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that tells of an error, in the shape of the protocol that `path` belongs to."""
    told = dict(headers or {})
    if fault.wait_s is not None:
        told["retry-after"] = str(fault.wait_s)
    return Response(error_body(path, fault), fault.status, told, JSON)


async def on_kvasir_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KvasirError)
    return fault_response(request.url.path, fault_of(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "not found", 405: "method not allowed"}.get(error.status_code, error.detail)
    return fault_response(request.url.path, Fault(error.status_code, text), error.headers)


async def on_bug(request: Request, error: Exception) -> Response:
    return fault_response(request.url.path, fault_of(error))


async def on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
