"""What all benchmarks share: machine and commit in a line, medians with their spread, the limit beside.

Progress goes to standard error.  Standard output is a table and, as its last line, one JSON object.
Prompts are not kept on disk meanwhile, but where a benchmark says so: a second run would be quicker.
"""

from __future__ import annotations

import compileall
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5
os.environ.setdefault("KVASIR_CACHE_DISK_GB", "0")
SWEEP_MB = 512  # read for the bandwidth: far beyond any cache


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        if self.runs == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


def number(x: float) -> str:
    """About three significant digits, without an exponent."""
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3
    return f"{x:.{digits}f}"


def say(*words: object) -> None:
    """Progress, for whoever waits."""
    print(*words, file=sys.stderr, flush=True)


def as_installed() -> None:
    """Writes the package's byte code, as pip does for what it installs; a checkout may be without.

    Where PYTHONDONTWRITEBYTECODE is set, each start would compile a hundred files: 0.3 s.
    """
    compileall.compile_dir(ROOT / "kvasir", quiet=2)


def machine() -> dict[str, Any]:
    """The machine, the commit and the kernels."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "isa": isa(),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def line(about: Mapping[str, Any]) -> str:
    """The machine in one line.  A load near the number of cores means that the figures are too low."""
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}, "
        f"Python {about['python']}, kernels {about['isa']}, commit {about['commit']}, "
        f"load before {about['load']}"
    )


def commit() -> str:
    """The short hash, with "+" when files that git tracks differ from it; "unknown" outside a checkout."""
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def isa() -> str:
    from kvasir.backends.cpu import kernels  # noqa: PLC0415 (start-up is timed without it)

    return str(kernels().isa)


def bandwidth(threads: int | None = None, *, sustained: bool = False) -> float:
    """Bytes a second that this machine reads from memory now: at its best for 20 ms, or over two seconds,
    which is how long a decode is looked at.
    """
    from kvasir.backends.cpu import kernels  # noqa: PLC0415

    sweeps = 100 if sustained else 5
    rates = kernels().bandwidth(SWEEP_MB, threads or os.cpu_count() or 1, sweeps)
    return float(sweeps / sum(1 / rate for rate in rates) if sustained else max(rates))


class Others:
    """How much of the machine other programs took since this was made; None where nothing tells."""

    def __init__(self) -> None:
        self._busy, self._own, self._at = _busy_s(), _own_s(), perf_counter()

    def share(self) -> float | None:
        """0 to 1 of all cores.  Programs that we started count as ours once they have ended."""
        if self._busy is None or (now := _busy_s()) is None:
            return None
        wall = (perf_counter() - self._at) * (os.cpu_count() or 1)
        return max(0.0, (now - self._busy - (_own_s() - self._own)) / wall)


def _own_s() -> float:
    return sum(os.times()[:4])


def _busy_s() -> float | None:
    """Seconds that all cores have worked: user, nice, system, interrupts, stolen."""
    try:
        with open("/proc/stat") as lines:
            ticks = [int(x) for x in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def repeat(runs: int, once: Callable[[], float], what: str) -> Spread:
    """`once` measured `runs` times, after one run that does not count."""
    once()
    values = []
    for i in range(runs):
        values.append(once())
        say(f"  {what}: run {i + 1} of {runs}: {number(values[-1])}")
    return Spread.of(values)


def report(
    question: str, about: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """The table, in Markdown, and the same as a line of JSON."""
    print(f"{question}\n{line(about)}\n")
    print(table(columns, rows))
    plain = [{k: asdict(v) if isinstance(v, Spread) else v for k, v in row.items()} for row in rows]
    print(json.dumps({"benchmark": question, "machine": dict(about), "rows": plain}))


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in Markdown.  A spread may come as the dict that JSON has of it."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(item: object) -> str:
    if isinstance(item, dict):
        item = Spread(**item)
    return number(item) if isinstance(item, float) else str(item) if item is not None else "-"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
