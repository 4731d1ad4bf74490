"""Many clients over HTTP: Kvasir's server beside another program's, in turn, on the same file.

`python bench/clients.py [--rival NAME=PROGRAM] [--model SHAPE:FORMAT or FILE] [--clients 1 4 16]`

Each round starts each server anew, waits for its first token, and sends it so many requests at once: about
150 tokens in, 64 out, each prompt another one.  PROGRAM takes the options of `llama-server`, which gets 16
slots of 2,560 tokens; `NAME:OPTION,...=PROGRAM` gives it more.  Tokens a second are those of all clients
together, from the first request to the last token.  Memory is the most that the server and all processes
below it had: shared pages in parts (PSS).  `--keep FILE` adds the rounds to those that FILE has, and tells of
all: for a machine that is quiet for minutes at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import ROOT, Spread, as_installed, machine, number, report, say
from bench.rivals import subject

PROMPT, ANSWER = 150, 64
SLOTS, SLOT_TOKENS = 16, 2560
START_S = 120.0
LOOK_S = 0.5  # between two looks at the memory
SERVE = "import sys; from kvasir.cli import main; sys.exit(main())"
BARS = {
    "1 clients, tokens/s": ">= 1.5", "4 clients, tokens/s": ">= 2.5", "16 clients, tokens/s": ">= 4",
    "16 clients, first token, median, s": "<= 0.5", "memory, MB": "< 1200 MB", "start, s": "< 1.5 s",
}  # fmt: skip
Found = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """A server: how it is started on a port, and with what in its environment."""

    name: str
    words: tuple[str, ...]
    environment: dict[str, str]


def kvasir(path: str, threads: int, cache: str) -> Contender:
    words = (sys.executable, "-c", SERVE, "serve", "--alias", f"bench={path}", "--port")
    return Contender("kvasir", words, {"KVASIR_THREADS": str(threads), "XDG_CACHE_HOME": cache})


def rival(told: str, path: str, threads: int) -> Contender:
    name, _, program = told.partition("=")
    name, _, options = name.partition(":")
    if not Path(program).is_file():
        raise SystemExit(f"--rival {told}: no program {program or 'named'}")
    sizes = ("-t", threads, "-np", SLOTS, "-c", SLOTS * SLOT_TOKENS)
    words = (program, "-m", path, *sizes, *filter(None, options.split(",")), "--host", "127.0.0.1", "--port")
    return Contender(name, tuple(map(str, words)), {})


# -- clients --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """When a request was sent, when each line of its answer came, and how many tokens it had."""

    sent_at: float
    times: tuple[float, ...]
    n_tokens: int


async def ask(port: int, prompt: Sequence[int], n_tokens: int, seed: int) -> Seen:
    """One streamed request.  Raises OSError while nobody listens, ValueError for anything but an answer."""
    body = {
        "model": "bench", "prompt": prompt, "max_tokens": n_tokens, "temperature": 0.8, "top_k": 40,
        "top_p": 0.95, "seed": seed, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent_at, lines = perf_counter(), list[tuple[float, bytes]]()
    try:
        writer.write(head.encode() + data)
        async for line in reader:
            if line.startswith(b"data: {"):
                lines.append((perf_counter(), line))
            elif not lines and line.startswith(b'{"error"'):
                raise ValueError(line.decode())
    finally:
        writer.close()
    said = [(at, json.loads(line[6:])) for at, line in lines]
    used = [each["usage"]["completion_tokens"] for _, each in said if each.get("usage")]
    if not used:
        raise ValueError("no answer")
    times = tuple(at for at, each in said if any(choice.get("text") for choice in each["choices"]))
    return Seen(sent_at, times, used[-1])


def prompts(count: int, n_tokens: int) -> list[list[int]]:
    """Random words, never the same again."""
    return [[random.randrange(300, 20_000) for _ in range(n_tokens)] for _ in range(count)]


async def crowd(port: int, count: int) -> Found:
    """What so many clients at once saw."""
    begin = perf_counter()
    asked = enumerate(prompts(count, PROMPT))
    seen = await asyncio.gather(*(ask(port, prompt, ANSWER, seed) for seed, prompt in asked))
    took = max(each.times[-1] for each in seen) - begin
    if any(each.n_tokens != ANSWER for each in seen):
        raise SystemExit(f"answers of {sorted(each.n_tokens for each in seen)} tokens in place of {ANSWER}")
    firsts = [each.times[0] - each.sent_at for each in seen]
    gaps = [b - a for each in seen for a, b in pairwise(each.times)]
    return {
        f"{count} clients, tokens/s": count * ANSWER / took,
        f"{count} clients, first token, median, s": statistics.median(firsts),
        f"{count} clients, first token, p99, s": quantile(firsts),
        f"{count} clients, between tokens, median, ms": 1e3 * statistics.median(gaps),
        f"{count} clients, between tokens, p99, ms": 1e3 * quantile(gaps),
    }


def quantile(values: Sequence[float], share: float = 0.99) -> float:
    """The smallest value that so many are not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# -- servers --------------------------------------------------------------------------------------


