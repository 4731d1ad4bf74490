"""Where the time of a step goes: each kind of op, what lies between them, and what the machine allows.

`python bench/ops.py [--shape qwen3-0.6b] [--forms Q4_0] [--rows 1 8 16 512] [--past 64] [--engine]`

Up to 64 rows are as many sequences with a token each, more are one prompt.  Ops run in groups (kvasir/plan/
passes.py); a group bears the kinds of its ops.  Its time is taken by the extension, a clock reading between
two groups; `step` is the same call unclocked; with --engine an engine decodes as many sequences, and what a
step of it takes beyond the call is Python's: scheduling, the batch, choosing, appending.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import bandwidth, machine, report, say
from bench.models import model_file
from kvasir.backends.base import BLOCK, Batch, Memory
from kvasir.backends.cpu import CpuBackend, CpuProgram, kernels
from kvasir.checkpoint.open import open_checkpoint
from kvasir.engine.engine import Engine
from kvasir.models import build
from kvasir.plan import Plan, ops
from kvasir.plan.show import Cost, op_cost
from kvasir.sampling import SamplingParams

SEPARATE = 64  # more rows than this are one prompt
COLUMNS = ("op", "times", "us", "per cent", "MB", "GB/s", "G multiply-adds/s")


@dataclass(frozen=True)
class Subject:
    """A model ready to step, and the bytes of its weights."""

    name: str
    plan: Plan
    program: CpuProgram
    sizes: dict[str, int]


def subject(name: str, path: Path, n_tokens: int, threads: int | None) -> Subject:
    plan, weights = build(open_checkpoint(path), None)
    memory = Memory(n_blocks=-(-n_tokens // BLOCK) + SEPARATE, n_slots=SEPARATE)
    program = CpuBackend(threads=threads).compile(plan, weights, memory)
    return Subject(name, plan, program, {name: weights[name].n_bytes for name in plan.weights})


def batch(rows: int, past: int) -> Batch:
    """`rows` sequences with a token each and `past` tokens behind it, or one with `rows` tokens."""
    n = rows if rows <= SEPARATE else 1
    each = rows // n
    blocks = np.arange(n * -(-(past + each) // BLOCK), dtype=np.int32).reshape(n, -1)
    return Batch(
        tokens=np.arange(1, rows + 1, dtype=np.int32) % 200,
        positions=np.tile(np.arange(past, past + each, dtype=np.int32), n),
        starts=np.arange(0, rows + 1, each, dtype=np.int32),
        blocks=blocks,
        slots=np.arange(n, dtype=np.int32),
        logit_rows=np.arange(each - 1, rows, each, dtype=np.int32),
    )


def timed(once: Callable[[], object], seconds: float) -> list[float]:
    """The seconds of each of as many calls as fit, at least five, after two that do not count."""
    once(), once()
    times, end = list[float](), perf_counter() + seconds
    while len(times) < 5 or perf_counter() < end:
        start = perf_counter()
        once()
        times.append(perf_counter() - start)
    return times


def grouped(s: Subject, b: Batch, seconds: float) -> dict[str, tuple[int, float, Cost]]:
    """By label: how many groups a step has, their median seconds together, and their cost."""
    native, groups = s.program.compiled.native, defaultdict[int, list[int]](list)
    for i, at in s.program.compiled.emitted.items():
        groups[at].append(i)
    native.timed = True
    takes = list[list[float]]()

    def once() -> None:
        s.program.step(b)
        takes.append(native.seconds)

    timed(once, seconds)
    native.timed = False
    each = np.median(np.asarray(takes[2:]), axis=0)
    found: dict[str, tuple[int, float, Cost]] = {}
    rows = {"T": len(b.tokens), "R": len(b.logit_rows), "N": len(b.slots)}
    for at, took_s in enumerate(each):
        its_ops = [s.plan.ops[i] for i in groups.get(at, [])]
        label = labelled(its_ops)
        cost = Cost()
        for op in its_ops:
            one = op_cost(op, s.sizes, int(b.positions.mean()) + 1)
            n = rows[op.out.rows]
            shared = 1 if not isinstance(op, ops.Embed) else n
            cost += Cost(one.weight_bytes * shared, one.past_bytes * len(b.slots), one.macs * n)
        times, total, costs = found.get(label, (0, 0.0, Cost()))
        found[label] = times + 1, total + float(took_s), costs + cost
    return found


def labelled(its_ops: Sequence[ops.Op]) -> str:
    """Kinds of ops, those repeated counted; products by the names of their matrices."""
    if not its_ops:
        return "prepare"
    names = list[str]()
    for op in its_ops:
        name = op.weight.name.split(".")[-1] if isinstance(op, ops.Linear) else op.kind
        if not names or names[-1] != name:
            names.append(name)
    return " ".join(names)


def engine_step(s: Subject, rows: int, past: int, seconds: float) -> float:
    """Median seconds of an engine's step that decodes `rows` sequences."""
    engine = Engine(s.program, (), SEPARATE, drafter=None)
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    for n in range(rows):
        engine.add(engine.sequence([1 + (n + i) % 200 for i in range(max(past, 1))], params))
    while any(x.n_pending > 1 for x in (*engine.scheduler.running, *engine.scheduler.waiting)):
        engine.step()
    return median(timed(engine.step, seconds))


