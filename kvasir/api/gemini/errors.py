"""Google's shape of an error."""

from __future__ import annotations

import msgspec

STATUS = {
    "unauthorized": "UNAUTHENTICATED",
    "forbidden": "PERMISSION_DENIED",
    "not_found": "NOT_FOUND",
    "timeout": "DEADLINE_EXCEEDED",
    "limited": "RESOURCE_EXHAUSTED",
    "internal": "INTERNAL",
    "unsupported": "UNIMPLEMENTED",
    "overloaded": "UNAVAILABLE",
}


def error_body(status: int, kind: str, message: str) -> bytes:
    """The body of an error; `kind` is one of `kvasir.api.errors.Kind`."""
    error = {"code": status, "message": message, "status": STATUS.get(kind, "INVALID_ARGUMENT")}
    return msgspec.json.encode({"error": error})
