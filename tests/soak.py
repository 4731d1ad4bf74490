"""A model under mixed load for a long time: `make soak`, or `python -m tests.soak --requests 10000`.

Requests of every kind come to a model's process: short and long, plain, constrained, several answers,
of four tenants, with prompts that begin alike; half of them are cancelled at random moments.  Fails when a
request gets stuck, when an answer differs from the same request's answer before, when a cache block is not
accounted for at the end, or when the process keeps growing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvasir.chat import ChatRequest, Delta, Finished, Message
from kvasir.errors import Busy, UsageError
from kvasir.runner.client import ModelProcess
from kvasir.sampling import SamplingParams
from kvasir.structured import StructuredOutputsParams

STUCK_S = 120.0  # without an event, far beyond any turn in the queue
GROWTH_BYTES = 64 << 20  # from the end of the first fifth to the end of the run
QUESTIONS = (
    "What is a VLAN?", "Explain DNS in one sentence", "What does a router do?", "Tell me a story", "2 + 2",
    "Repeat: one two three one two three one two three one two",
)  # fmt: skip
FORMS = (
    StructuredOutputsParams(choice=["yes", "no"]),
    StructuredOutputsParams(regex="[a-z]{3,12}"),
    StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}}),
)


@dataclass
class Tally:
    """What has happened.  Mutable."""

    counts: Counter[str] = field(default_factory=Counter)
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    bytes: list[int] = field(default_factory=list)

    def told(self) -> str:
        return ", ".join(f"{n:,} {name}" for name, n in sorted(self.counts.items()))


def a_request(number: int) -> ChatRequest:
    """The request of this number, always the same one."""
    rng = random.Random(number)
    question = rng.choice(QUESTIONS) + " please" * rng.choice((0, 0, 1, 3, 60))
    params = SamplingParams(
        temperature=rng.choice((0.0, 0.8)), seed=number, max_tokens=rng.choice((1, 4, 12, 24, 48)),
        n=rng.choice((1, 1, 1, 3)), top_k=rng.choice((0, 40)), ignore_eos=rng.random() < 0.2,
        logprobs=rng.choice((None, None, 2)),
    )  # fmt: skip
    if rng.random() < 0.1:
        params = replace(params, structured_outputs=rng.choice(FORMS))
    system = (Message("system", "You are a helpful assistant. " * rng.choice((1, 1, 8))),)
    messages = (*system, Message("user", question))
    return ChatRequest(params, messages, tenant=f"tenant {number % 4}", priority=rng.choice((0, 0, 1)))


async def one(model: ModelProcess, number: int, rng: random.Random, tally: Tally) -> None:
    """Sends a request, one of 400 different ones, and reads its answer or leaves in the middle."""
    which = number % 400
    leaves_after = rng.choice((0, 1, 2, 5, 9)) if rng.random() < 0.5 else None
    tokens = list[tuple[int, int]]()
    try:
        stream = model.submit(a_request(which))
    except Busy:
        tally.counts["refused"] += 1
        return
    try:
        events, seen = aiter(stream), 0
        while True:
            if seen == leaves_after:
                tally.counts["cancelled"] += 1
                return
            event = await asyncio.wait_for(anext(events), STUCK_S)
            seen += 1
            if isinstance(event, Delta):
                tokens += ((event.index, t) for t in event.token_ids)
            elif isinstance(event, Finished) and event.reason == "abort":
                raise AssertionError(f"request {which} was cut off")
    except StopAsyncIteration:
        answer = tuple(t for _, t in sorted(tokens, key=lambda pair: pair[0]))
        assert tally.texts.setdefault(which, answer) == answer, f"request {which} has another answer now"
        tally.counts["answered"] += 1
    except UsageError:
        tally.counts["impossible"] += 1
    finally:
        stream.cancel()


async def load(model: ModelProcess, n_clients: int, n_requests: int, seconds: float, tally: Tally) -> None:
    """Clients that each send request after request until there were enough or the time is over."""
    numbers, end = iter(range(n_requests)), time.monotonic() + seconds
    last = [time.monotonic()]

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        for number in numbers:
            if time.monotonic() > end:
                return
            await one(model, number * 7919 + seed % 2, rng, tally)
            if number % 200 == 0:
                tally.bytes.append(resident_bytes(model.pid))
            if time.monotonic() - last[0] > 20:
                last[0] = time.monotonic()
                print(f"{tally.told()}; {tally.bytes[-1] / 1e6:.0f} MB", flush=True)

    await asyncio.gather(*(client(seed) for seed in range(n_clients)))


def resident_bytes(pid: int) -> int:
    """Of a process, as the system counts them."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def run(n_requests: int, seconds: float, n_clients: int = 40, n_blocks: int | None = None) -> Tally:
    """The whole test.  Raises AssertionError for what must not be."""
    tally = Tally()
    model = ModelProcess.load("mead", n_blocks=n_blocks)
    try:
        asyncio.run(load(model, n_clients, n_requests, seconds, tally))
        model.check()
    finally:
        model.close()
    settled, last = tally.bytes[len(tally.bytes) // 5], tally.bytes[-1]
    assert last - settled < GROWTH_BYTES, f"grew from {settled / 1e6:.0f} to {last / 1e6:.0f} MB"
    return tally


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--requests", type=int, default=1 << 60)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--blocks", type=int, help="of the cache: few of them, and sequences are preempted")
    args = parser.parse_args(arguments)
    begin = time.monotonic()
    tally = run(args.requests, args.seconds, args.clients, args.blocks)
    settled, last = tally.bytes[len(tally.bytes) // 5], tally.bytes[-1]
    print(
        f"{tally.told()} in {time.monotonic() - begin:.0f} s; all blocks are back; "
        f"{settled / 1e6:.0f} MB after a fifth of it, {last / 1e6:.0f} MB at the end"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
