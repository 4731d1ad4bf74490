"""Many clients that stream at once: do all get their answers, what does the server take, what does HTTP add.

The server is as under `kvasir serve`, with a model that computes 16 answers at a time; the others wait.  It
runs in a process of its own, and so do its model and the clients.  First 500 clients come at once, each with
a prompt of its own; then twice as many as may wait at all (`--max-queue`), some of which must be refused.
"server, %" is the CPU time of the server's process, of that of server and model together.  Then 16 clients,
and one, stream with nobody waiting, turn about with the same requests to a `ModelProcess` without HTTP; a
client's time a token is from its first piece to its last, and the median of all clients counts.  "added" is
the time between a piece's coming from the model's process and its being read, with HTTP less without, each
at the median of all pieces.

`python bench/streams.py [--model mead] [--shape qwen3-0.6b --form Q4_0] [--clients 500] [--tokens 16]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, machine, report, say
from bench.models import model_file
from kvasir.api.house import House
from kvasir.api.server import server
from kvasir.chat import ChatRequest, Delta, Event
from kvasir.errors import KvasirError
from kvasir.runner.client import ModelProcess
from kvasir.runner.registry import Models
from kvasir.runner.stream import Ring, Stream
from kvasir.sampling import SamplingParams
from kvasir.settings import MAX_REQUESTS, Address

RUNNING = 16
CPU_BAR, ADDED_BAR_MS = 15.0, 2.0
TICKS = os.sysconf("SC_CLK_TCK")
DRAWN = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "ignore_eos": True}


@dataclass
class Client:
    """What one client saw.  `status` 200 and `whole`: it got all its tokens.  Mutable."""

    status: int = 0
    whole: bool = False
    clear: bool = False  # a refusal in JSON that says when to come again
    at: list[float] = field(default_factory=list)  # when each piece came

    @property
    def outcome(self) -> str:
        return "whole" if self.whole else "refused" if self.status == 503 and self.clear else "lost"

    def each_ms(self, n_tokens: int) -> float:
        """Between two of its tokens, in the mean."""
        return 1e3 * (self.at[-1] - self.at[0]) / (n_tokens - 1)


def serve(model: str, max_queue: int) -> None:
    """The server's process: says its port and the pid of the model's process, then answers."""

    def load(name: str, **told: Any) -> ModelProcess:
        return ModelProcess.load(name, max_sequences=RUNNING, **told)

    models = Models(load)
    loaded = models.get(model)
    house = House(models, 3600.0, {"m": model}, max_requests=max_queue)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    port = listener.getsockname()[1]
    put_at: dict[int, list[float]] = {}
    note(loaded, put_at)
    print(port, loaded.pid, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the server lets it through when it has ended
    try:
        server(house, Address("127.0.0.1", port)).run(sockets=[listener])
    finally:
        print(json.dumps(put_at), flush=True)
        house.close()
        loaded.close()


def note(model: ModelProcess, put_at: dict[int, list[float]]) -> None:
    """Has `model` note when pieces of answers come from its process, by the seeds of their requests."""
    submit = model.submit

    def noting(request: ChatRequest) -> Stream:
        stream = submit(request)
        add, times = stream.add, put_at.setdefault(request.params.seed or 0, [])

        def timed(event: Event | KvasirError) -> Ring | None:
            if isinstance(event, Delta) and event.text:
                times.append(perf_counter())
            return add(event)

        stream.add = timed  # type: ignore[method-assign]
        return stream

    model.submit = noting  # type: ignore[method-assign]


class Server:
    """A server under measurement.  Mutable."""

    def __init__(self, model: str, max_queue: int = MAX_REQUESTS):
        words = [sys.executable, __file__, "--serve", model, "--max-queue", str(max_queue)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port, self._model_pid = map(int, self._process.stdout.readline().split())

    def cpu_s(self) -> tuple[float, float]:
        """Of the server, and of the model."""
        return _cpu_s(self._process.pid), _cpu_s(self._model_pid)

    def close(self) -> dict[int, list[float]]:
        """Ends it; when pieces of answers came from the model's process, by seed."""
        self._process.terminate()
        assert self._process.stdout
        told = self._process.stdout.read()
        self._process.wait()
        return {int(seed): times for seed, times in json.loads(told).items()}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def streamed(port: int, seed: int, n_tokens: int) -> Client:
    """One client, from its connection to the answer's end."""
    seen = Client()
    body = json.dumps(
        {
            "model": "m", "prompt": [5 + seed % 1000, 6, 7 + seed // 1000], "max_tokens": n_tokens,
            "seed": seed, "stream": True, "stream_options": {"include_usage": True}, **DRAWN,
        }
    )  # fmt: skip
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}connection: close\r\n\r\n{body}".encode())
        seen.status = int((await reader.readline()).split()[1])
        retry, last = False, b""
        while line := await reader.readline():
            retry = retry or line.lower().startswith(b"retry-after:")
            if line.startswith(b"data: {"):
                seen.at.append(perf_counter())
                last = line
            elif line == b"data: [DONE]\n":
                del seen.at[-2:]  # the end and the counts, which are no pieces
                seen.whole = json.loads(last[6:])["usage"]["completion_tokens"] == n_tokens
            elif line.startswith(b'{"error"'):
                seen.clear = retry
    finally:
        writer.close()
    return seen


