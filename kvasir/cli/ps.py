"""`kvasir ps`: the models that the server has in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kvasir.cli.parser import Parser
from kvasir.cli.remote import ask
from kvasir.cli.terminal import columns, human_bytes, human_span
from kvasir.settings import Settings

YEAR_S = 365 * 86400


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises UsageError when no server runs."""
    Parser("ps", "The models in memory: size, processor, context, and how long they stay.").read(words)
    told = ask(settings, "GET", "/api/ps")
    print(table(told["models"], datetime.now(UTC)))
    for gpu in told.get("gpus", ()):
        print(gpu_line(gpu))
    return 0


def table(models: Sequence[dict[str, Any]], now: datetime) -> str:
    """What /api/ps tells, a line a model."""
    rows = [("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")]
    for model in models:
        until = model.get("stage") or until_when(model.get("expires_at", ""), now)
        row = (
            str(model["name"]),
            str(model.get("digest", ""))[:12] or "-",
            human_bytes(int(model["size"])),
            processor(int(model["size"]), int(model.get("size_vram", 0))),
            str(model.get("context_length") or "-"),
            str(until),
        )
        rows.append(row)
    return columns(rows)


def gpu_line(gpu: dict[str, Any]) -> str:
    """One GPU: its memory, and what else its driver tells."""
    used, total = int(gpu["used_bytes"]), int(gpu["total_bytes"])
    parts = [f"GPU {gpu['index']} {gpu['name']}: {human_bytes(used)} of {human_bytes(total)}"]
    if gpu.get("utilization") is not None:
        parts.append(f"{100 * gpu['utilization']:.0f} % busy")
    if gpu.get("power_w") is not None:
        parts.append(f"{gpu['power_w']:.0f} W")
    if gpu.get("energy_j") is not None:
        parts.append(f"{gpu['energy_j'] / 3.6e6:.1f} kWh since its driver was loaded")
    return ", ".join(parts)


def processor(size: int, on_gpu: int) -> str:
    """Where a model computes, as Ollama says it."""
    if on_gpu <= 0:
        return "100% CPU"
    if on_gpu >= size:
        return "100% GPU"
    share = round(100 * on_gpu / size)
    return f"{100 - share}%/{share}% CPU/GPU"


def until_when(text: str, now: datetime) -> str:
    """When a model goes: "4 minutes from now", "Forever"."""
    try:
        left_s = (datetime.fromisoformat(text) - now).total_seconds()
    except ValueError:
        return "-"
    if left_s > YEAR_S:
        return "Forever"
    return f"{human_span(left_s)} from now" if left_s > 0 else "Stopping..."
