"""Each fault many times with 16 streams open: `make faults`, or `python -m tests.faults.repeat`.

For each: how long after the end of the process the last of its clients was told, and how long the next
request took, which starts the process again.  Fails where somebody was not told within a second, where
another model's answer changed, or where the next request was not answered.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Spread, line, machine
from kvasir.runner.client import ModelProcess
from kvasir.runner.pulse import outside
from tests.faults.scene import LONG, N_STREAMS, Client, Scene, ended_at, fault, scene, write_models

TOLD_S, REPLACED_S = 1.0, 10.0
SPECS = (
    "runner.prefill:60:kill", "runner.decode:1000:kill", "runner.grammar:9:kill", "runner.mask:4000:kill",
    "cache.write:20:kill", "kill -9", "runner.decode:1000:stop", "runner.decode:1000:hang",
    "runner.tokens:17:kill", "runner.send:80:kill", "runner.step:1000:segv",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """How often clients were told, and the seconds from the process's end (from its standing still, for stop
    and hang) until the last of them was, and of the next request.
    """

    n_told: int
    told_s: float
    next_s: float


def once(stage: Scene, spec: str, alone: str) -> Seen:
    """One fault with the streams open."""
    stage.unload("one")
    from_outside, writes = spec == "kill -9", spec.startswith("cache.")
    os.environ["KVASIR_CACHE_DISK_GB"] = "1" if writes else "0"
    with fault("" if from_outside else spec.replace(":", "@one:", 1)):
        process = stage.process("one")
    ends: list[float] = []
    other = stage.ask("two", "b", 600)
    clients = crowd(stage, spec)
    if writes:  # a pinned prompt goes to disk at once
        clients.append(stage.ask("one", f"{time.monotonic()}{LONG}", 8000, pin=True))
    stands_still = "stop" in spec or "hang" in spec
    if from_outside or stands_still:
        while process.pulse.n_running < N_STREAMS:
            assert process.alive, "it stood still before all streams were open"
            time.sleep(0.002)
        ends.append(time.monotonic() if from_outside else still_at(process))
    if from_outside:
        os.kill(process.pid, signal.SIGKILL)
    elif not stands_still:
        ends.append(ended_at(process.pid))
    told = told_of(stage, process, clients)
    for client in told:
        assert "the process of one:latest ended" in client.error, client
    assert len(told) == len(clients) or not (from_outside or stands_still), "some were not told"
    told_s = max(client.ended_at for client in told) - ends[0]
    assert other.wait().done and other.text == alone, "another model's answer changed"
    begin = time.monotonic()
    assert stage.answer("one", "c", 5)
    return Seen(len(told), told_s, time.monotonic() - begin)


def still_at(process: ModelProcess) -> float:
    """The moment at which a process was stopped, or took its last step before one that does not end."""
    steps, last = -1, time.monotonic()
    while time.monotonic() - last < 1.5:
        if outside(process.pid).state == "T":
            return time.monotonic()
        if process.pulse.steps != steps:
            steps, last = process.pulse.steps, time.monotonic()
        time.sleep(0.005)
    return last


def crowd(stage: Scene, spec: str) -> list[Client]:
    """Clients of all kinds that ask for long answers, each something else."""
    prompt = 2 * LONG if "prefill" in spec else "a"
    constrained = "grammar" in spec or "mask" in spec
    forms = [{"type": "string", "minLength": 3000 + n} if constrained else None for n in range(N_STREAMS)]
    return [stage.ask("one", f"{n}{prompt}", 8000, n % 4 > 0, form=form) for n, form in enumerate(forms)]


def told_of(stage: Scene, ended: ModelProcess, clients: list[Client]) -> list[Client]:
    """Those who were told of the end of a process, all but those whom the next process serves: they came when
    the first was gone.  These leave.
    """
    end = time.monotonic() + 60
    while late := [client for client in clients if client.is_open]:
        assert time.monotonic() < end, f"{len(late)} clients were neither told nor served"
        others = [m for m in stage.models.loaded() if m.alive and m is not ended]
        served = [m.pulse for m in others if m.info.name == "one:latest"]
        if sum(pulse.n_running for pulse in served) == len(late):
            break
        time.sleep(0.01)
    for client in late:
        client.leave()
    told = [client for client in clients if client not in late]
    return [client for client in told if not client.done]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--spec", action="append", help="a fault point, for the usual ones")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    late = False
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        os.environ |= {"KVASIR_MODELS": folder, "XDG_CACHE_HOME": folder}
        print(f"{N_STREAMS} streams open, {args.times} times each\n{line(machine())}\n")
        print("| fault | clients told | the last after, s | next request took, s |\n|---|---|---|---|")
        with scene() as stage:
            alone = stage.answer("two", "b", 600)
            for spec in args.spec or SPECS:
                found = [once(stage, spec, alone) for _ in range(args.times)]
                told, following = Spread.of([s.told_s for s in found]), Spread.of([s.next_s for s in found])
                n_told = Spread.of([s.n_told for s in found])
                print(f"| {spec} | {n_told.low} to {n_told.high} | {told} | {following} |", flush=True)
                late |= told.high > (REPLACED_S if spec.endswith(("stop", "hang")) else TOLD_S)
    if late:
        print("somebody was told too late")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