async def direct(model: ModelProcess, seed: int, n_tokens: int) -> Client:
    """The same without HTTP."""
    seen = Client(200)
    wishes = {**DRAWN, "seed": seed, "max_tokens": n_tokens}
    request = ChatRequest(SamplingParams(**wishes), prompt=(5 + seed % 1000, 6, 7 + seed // 1000))
    async for event in model.submit(request):
        if isinstance(event, Delta) and event.text:
            seen.at.append(perf_counter())
    seen.whole = True
    return seen


async def together(one: Callable[[int], Coroutine[Any, Any, Client]], seeds: Sequence[int]) -> list[Client]:
    return await asyncio.gather(*(one(seed) for seed in seeds))


def crowd(name: str, model: str, n_clients: int, n_tokens: int, max_queue: int) -> dict[str, Any]:
    """A row: what became of many clients, and who worked for them."""
    its = Server(model, max_queue)
    try:
        asyncio.run(together(lambda seed: streamed(its.port, seed, 4), range(2)))
        before, begin = its.cpu_s(), perf_counter()
        seen = asyncio.run(together(lambda seed: streamed(its.port, seed, n_tokens), range(n_clients)))
        took_s = perf_counter() - begin
        own_s, model_s = (after - at for after, at in zip(its.cpu_s(), before, strict=True))
    finally:
        its.close()
    outcomes = Counter(each.outcome for each in seen)
    share = 100 * own_s / (own_s + model_s)
    return {
        "model": name,
        "clients": n_clients,
        **{key: outcomes[key] for key in ("whole", "refused", "lost")},
        "tokens/s": outcomes["whole"] * n_tokens / took_s,
        "server, %": share,
        "server, ms a token": 1e3 * own_s / max(outcomes["whole"] * n_tokens, 1),
        "bar, %": CPU_BAR,
        "met": not outcomes["lost"] and share < CPU_BAR,
    }


def times(name: str, model: str, n_streams: int, n_tokens: int, runs: int) -> dict[str, Any]:
    """A row: medians of the time between two pieces, with HTTP and without, turn about."""
    its, plain = Server(model), ModelProcess.load(model, max_sequences=RUNNING)
    found: dict[str, list[float]] = {"over HTTP": [], "without": []}
    put_at: dict[int, list[float]] = {}
    note(plain, put_at)
    rounds: list[tuple[range, list[Client], list[Client]]] = []
    try:
        for run in range(runs + 1):
            seeds = range(run * n_streams + 1, (run + 1) * n_streams + 1)
            over = asyncio.run(together(lambda seed: streamed(its.port, seed, n_tokens), seeds))
            without = asyncio.run(together(lambda seed: direct(plain, seed, n_tokens), seeds))
            if run:  # the first warms up
                rounds.append((seeds, over, without))
                for key, seen in zip(found, (over, without), strict=True):
                    found[key].append(statistics.median(client.each_ms(n_tokens) for client in seen))
    finally:
        served_at = its.close()
        plain.close()
    added = [
        late_ms(served_at, seeds, over) - late_ms(put_at, seeds, without) for seeds, over, without in rounds
    ]
    say(f"  {name}, {n_streams} streams: {Spread.of(added)} ms added")
    return {
        "model": name,
        "streams": n_streams,
        **{key: Spread.of(values) for key, values in found.items()},
        "added": Spread.of(added),
        "bar, ms": ADDED_BAR_MS,
        "met": statistics.median(added) < ADDED_BAR_MS,
    }


def late_ms(put_at: dict[int, list[float]], seeds: Sequence[int], seen: Sequence[Client]) -> float:
    """From a piece's arrival from the model's process to its reading, at the median of all pieces."""
    each = [
        read - put
        for seed, client in zip(seeds, seen, strict=True)
        for put, read in zip(put_at[seed], client.at, strict=True)
    ]
    return 1e3 * statistics.median(each)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a name, file or folder, instead of a shape")
    parser.add_argument("--shape", default="qwen3-0.6b", help="a shape of bench/models.py")
    parser.add_argument("--form", default="Q4_0", help="its number format")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument(
        "--tokens",
        type=int,
        default=16,
        help="of each client; four times as many for times",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("crowd", "times"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--max-queue", type=int, default=MAX_REQUESTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.max_queue)
        return
    about = machine()
    name = args.model or f"{args.shape} {args.form}"
    model = args.model or str(model_file(args.shape, args.form))
    if args.only != "times":
        rows = [crowd(name, model, args.clients, args.tokens, MAX_REQUESTS)]
        rows.append(crowd(f"{name}, at most {args.clients // 2} wait", model, args.clients, args.tokens,
                          args.clients // 2))  # fmt: skip
        columns = ("model", "clients", "whole", "refused", "lost", "tokens/s", "server, %",
                   "server, ms a token", "bar, %", "met")  # fmt: skip
        report(f"{args.clients} clients at once", about, columns, rows)
    if args.only != "crowd":
        rows = [times(name, model, n, 4 * args.tokens, args.runs) for n in (RUNNING, 1)]
        columns = (
            "model",
            "streams",
            "over HTTP",
            "without",
            "added",
            "bar, ms",
            "met",
        )
        report("time a token, and what HTTP adds to a piece, in ms", about, columns, rows)


if __name__ == "__main__":
    main()
