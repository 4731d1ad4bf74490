"""Whether the thread that steps still does, and what a process looks like from outside when it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from time import monotonic

from kvasir.records import dataclass

SILENT_S = 4.0  # without a sign of life, in a process that also computes nothing
MUTE_S = 60.0  # without a sign of life, whatever it computes: some call keeps Python's lock
STILL_S = 6.0  # inside a step without computing: its threads wait for each other
SHORTEST_STEP_S = 120.0  # no step is given up before
FIRST_STEP_S = 1800.0  # nor the first, of which nothing is known yet
MOST_ROWS = 512  # a step has at most so many rows, and none costs more than a step of one row


@dataclass
class Pulse:
    """Steps done, seconds in the one under way (0: none), and the slowest so far.  Also what the engine has.

    Mutable: the thread that steps writes it, one that tells reads it.
    """

    steps: int = 0
    busy_s: float = 0.0
    slowest_s: float = 0.0
    n_running: int = 0
    n_free: int = 0  # cache blocks
    n_blocks: int = 0
    n_waiting: int = 0  # requests that have no place in the batch yet
    n_generated: int = 0  # tokens, since the model was loaded
    n_rows: int = 0  # computed since then: prompts, answers and guesses


class Pacer:
    """Takes the pulse of the thread that steps.  Mutable; written by that thread alone."""

    def __init__(self) -> None:
        self._began, self._steps, self._slowest_s = 0.0, 0, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around everything that computes."""
        self._began = monotonic()
        try:
            yield
        finally:
            self._slowest_s = max(self._slowest_s, monotonic() - self._began)
            self._began = 0.0
            self._steps += 1

    def pulse(self) -> Pulse:
        began = self._began
        busy_s = monotonic() - began if began else 0.0
        return Pulse(self._steps, busy_s, self._slowest_s)


@dataclass(frozen=True)
class Outside:
    """What the system tells of a process: its state ("R", "S", "T" stopped, "t" under a debugger; "" where it
    does not tell), CPU seconds that its threads had or waited for, pages read from disk, and the memory that
    is its own.
    """

    state: str = ""
    wanted_s: float = 0.0
    n_read: int = 0
    own_bytes: int = 0


def outside(pid: int) -> Outside:
    """The process as Linux shows it; elsewhere nothing is known."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/statm") as file:
            pages = file.read().split()
    except OSError:
        return Outside()
    wanted_s = _wanted_s(pid) or (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    own = (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
    return Outside(fields[0], wanted_s, int(fields[9]), own)


def _wanted_s(pid: int) -> float:
    """CPU seconds of all threads, those included that they waited for: on a crowded machine a process may get
    next to nothing and is not stuck for that.
    """
    total_ns = 0
    for path in glob(f"/proc/{pid}/task/*/schedstat"):
        with suppress(OSError, ValueError), open(path) as file:  # the thread may have ended
            on_cpu, waiting, _ = file.read().split()
            total_ns += int(on_cpu) + int(waiting)
    return total_ns / 1e9


class Watch:
    """Judges from its signs of life whether a process is stuck.  Mutable; used by one thread.

    Time counts only while the watcher itself ran: `looked` is called at least once a second, and a longer gap
    was the watcher's own (a stopped server, a suspended laptop).
    """

    def __init__(self) -> None:
        self._silent_s = self._still_s = 0.0
        self._seen, self._pulse = Outside(), Pulse()

    def heard(self, pulse: Pulse | None = None) -> None:
        """A frame came."""
        self._silent_s = 0.0
        if pulse:
            if pulse.steps != self._pulse.steps:
                self._still_s = 0.0
            self._pulse = pulse

    def looked(self, passed_s: float, seen: Outside) -> str:
        """After `passed_s` more seconds the process is `seen`: why it is stuck, "" if nothing says so."""
        passed_s = min(passed_s, 2.0)
        wanted_s = abs(seen.wanted_s - self._seen.wanted_s)  # less than before when a thread has ended
        idle = wanted_s < 0.02 * passed_s and seen.n_read == self._seen.n_read
        self._seen = seen
        self._silent_s += passed_s
        if seen.state == "t":  # a person with a debugger has all the time there is
            self._silent_s = self._still_s = 0.0
            return ""
        in_step = self._pulse.busy_s > 0
        still = bool(seen.state) and idle and (in_step or self._silent_s > SILENT_S / 2)
        self._still_s = self._still_s + passed_s if still else 0.0
        if self._silent_s > SILENT_S and (seen.state == "T" or self._still_s >= SILENT_S / 2):
            return f"it has given no sign of life for {self._silent_s:.0f} s" + (
                ", and is stopped" if seen.state == "T" else ""
            )
        if self._silent_s > MUTE_S:
            return f"it has given no sign of life for {self._silent_s:.0f} s"
        if in_step and self._still_s > STILL_S:
            return f"it has computed nothing for {self._still_s:.0f} s inside a step"
        longest_s = FIRST_STEP_S
        if self._pulse.steps:
            longest_s = max(SHORTEST_STEP_S, MOST_ROWS * self._pulse.slowest_s)
        if self._pulse.busy_s > longest_s:
            took = f"a step has taken {self._pulse.busy_s:.0f} s"
            return f"{took}, and {longest_s:.0f} s were the most to expect"
        return ""
