"""What a client is told of an error: a status, a kind, and a message that gives nothing away."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from math import ceil
from typing import Literal

from kvasir.api.names import NotHere
from kvasir.errors import Bug, Busy, CapacityError, KvasirError, Lost, UsageError

log = logging.getLogger("kvasir")

Kind = Literal[
    "invalid",  # 400, 405, 415, 422: what was sent cannot be served
    "unauthorized",  # 401
    "forbidden",  # 403
    "not_found",  # 404
    "timeout",  # 408
    "too_large",  # 413
    "limited",  # 429
    "internal",  # 500
    "unsupported",  # 501
    "overloaded",  # 503
]
KINDS: dict[int, Kind] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    413: "too_large",
    429: "limited",
    501: "unsupported",
    503: "overloaded",
}
PATHS = re.compile(r"(?<![\w.<:/])/(?!api/|v1/|v1beta/)[^\s/:'\",;()]+(?:/[^\s/:'\",;()]+)+")
ADDRESSES = re.compile(r"0x[0-9a-fA-F]{4,}")


class Wrong(UsageError):
    """A field of a body that cannot be served.  `param`: its name, for protocols that tell it apart."""

    def __init__(self, message: str, hint: str = "", param: str = ""):
        super().__init__(message, hint)
        self.param = param


@dataclass(frozen=True)
class Fault:
    """An error as a client may read it.  `wait_s`: when to come again, None if that does not help."""

    status: int
    message: str
    param: str = ""
    wait_s: int | None = None

    @property
    def kind(self) -> Kind:
        return KINDS.get(self.status, "invalid" if self.status < 500 else "internal")


def fault_of(error: Exception) -> Fault:
    """What a client may know of `error`; what is none of ours is a bug, and goes to the log."""
    status = status_of(error) if isinstance(error, KvasirError) else 500
    wait_s = max(ceil(error.wait_s), 1) if isinstance(error, Busy) else None
    return Fault(status, public(error), error.param if isinstance(error, Wrong) else "", wait_s)


def public(error: Exception) -> str:
    """What a client may read of an error: its message without folders and addresses; of a bug, nothing."""
    if isinstance(error, Bug) or not isinstance(error, KvasirError):
        log.error("internal error", exc_info=error)
        return "internal error; the server's log has more"
    text = PATHS.sub(lambda found: found[0].rsplit("/", 1)[1], str(error))
    return ADDRESSES.sub("0x...", text)


def status_of(error: KvasirError) -> int:
    """The status by who can mend it: the client 4xx, more room 503, us 500."""
    if isinstance(error, NotHere):
        return 404
    return 503 if isinstance(error, CapacityError) else 500 if isinstance(error, Bug | Lost) else 400
