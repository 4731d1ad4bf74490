"""Faults on purpose: KVASIR_FAULT names a place in the program, and what goes wrong there.

`runner.decode@mead:17:kill` kills the process that runs mead where it passes `runner.decode` for the 17th
time.  Without the variable a place costs one look into an empty dict.  This is how tests, and people who want
to see what their own program does then, make happen what otherwise happens once a month.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import PurePath

from kvasir.errors import UsageError
from kvasir.records import dataclass

POINTS = {
    "runner.load": "a model's process has started and is about to open the file",
    "runner.repack": "the file is open, and its weights are about to be repacked",
    "runner.tokens": "a request has arrived and is about to become tokens",
    "runner.step": "before each step",
    "runner.prefill": "before each step in which some answer has no token yet",
    "runner.decode": "before each step in which every answer has one",
    "runner.embed": "before texts are embedded",
    "runner.grammar": "before a form that answers must have is made ready for the vocabulary",
    "runner.mask": "before the tokens are worked out that a constrained answer may take next",
    "runner.send": "before each frame that the process sends to the server",
    "cache.write": "in the middle of each block that is written to disk",
    "cache.read": "before each block that is read from disk",
}
SPEC = re.compile(r"([a-z.]+)(?:@([^@,]+?))?:(\d{1,9}):([a-z]+)(?::(\d{1,9}))?")


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _raise() -> None:
    raise RuntimeError("a fault on purpose (KVASIR_FAULT)")


def _oserror() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _eio() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _memory() -> None:
    raise MemoryError


ACTIONS: dict[str, tuple[Callable[[], None], str]] = {
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), "as by `kill -9`, or for want of memory"),
    "segv": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "as by a bug in native code"),
    "exit": (lambda: os._exit(3), "the process ends with status 3"),
    "stop": (_stop, "the process stands still, as by `kill -STOP`"),
    "hang": (_hang, "the thread that passes never comes back; the others go on"),
    "raise": (_raise, "an exception that nobody expects"),
    "oserror": (_oserror, "no space left on the device"),
    "eio": (_eio, "the disk fails"),
    "memory": (_memory, "no memory left"),
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Where, in whose process, at which passing, what; and in how many processes, counted from now."""

    point: str
    model: str
    count: int
    action: str
    processes: int

    def __str__(self) -> str:
        return f"{self.point}{'@' + self.model if self.model else ''}:{self.count}:{self.action}"


def parse(text: str) -> tuple[Fault, ...]:
    """The faults that a value of KVASIR_FAULT names, separated by commas.  Raises UsageError."""
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = SPEC.fullmatch(part)
        if match is None or not int(match[3]):
            raise UsageError(f"{part!r} is not POINT[@MODEL]:COUNT:ACTION[:PROCESSES]")
        point, model, count, action, processes = match.groups()
        for name, known in ((point, POINTS), (action, ACTIONS)):
            if name not in known:
                raise UsageError(f"{part!r}: {name!r} is unknown", hint=f"it is one of {', '.join(known)}")
        found.append(Fault(point, model or "", int(count), action, int(processes or 10**9)))
    return tuple(found)


class _Armed:
    """One fault in this process.  Mutable: counts the passings."""

    def __init__(self, fault: Fault):
        self._fault, self._left, self._lock = fault, fault.count, threading.Lock()

    def passed(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        print(f"kvasir: fault on purpose: {self._fault}", file=sys.stderr, flush=True)
        ACTIONS[self._fault.action][0]()


_armed: dict[str, list[_Armed]] = {}  # empty but in a process that `arm` was called in


def arm(faults: tuple[Fault, ...], model: str, nth: int = 1) -> None:
    """From now on this process, the `nth` that runs `model`, fails as the faults say."""
    names = {"", model, model.removesuffix(":latest"), PurePath(model).stem}
    for fault in faults:
        if fault.model in names and nth <= fault.processes:
            _armed.setdefault(fault.point, []).append(_Armed(fault))


def armed() -> bool:
    """Whether anything is to fail in this process."""
    return bool(_armed)


def reach(point: str) -> None:
    """This thread passes `point`."""
    for one in _armed.get(point, ()):
        one.passed()


def table() -> str:
    """The points and the actions as Markdown tables, for the docs."""
    rows = ["| Point | Where |", "|---|---|"]
    rows += [f"| `{name}` | {help} |" for name, help in POINTS.items()]
    rows += ["", "| Action | What happens |", "|---|---|"]
    rows += [f"| `{name}` | {help} |" for name, (_, help) in ACTIONS.items()]
    return "\n".join(rows) + "\n"
