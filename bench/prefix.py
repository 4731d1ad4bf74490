"""Time to the first token of a prompt whose beginning is known: from memory, and from disk after a restart.

Each round has a disk cache of its own.  One process computes the prompt, answers it again, and answers one
that begins alike; it ends, and fresh ones answer either.  `python bench/prefix.py [--runs 5] [--tokens 1300]`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import ROOT, RUNS, Spread, machine, report, say
from bench.models import model_file

OTHER_TOKENS = 12  # of the question that is another one
BARS = {"memory, the same": 1.0, "disk after a restart, the same": 8.0}  # per cent of the first request


def prompts(count: int, seed: int) -> tuple[list[int], list[int]]:
    """A prompt of `count` random tokens, and one with another end."""
    rng = random.Random(seed)
    ids = [rng.randrange(300, 20_000) for _ in range(count + OTHER_TOKENS)]
    return ids[:count], ids[: count - OTHER_TOKENS] + ids[count:]


def serve(path: str, asked: list[list[int]]) -> list[dict[str, Any]]:
    """In a process of its own: the answers' first tokens, one request after another."""
    from kvasir import LLM  # noqa: PLC0415 (only here)

    with LLM(path) as llm:
        # The first step of a process finds its memory untouched, which is not what is measured.
        llm.generate([1, 2, 3], temperature=0, max_tokens=2, use_tqdm=False)
        found = []
        for prompt in asked:
            r = llm.generate(prompt, temperature=0, max_tokens=4, use_tqdm=False)[0]
            found.append({"s": r.metrics.ttft_s, "n_cached": r.metrics.n_cached, "ids": list(r.token_ids)})
        return found


def process(path: str, asked: list[list[int]], cache: str) -> list[dict[str, Any]]:
    """What `serve` gives in a fresh process with its disk cache in the folder `cache`."""
    env = {**os.environ, "XDG_CACHE_HOME": cache, "KVASIR_CACHE_DISK_GB": "5", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, __file__, "--serve", path]
    done = subprocess.run(
        words, input=json.dumps(asked), env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def once(path: str, count: int, seed: int) -> dict[str, float]:
    """Seconds to the first token, each way; the answers must not differ."""
    one, other = prompts(count, seed)
    with tempfile.TemporaryDirectory() as cache:
        cold, again, alike = process(path, [one, one, other], cache)
        (disk,) = process(path, [one], cache)
        (disk_alike,) = process(path, [other], cache)
    if not (cold["ids"] == again["ids"] == disk["ids"] and alike["ids"] == disk_alike["ids"]):
        raise SystemExit(f"the answers differ: {cold} {again} {disk} {alike} {disk_alike}")
    least = count - OTHER_TOKENS - 16
    if cold["n_cached"] or min(each["n_cached"] for each in (again, alike, disk, disk_alike)) < least:
        raise SystemExit(f"not what was to be measured: {cold} {again} {alike} {disk} {disk_alike}")
    return {
        "first": cold["s"],
        "memory, the same": again["s"],
        "memory, another end": alike["s"],
        "disk after a restart, the same": disk["s"],
        "disk after a restart, another end": disk_alike["s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--tokens", type=int, default=1300)
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--form", default="Q4_0")
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(json.dumps(serve(args.serve, json.load(sys.stdin))))
        return
    about, path, rounds = machine(), str(model_file(args.shape, args.form)), list[dict[str, float]]()
    for n in range(args.runs):
        rounds.append(once(path, args.tokens, n))
        say(f"  round {n + 1} of {args.runs}: " + ", ".join(f"{k} {v:.3f} s" for k, v in rounds[-1].items()))
    rows = []
    for what in rounds[0]:
        share = Spread.of([100 * each[what] / each["first"] for each in rounds])
        bar = BARS.get(what)
        rows.append(
            {
                "request": what,
                "first token after, s": Spread.of([each[what] for each in rounds]),
                "per cent of the first": share,
                "bar": bar,
                "met": None if bar is None else share.median <= bar,
            }
        )
    columns = ("request", "first token after, s", "per cent of the first", "bar", "met")
    report(f"a prompt of {args.tokens} tokens, {args.shape} {args.form}", about, columns, rows)


if __name__ == "__main__":
    main()
