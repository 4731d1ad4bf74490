"""Lengths of time as Ollama's users write and read them: Go's notation ("1m30s", "250ms")."""

from __future__ import annotations

import re
from math import inf

from kvasir.errors import UsageError

NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def go_duration(ns: int) -> str:
    """How Go prints a duration of `ns` nanoseconds: 1.5s, 12.3ms, 1m2.5s, 0s."""
    size = abs(ns)
    if size < 10**9:
        unit = "s" if size == 0 else "ns" if size < 10**3 else "µs" if size < 10**6 else "ms"
        text = _decimal(size, NS[unit]) + unit
    else:
        minutes, rest = divmod(size, NS["m"])
        hours, minutes = divmod(minutes, 60)
        text = _decimal(rest, NS["s"]) + "s"
        text = f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text
    return "-" + text if ns < 0 else text


def parse_go_duration(text: str) -> float:
    """Seconds of a duration in Go's notation; "0" needs no unit.  Raises UsageError on anything else."""
    body = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    sign = -1.0 if text.startswith("-") else 1.0
    if body == "0":
        return 0.0
    parts = PART.findall(body) if len(body) <= 64 else []
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise UsageError(f"{text[:40]!r} is not a duration", hint="write 30s, 5m, 1h30m, or -1s for ever")
    return sign * sum(float(number) * NS[unit] for number, unit in parts) / 1e9


def keep_alive_s(value: int | float | str) -> float:
    """Seconds that a model stays loaded after its last request; inf for ever.

    A number is seconds, a text is a Go duration, a negative one means for ever.  Raises UsageError.
    """
    seconds = parse_go_duration(value) if isinstance(value, str) else float(value)
    if seconds != seconds:
        raise UsageError("keep_alive must be a number of seconds or a duration such as 5m")
    return inf if seconds < 0 or seconds > 1e9 else seconds


def _decimal(size: int, unit: int) -> str:
    """`size` / `unit` (a power of ten) without trailing zeros."""
    whole, part = divmod(size, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)
