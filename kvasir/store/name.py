"""Names of models as Ollama writes them: [HOST/][NAMESPACE/]MODEL[:TAG]."""

from __future__ import annotations

import re

from kvasir.errors import UsageError
from kvasir.records import dataclass

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)
SPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", re.ASCII)
SITE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", re.ASCII)


@dataclass(frozen=True)
class Name:
    """A whole name.  `str` leaves out what goes without saying, but for the tag: mead:latest."""

    model: str
    tag: str = TAG
    namespace: str = NAMESPACE
    host: str = HOST

    def __str__(self) -> str:
        text = f"{self.model}:{self.tag}"
        if self.host != HOST:
            return f"{self.host}/{self.namespace}/{text}"
        return text if self.namespace == NAMESPACE else f"{self.namespace}/{text}"


def parse_name(text: str) -> Name:
    """The name in `text`.  Raises UsageError for what no model may be called."""
    body = re.sub(r"^https?://", "", text)
    path, tag = body, TAG
    if ":" in body.rpartition("/")[2]:
        path, _, tag = body.rpartition(":")
    *before, model = path.split("/")
    host, namespace = HOST, NAMESPACE
    if len(before) == 2:
        host, namespace = before
    elif len(before) == 1:
        namespace = before[0]
    fits = len(before) <= 2 and SITE.fullmatch(host) and SPACE.fullmatch(namespace)
    if not (fits and PART.fullmatch(model) and PART.fullmatch(tag)):
        raise UsageError(
            f"{text[:80]!a} is not a name for a model",
            hint="write NAME or NAME:TAG of letters, digits, _, . and -, 80 each at most",
        )
    return Name(model, tag, namespace, host)


def is_name(text: str) -> bool:
    """Whether a model may be called so."""
    try:
        parse_name(text)
    except UsageError:
        return False
    return True


def canonical(text: str) -> str:
    """`text` as lists show it: with a tag, without Ollama's own host; as it is when it is no name."""
    return str(parse_name(text)) if is_name(text) else text
