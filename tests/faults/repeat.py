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
import threading
import time
from pathlib import Path

from bench.measure import Spread, line, machine
from tests.faults.scene import LONG, N_STREAMS, Scene, ended_at, fault, scene, write_models

TOLD_S, REPLACED_S = 1.0, 10.0
SPECS = (
    "runner.tokens:17:kill", "runner.prefill:5:kill", "runner.prefill:40:kill", "runner.decode:300:kill",
    "runner.decode:1500:kill", "runner.send:40:kill", "runner.step:700:segv", "kill -9",
    "runner.decode:300:stop", "runner.decode:300:hang", "cache.write:20:kill",
)  # fmt: skip


def once(stage: Scene, spec: str, alone: str) -> tuple[float, float]:
    """Seconds from the process's end (from its standing still, for stop and hang) until the last client was
    told, and seconds of the next request.
    """
    stage.unload("one")
    outside, writes = spec == "kill -9", spec.startswith("cache.")
    os.environ["KVASIR_CACHE_DISK_GB"] = "1" if writes else "0"
    with fault("" if outside else spec.replace(":", "@one:", 1)):
        process = stage.process("one")
    ends: list[float] = []
    other = stage.ask("two", "b", 600)
    prompt = LONG if "prefill" in spec else "a"
    clients = [stage.ask("one", f"{n}{prompt}", 8000, stream=n % 4 > 0) for n in range(N_STREAMS)]
    if writes:  # a pinned prompt goes to disk at once
        clients.append(stage.ask("one", f"{time.monotonic()}{LONG}", 8000, pin=True))
    stands_still = "stop" in spec or "hang" in spec
    if not stands_still:
        threading.Thread(target=lambda: ends.append(ended_at(process.pid)), daemon=True).start()
    if outside or stands_still:
        while process.pulse.n_running < N_STREAMS:
            time.sleep(0.002)
        ends.append(time.monotonic())
    if outside:
        os.kill(process.pid, signal.SIGKILL)
    for client in clients:
        client.wait()
    there = [client for client in clients if client.sent_at < ends[0]]  # the others met the next process
    for client in there:
        assert "the process of one:latest ended" in client.error, client
    told_s = max(client.ended_at for client in there) - ends[0]
    assert other.wait().done and other.text == alone, "another model's answer changed"
    begin = time.monotonic()
    assert stage.answer("one", "c", 5)
    return told_s, time.monotonic() - begin


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
        print("| fault | last client told after, s | next request took, s |\n|---|---|---|")
        with scene() as stage:
            alone = stage.answer("two", "b", 600)
            for spec in args.spec or SPECS:
                found = [once(stage, spec, alone) for _ in range(args.times)]
                told, following = (Spread.of(column) for column in zip(*found, strict=True))
                print(f"| {spec} | {told} | {following} |", flush=True)
                late |= told.high > (REPLACED_S if spec.endswith(("stop", "hang")) else TOLD_S)
    if late:
        print("somebody was told too late")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