def once(contender: Contender, counts: Sequence[int]) -> Found:
    """One start of a server, and what clients saw of it."""
    port = free_port()
    begin = perf_counter()
    with tempfile.TemporaryFile() as said:
        run = subprocess.Popen(
            [*contender.words, str(port)], stdout=said, stderr=said, cwd=ROOT,
            env={**os.environ, **contender.environment},
        )  # fmt: skip
        try:
            found = {"start, s": first_token(run, port, begin)}
            with Memory(run.pid) as memory:
                asyncio.run(ask(port, prompts(1, PROMPT)[0], 8, 0))  # a first long prompt warms up
                for count in counts:
                    found |= asyncio.run(crowd(port, count))
            return found | {"memory, MB": memory.most / 1e6}
        except ValueError as error:
            said.seek(0)
            raise SystemExit(f"{contender.name}: {error}\n{said.read()[-2000:].decode()}") from None
        finally:
            run.terminate()
            try:
                run.wait(30)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()


def first_token(run: subprocess.Popen[bytes], port: int, begin: float) -> float:
    """Seconds from `begin` until a token came."""
    while perf_counter() - begin < START_S and run.poll() is None:
        try:
            asyncio.run(ask(port, [300, 301, 302], 1, 0))
            return perf_counter() - begin
        except (OSError, ValueError):
            sleep(0.02)
    raise ValueError("the server gave no token")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Memory:
    """The most memory that a process and all below it have while this is entered, in bytes.  Mutable."""

    def __init__(self, pid: int):
        self.most, self._pid, self._over = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, sum(map(pss_bytes, family(self._pid))))


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, todo = list[int](), [pid]
    while todo:
        found.append(todo.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*"):
            try:
                todo += map(int, (task / "children").read_text().split())
            except OSError:
                continue  # it has just ended
    return found


def pss_bytes(pid: int) -> int:
    """A process's memory; of a page that several have, each counts its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("Pss:")), 0)


# -- the table ------------------------------------------------------------------------------------


def rows(rounds: Sequence[dict[str, Found]]) -> list[dict[str, object]]:
    """A row a figure: everyone's median, and the best rival's part of ours or ours of it."""
    table = []
    for what in rounds[0]["kvasir"]:
        row: dict[str, object] = {"what": what}
        medians = dict[str, float]()
        for name in rounds[0]:
            spread = Spread.of([each[name][what] for each in rounds])
            row[name], medians[name] = spread, spread.median
        ours = medians.pop("kvasir")
        if medians:
            more = what.endswith("tokens/s")
            row["of the best"] = ours / (max(medians.values()) if more else min(medians.values()))
        row["bar"] = BARS.get(what)
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=PROGRAM")
    parser.add_argument("--model", default="qwen3-0.6b:Q4_0", metavar="SHAPE:FORMAT")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, metavar="FILE")
    args = parser.parse_args()
    as_installed()
    about, path = machine(), subject(args.model)[0]
    rounds = list[dict[str, Found]]()
    if args.keep and args.keep.exists():
        rounds = [json.loads(line) for line in args.keep.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as cache:
        ours = kvasir(path, args.threads, cache)
        contenders = [ours, *(rival(told, path, args.threads) for told in args.rival)]
        say(f"the first start ever, in which weights are packed: {once(ours, ())['start, s']:.2f} s")
        for n in range(args.rounds):
            found = dict[str, Found]()
            for contender in contenders:
                found[contender.name] = once(contender, args.clients)
                told = ", ".join(f"{k} {number(v)}" for k, v in found[contender.name].items())
                say(f"  round {n + 1} of {args.rounds}: {contender.name}: {told}")
            rounds.append(found)
            if args.keep:
                args.keep.write_text("".join(json.dumps(each) + "\n" for each in rounds))
    names = [contender.name for contender in contenders]
    title = f"{args.model} over HTTP, {PROMPT} tokens in, {ANSWER} out, {args.threads} threads"
    report(title, about, ("what", *names, "of the best", "bar"), rows(rounds))


if __name__ == "__main__":
    main()
