"""OpenAI's shape of an error."""

from __future__ import annotations

import re

import msgspec

from kvasir.api.errors import fault_of
from kvasir.errors import KvasirError

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
    "limited": "rate_limit_exceeded",
    "overloaded": "overloaded",
}
# Our errors begin with the field that is wrong: "messages[0].role must be ...", "logit_bias: ...".
FIELD = re.compile(
    r"([a-z][a-z0-9]*(?:_[a-z0-9]+)*)((?:\[\d+\]|\.\w+)*)(?=:| must | is | are | takes | has | holds )"
)
PLAIN = frozenset(
    ["answer", "audio", "choice", "criteria", "dimensions", "documents", "echo", "functions", "include",
     "input", "instructions", "items", "levels", "logprobs", "messages", "metadata", "modalities",
     "model", "n", "name", "options", "prediction", "priority", "prompt", "queries", "query",
     "questions", "reasoning", "seed", "state", "stop", "store", "stream", "suffix", "temperature",
     "text", "tokens", "tools", "truncation", "user"]
)  # fmt: skip


def error_body(status: int, kind: str, message: str, param: str = "") -> bytes:
    """The body of an error; `kind` is one of `kvasir.api.errors.Kind`."""
    return msgspec.json.encode({"error": error(kind, message, param)})


def error(kind: str, message: str, param: str = "") -> dict[str, str | None]:
    """What stands under "error".  Without a `param` it is the field that the message begins with."""
    code = CODES.get(kind)
    if kind == "not_found" and message.startswith("model "):
        code = "model_not_found"
    return {
        "message": message,
        "type": TYPES.get(kind, "invalid_request_error"),
        "param": "model" if code == "model_not_found" else param or field_of(message),
        "code": code,
    }


def error_of(problem: KvasirError) -> dict[str, str | None]:
    """`error` for what ends a stream."""
    fault = fault_of(problem)
    return error(fault.kind, fault.message, fault.param)


def field_of(message: str) -> str | None:
    """The name of the field that a message begins with, if it does."""
    found = FIELD.match(message)
    if found and ("_" in found[1] or found[2] or found[1] in PLAIN):
        return found[0]
    return None
