"""What a process of its own costs a model: tokens a second at 1 and 16 streams, with the pipe and without.

Three ways to the same tokens: the steps alone (the time inside `Program.step`, which leaves out the choosing
of tokens), a `Model` in this process, and a `ModelProcess`, both read by one asyncio loop as the server does.
Tokens are drawn with Ollama's defaults, so that little can be guessed ahead.  The last column is what the
server's side of the pipe costs in CPU time, which other programs on the machine disturb least.
`python bench/pipe.py [--model mead] [--shape qwen3-0.6b --forms Q4_0]`
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, machine, report, say
from bench.subject import arguments, models
from kvasir.chat import ChatRequest, Finished
from kvasir.runner.client import ModelProcess
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams

STREAMS = (1, 16)


@dataclass
class Timed:
    """Mutable: adds up what a program's steps take."""

    program: Any
    took_s: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def step(self, *args: Any) -> Any:
        begin = perf_counter()
        result = self.program.step(*args)
        self.took_s += perf_counter() - begin
        return result


async def seconds(model: Model | ModelProcess, n_streams: int, n_tokens: int) -> float:
    """From the first request to the last token of all."""

    async def one(seed: int) -> None:
        params = SamplingParams(
            temperature=0.8, top_k=40, top_p=0.9, seed=seed, max_tokens=n_tokens, ignore_eos=True
        )
        stream = model.submit(ChatRequest(params, prompt=(5 + seed, 6, 7)))
        last = [event async for event in stream][-1]
        assert isinstance(last, Finished) and last.metrics.n_generated == n_tokens

    begin = perf_counter()
    await asyncio.gather(*(one(seed) for seed in range(n_streams)))
    return perf_counter() - begin


def main() -> None:
    args = arguments(__doc__, 64)
    about, rows = machine(), []
    for name, path in models(args):
        here, there = Model.load(path, threads=args.threads), ModelProcess.load(path, threads=args.threads)
        timed = here._engine.program = Timed(here._engine.program)  # type: ignore[assignment]
        for n in STREAMS:
            found: dict[str, list[float]] = {"steps alone": [], "one process": [], "two": []}
            server_ms: list[float] = []
            for run in range(args.runs + 1):
                timed.took_s = 0.0
                inside = asyncio.run(seconds(here, n, args.tokens))
                cpu_s = process_time()
                outside = asyncio.run(seconds(there, n, args.tokens))
                cpu_s = process_time() - cpu_s
                if run:  # the first warms up
                    server_ms.append(1e3 * cpu_s / args.tokens)
                    for column, took in zip(found, (timed.took_s, inside, outside), strict=True):
                        found[column].append(n * args.tokens / took)
            rates = {column: Spread.of(values) for column, values in found.items()}
            say(f"  {name}, {n} streams: {rates['two']} tokens a second")
            over = rates["steps alone"].median / rates["two"].median - 1
            row = {"model": name, "streams": n, **rates, "over steps, %": 100 * over}
            rows.append({**row, "server, ms a step": Spread.of(server_ms)})
        here.close()
        there.close()
    columns = ("model", "streams", "steps alone", "one process", "two", "over steps, %", "server, ms a step")
    report("the pipe, in tokens a second", about, columns, rows)


if __name__ == "__main__":
    main()
