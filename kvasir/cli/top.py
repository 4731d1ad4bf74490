"""`kvasir top`: what the server is doing, live in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kvasir.cli.parser import Parser
from kvasir.cli.ps import until_when
from kvasir.cli.remote import ask, server_address
from kvasir.cli.terminal import columns, human_bytes, width_of
from kvasir.errors import UsageError
from kvasir.settings import Settings

HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
SCREEN, BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen without a cursor; back again
BAR = 10  # cells


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs until Ctrl-C; prints once where nobody watches.  Raises UsageError without a server."""
    it = Parser("top", "What the server is doing: models, memory, requests, tokens a second, cache.")
    it.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks; default 1"
    )
    it.add_argument("--once", action="store_true", help="print once and end")
    values = it.read(words)
    if not 0.1 <= values.interval <= 3600:
        raise UsageError("--interval must be between 0.1 and 3600 seconds")
    before = ask(settings, "GET", "/kvasir/top")
    if values.once or not sys.stdout.isatty():
        time.sleep(values.interval)
        print(frame(before, ask(settings, "GET", "/kvasir/top"), str(server_address(settings)), None))
        return 0
    sys.stdout.write(SCREEN)
    try:
        while True:
            time.sleep(values.interval)
            now = ask(settings, "GET", "/kvasir/top")
            text = frame(before, now, str(server_address(settings)), width_of(sys.stdout))
            lines = "".join(f"{line}{CLEAR_LINE}\n" for line in text.splitlines())
            sys.stdout.write(HOME + lines + CLEAR_BELOW)
            sys.stdout.flush()
            before = now
    except KeyboardInterrupt:
        return 0
    finally:
        sys.stdout.write(BACK)
        sys.stdout.flush()


def frame(before: Mapping[str, Any], now: Mapping[str, Any], address: str, width: int | None) -> str:
    """What the screen shows, from two looks at the server; lines are cut to `width`."""
    passed_s = max(now["at_s"] - before["at_s"], 1e-3)
    used = sum(model["bytes"] for model in now["models"])
    budget = f" of {human_bytes(now['budget_bytes'])}" if now.get("budget_bytes") else ""
    earlier = {model["name"]: model for model in before["models"]}
    rates = {m["name"]: rate(earlier.get(m["name"]), m, passed_s) for m in now["models"]}
    lines = [
        f"Kvasir {now['version']} on {address}, {datetime.now():%H:%M:%S}",
        f"requests {now['requests']} of {now['max_requests']}   memory {human_bytes(used)}{budget}   "
        f"{sum(rates.values()):.1f} tokens/s",
        "",
    ]
    rows: list[Sequence[str]] = [("MODEL", "MEMORY", "RUNNING", "WAITING", "TOKENS/S", "CACHE", "UNTIL")]
    for model in now["models"]:
        rows.append(_row(model, rates[model["name"]]))
    lines += columns(rows).splitlines() if now["models"] else ["no model is in memory"]
    return "\n".join(line[:width] for line in lines)


def rate(before: Mapping[str, Any] | None, now: Mapping[str, Any], passed_s: float) -> float:
    """Tokens written a second; a model that was loaded meanwhile began at 0."""
    done, earlier = int(now.get("generated", 0)), int((before or {}).get("generated", 0))
    return (done - earlier if done >= earlier else done) / passed_s


def _row(model: Mapping[str, Any], tokens_s: float) -> tuple[str, ...]:
    name, memory = str(model["name"]), human_bytes(model["bytes"])
    if "stage" in model:
        return name, memory, "-", str(model["users"]), "-", "-", str(model["stage"])
    total = model["blocks"]
    share = 1 - model["blocks_free"] / total if total else 0.0
    full = round(share * BAR)
    bar = f"{'█' * full}{'░' * (BAR - full)} {100 * share:3.0f}% of {total}"
    until = until_when(model["expires_at"], datetime.now(UTC)) if model["expires_at"] else "in use"
    return name, memory, str(model["running"]), str(model["waiting"]), f"{tokens_s:.1f}", bar, until
