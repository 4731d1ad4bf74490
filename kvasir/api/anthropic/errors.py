"""Anthropic's shape of an error."""

from __future__ import annotations

import msgspec

TYPES = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "timeout": "timeout_error",
    "too_large": "request_too_large",
    "limited": "rate_limit_error",
    "internal": "api_error",
    "unsupported": "api_error",
    "overloaded": "overloaded_error",
}


def error_body(kind: str, message: str) -> bytes:
    """The body of an error; `kind` is one of `kvasir.api.errors.Kind`."""
    error = {"type": TYPES.get(kind, "invalid_request_error"), "message": message}
    return msgspec.json.encode({"type": "error", "error": error})
