"""OpenAI's shape of an error."""

from __future__ import annotations

import msgspec

TYPES = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "limited": "rate_limit_error",
    "internal": "server_error",
    "unsupported": "not_implemented_error",
    "overloaded": "overloaded_error",
}
CODES = {
    "unauthorized": "invalid_api_key",
    "not_found": "not_found",
    "limited": "rate_limit_exceeded",
    "overloaded": "overloaded",
}


def error_body(status: int, kind: str, message: str, param: str = "") -> bytes:
    """The body of an error; `kind` is one of `kvasir.api.errors.Kind`."""
    error = {
        "message": message,
        "type": TYPES.get(kind, "invalid_request_error"),
        "param": param or None,
        "code": CODES.get(kind),
    }
    return msgspec.json.encode({"error": error})