def table(s: Subject, rows: int, args: argparse.Namespace) -> None:
    about = machine()
    b = batch(rows, args.past)
    native = s.program.compiled.native
    arrays = (b.tokens, b.positions, b.starts, b.blocks, b.slots, b.logit_rows)
    output = np.empty((len(b.logit_rows), s.plan.output.width if s.plan.output else 0), np.float32)
    threads = s.program.backend.pool.threads
    band, peak = bandwidth(threads), kernels().peak("fp32", threads)
    step_s = median(timed(lambda: native.step(*arrays, output), args.seconds))
    found = grouped(s, b, args.seconds)
    band = median([band, bandwidth(threads)])
    lines = list[dict[str, object]]()

    def add(label: str, times: int, took_s: float, cost: Cost) -> None:
        lines.append({
            "op": label, "times": times, "us": took_s * 1e6, "per cent": 100 * took_s / step_s,
            "MB": cost.n_bytes / 1e6, "GB/s": cost.n_bytes / took_s / 1e9,
            "G multiply-adds/s": cost.macs / took_s / 1e9,
        })  # fmt: skip

    for label, (times, took_s, cost) in sorted(found.items(), key=lambda item: -item[1][1]):
        add(label, times, took_s, cost)
    whole = sum((cost for _, _, cost in found.values()), Cost())
    add("step", 1, step_s, whole)
    if args.engine and rows <= SEPARATE:
        add("engine's step", 1, engine_step(s, rows, args.past, args.seconds), whole)
    lines.append({"op": "machine", "GB/s": band / 1e9, "G multiply-adds/s": peak / 1e9})
    report(f"{s.name}: a step of {rows} rows, {args.past} tokens of past", about, COLUMNS, lines)
    best_s = whole.n_bytes / band
    share = 100 * best_s / step_s
    say(f"  {1e3 * step_s:.2f} ms; its bytes alone {1e3 * best_s:.2f} ms: {share:.1f} per cent")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", type=Path, help="a model file, for a shape of bench/models.py")
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--forms", nargs="+", default=["Q4_0"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 16, 512])
    parser.add_argument("--past", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--threads", type=int, help="default: one a core")
    parser.add_argument("--engine", action="store_true", help="also a step of the engine")
    args = parser.parse_args()
    files = [(str(args.model), args.model)] if args.model else [
        (f"{args.shape} {form}", model_file(args.shape, form)) for form in args.forms
    ]  # fmt: skip
    for name, path in files:
        say(f"loading {name}")
        n_tokens = max(max(args.rows), SEPARATE * 64) + args.past * SEPARATE
        s = subject(name, path, n_tokens, args.threads)
        for rows in args.rows:
            table(s, rows, args)


if __name__ == "__main__":
    main()
