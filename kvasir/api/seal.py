"""What clients keep for us: a thought, or the proof that nobody changed one, as text that they send back.

Anthropic calls it a block's signature, Gemini a part's thoughtSignature.  Nothing here is secret: a client
may read its own model's thoughts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

_PROOF, _WHOLE = b"kvasir\x01", b"kvasir\x02"
_DIGEST = 15  # bytes
MAX_THOUGHT = 4 << 20  # bytes of a thought that comes back


def proof(thought: str) -> str:
    """A signature for a thought that the client has in clear."""
    return _text(_PROOF + hashlib.sha256(_raw(thought)).digest()[:_DIGEST])


def sealed(thought: str) -> str:
    """A signature that holds the thought itself, for a client that does not see it."""
    return _text(_WHOLE + zlib.compress(_raw(thought), 6))


def intact(thought: str, signature: str) -> bool:
    """False for a thought that is not the one this signature was made for; foreign ones prove nothing."""
    raw = _bytes(signature)
    return not raw.startswith(_PROOF) or signature == proof(thought)


def opened(signature: str) -> str:
    """The thought that a signature of ours holds; nothing for any other."""
    raw = _bytes(signature)
    if not raw.startswith(_WHOLE):
        return ""
    try:
        return zlib.decompressobj().decompress(raw[len(_WHOLE) :], MAX_THOUGHT).decode("utf-8", "ignore")
    except zlib.error:
        return ""


def _raw(thought: str) -> bytes:
    return thought.encode("utf-8", "replace")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(signature: str) -> bytes:
    """What base64 makes of it, in either alphabet; nothing of what is none."""
    plain = signature.translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""
