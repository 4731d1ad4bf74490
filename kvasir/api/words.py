"""How errors speak of what a client sent."""

from __future__ import annotations


def json_name(value: object) -> str:
    """What JSON calls the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "a string" if isinstance(value, str) else "an array" if isinstance(value, list) else "an object"


def short(text: str, limit: int = 60) -> str:
    """`text` from a client, quoted and safe to repeat in a header, a log line or an error."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")
