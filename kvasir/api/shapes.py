"""Which protocol a path belongs to, and so in which shape it is told of errors."""

from __future__ import annotations

import re
from collections.abc import Callable

from kvasir.api import ollama
from kvasir.api.anthropic import errors as anthropic
from kvasir.api.errors import Fault
from kvasir.api.gemini import errors as gemini
from kvasir.api.openai import errors as openai

Shape = Callable[[Fault], bytes]

# First match wins.  A protocol gives `error_body(status, kind, message) -> bytes`; its row goes here.
SHAPES: tuple[tuple[re.Pattern[str], Shape], ...] = (
    (re.compile(r"/+api(/|$)"), lambda fault: ollama.error_body(fault.message)),
    (re.compile(r"/+(v1/+)+messages(/|$)"), lambda fault: anthropic.error_body(fault.kind, fault.message)),
    (
        re.compile(r"/+v1(beta|alpha)(/|$)|/+v1/models/.+:[a-z]+[A-Z]\w+$"),
        lambda fault: gemini.error_body(fault.status, fault.kind, fault.message),
    ),
    (re.compile(r""), lambda fault: openai.error_body(fault.status, fault.kind, fault.message, fault.param)),
)


def error_body(path: str, fault: Fault) -> bytes:
    """The JSON body with which the protocol of `path` tells of `fault`."""
    return next(shape for pattern, shape in SHAPES if pattern.match(path))(fault)
