"""Kvasir beside llama.cpp and ik_llama.cpp: the same files, as many threads, turn about in one run.

`python bench/rivals.py [SUITE]... [--rival NAME=FOLDER]... [--model SHAPE:FORMAT or FILE]... [--quick]`

Suites: decode, prefill, batched (sequences together), long (decode behind a long past), load (a process
until its first token), memory (its peak).  FOLDER holds `llama-bench` and `llama-batched-bench`;
docs/performance.md says how to build them.  `NAME:OPTION,...=FOLDER` gives a rival's llama-bench options, as
in `ik:-rtr,1=/opt/ik/bin`.  `--quick`: one round and few tokens, for a first look.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.contenders import BATCH_PROMPT, Contender, Kvasir, Rival
from bench.measure import Others, Spread, as_installed, bandwidth, machine, number, report, say
from bench.models import SHAPES, model_file
from bench.subject import Costs
from kvasir.backends.cpu import kernels

USUAL = tuple(f"{s}:{f}" for s in ("qwen3-0.6b", "llama3.2-1b") for f in ("Q4_0", "Q4_K_M", "Q8_0"))
QUIET, TRIES = 0.05, 3  # of the machine that others may take; how often an answer is asked for until then
FLOATS = ("F32", "F16", "BF16")
PREFILL_BARS = {"Q4_0": 1.7, "Q4_K_M": 1.5, "Q8_0": 1.3}


@dataclass(frozen=True)
class Limits:
    """What the machine does at most, measured in the same round: bytes and multiply-adds a second.

    `bandwidth` is that of two seconds, as long as an answer takes: on a machine that others share, the best
    20 ms are a fifth above it.  `best` is of those.
    """

    bandwidth: float
    best: float
    bytes_peak: float
    floats_peak: float

    @classmethod
    def now(cls, threads: int) -> Limits:
        native = kernels()
        peaks = (float(native.peak(kind, threads)) for kind in ("bytes", "floats"))
        return cls(bandwidth(threads, sustained=True), bandwidth(threads), *peaks)

    def macs(self, form: str) -> float:
        """Multiply-adds a second of a model in this format."""
        return self.floats_peak if form in FLOATS else self.bytes_peak


@dataclass(frozen=True)
class Cell:
    """One figure to be measured for one model.

    `ask` gives it; `limit` what the machine would allow, None where no bound is known; `bar` what the median
    must be of the best rival's, or words, None where nothing was set.  `less`: the smaller the better.
    """

    what: str
    unit: str
    ask: Callable[[Contender], float | None]
    limit: Callable[[Limits], float] | None = None
    bar: float | str | None = None
    less: bool = False


def cells(suite: str, path: str, form: str, shape: str, quick: bool) -> list[Cell]:
    """The figures of a suite."""
    costs = Costs(path)
    whole = form in FLOATS
    other = shape in ("qwen3moe-3b", "qwen3.5-0.8b")
    if suite == "decode":
        n = 24 if quick else 64
        bar: float | str = 1.0 if whole and not other else 1.15
        if shape == "llama3.2-1b" and not whole:
            bar = "92 % of the limit"
        limit = lambda m: m.bandwidth / costs.n_bytes(n // 2)  # noqa: E731
        return [Cell(f"decode {n}", "tokens/s", lambda c: c.decode(n), limit, bar)]
    if suite == "prefill":
        bar = 1.15 if other else PREFILL_BARS.get(form, 1.2)
        return [prefill(n, costs, form, bar) for n in (512, 2048)]
    if suite == "batched":
        bars = {8: 2.0} if other else {4: 1.7, 8: 2.5, 16: 2.5}
        return [batched(n, 16 if quick else 64, costs, form, bars.get(n)) for n in (1, 4, 8, 16)]
    if suite == "long":
        return [long(past, 4 if quick else 16, costs) for past in (4096, 16384)]
    if suite == "load":
        return [
            fresh(False, "first token of a process", "s", 1.0, load),
            fresh(True, "first token of a process", "s", "0.3 s" if shape == "llama3.2-1b" else 1.0, load),
        ]
    return [fresh(again, "peak memory", "MB", 1.05, memory) for again in (False, True)]


def fresh(
    again: bool, what: str, unit: str, bar: float | str, of: Callable[[Contender, bool], float | None]
) -> Cell:
    """A process of its own; `again`: not the first that loads this file."""
    return Cell(what + (", again" if again else ""), unit, lambda c: of(c, again), bar=bar, less=True)


def load(c: Contender, again: bool) -> float | None:
    found = c.fresh(8, 1, again)
    return found.seconds if found else None


def memory(c: Contender, again: bool) -> float | None:
    found = c.fresh(512, 16, again)
    return found.peak_bytes / 1e6 if found else None


def prefill(n: int, costs: Costs, form: str, bar: float) -> Cell:
    limit = lambda m: m.macs(form) * n / costs.prompt_macs(n)  # noqa: E731
    return Cell(f"prefill {n}", "tokens/s", lambda c: c.prefill(n), limit, bar)


def batched(n: int, n_tokens: int, costs: Costs, form: str, bar: float | None) -> Cell:
    """The limit: the weights once a step and each sequence's own past, or their arithmetic."""
    past = BATCH_PROMPT + n_tokens // 2

    def limit(m: Limits) -> float:
        own = costs.n_bytes(past) - costs.n_bytes(0)
        read_s = (costs.n_bytes(0) + n * own) / m.bandwidth
        return n / max(read_s, n * costs.macs(past) / m.macs(form))

    known = limit if n == 1 or not costs.has_experts else None
    return Cell(f"{n} together", "tokens/s", lambda c: c.batched(n, n_tokens), known, bar)


def long(past: int, n_tokens: int, costs: Costs) -> Cell:
    limit = lambda m: m.bandwidth / costs.n_bytes(past)  # noqa: E731
    return Cell(f"decode at {past}", "tokens/s", lambda c: c.deep(past, n_tokens), limit, 1.3)


def measured(
    cell: Cell, contenders: Sequence[Contender], rounds: int, tries: int, threads: int
) -> dict[str, object]:
    """One row: everyone once a round, in turn, the limits too.  What was disturbed is asked again."""
    found: dict[str, list[float]] = {c.name: [] for c in contenders}
    shares, disturbed = list[float](), list[float]()
    for i in range(rounds):
        limits = Limits.now(threads)
        say(f"  memory: {limits.bandwidth / 1e9:.1f} GB/s, at its best {limits.best / 1e9:.1f}")
        for c in contenders:
            value, others = quietly(cell, c, tries)
            disturbed.append(others)
            if value is not None:
                found[c.name].append(value)
            if value is not None and cell.limit and c is contenders[0]:
                shares.append(100 * value / cell.limit(limits))
            told = number(value) if value is not None else "-"
            told += f" {cell.unit}, others took {100 * others:.0f} %"
            say(f"  {cell.what}, round {i + 1} of {rounds}: {c.name} {told}")
    row: dict[str, object] = {"what": f"{cell.what}, {cell.unit}"}
    row |= {name: Spread.of(values) for name, values in found.items() if values}
    ours, *theirs = (Spread.of(v).median if v else None for v in found.values())
    known = [x for x in theirs if x]
    if ours and known:
        row["of the best"] = ours / (min(known) if cell.less else max(known))
    if known or isinstance(cell.bar, str):
        row["bar"] = cell.bar
    if shares:
        row["per cent of the limit"] = Spread.of(shares).median
    row["others, %"] = round(100 * max(disturbed))
    return row


def quietly(cell: Cell, c: Contender, tries: int) -> tuple[float | None, float]:
    """The quietest of a few answers, and how much of the machine other programs took meanwhile."""
    best: tuple[float | None, float] = (None, 1.0)
    for _ in range(tries):
        others = Others()
        value, share = cell.ask(c), others.share() or 0.0
        if best[0] is None or share < best[1]:
            best = value, share
        if value is None or share < QUIET:
            break
    return best


def subject(wanted: str) -> tuple[str, str, str]:
    """Path, format and shape of `SHAPE:FORMAT`, or of a file, whose format is taken from its name."""
    shape, _, form = wanted.partition(":")
    if shape in SHAPES:
        return str(model_file(shape, form or "Q4_K_M")), form or "Q4_K_M", shape
    forms = ("Q4_0", "Q4_K", "Q8_0", "BF16", "F16", "F32")
    form = next((f for f in forms if f in Path(wanted).name.upper()), "Q4_0")
    return str(Path(wanted).resolve()), form, Path(wanted).stem


def rival(told: str, path: str, threads: int) -> Rival:
    name, _, folder = told.partition("=")
    name, _, options = name.partition(":")
    if not (Path(folder) / "llama-bench").is_file():
        raise SystemExit(f"--rival {told}: no program llama-bench in {folder or 'no folder'}")
    words = tuple(options.split(",")) if options else ()
    return Rival(" ".join([name, *words]), Path(folder).resolve(), path, threads, words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = ("decode", "prefill", "batched", "long", "load", "memory")
    parser.add_argument("suite", nargs="*", default=[], help=", ".join(suites))
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument(
        "--model", action="append", metavar="SHAPE:FORMAT", help=f"default: {' '.join(USUAL)}"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--at", nargs="+", help="of prefill, batched and long these sizes only, as 512")
    parser.add_argument("--kv", help="Kvasir's number format of the cache")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.suite) - set(suites):
        parser.error(f"unknown suite {', '.join(unknown)}; there are {', '.join(suites)}")
    as_installed()
    about, rows = machine(), list[dict[str, object]]()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for wanted in args.model or USUAL:
            for row in rows_of(wanted, args):
                rows.append(row)  # at once, for a run that is cut short
    except KeyboardInterrupt:
        say("cut short: what was measured until here")
    ends = ("of the best", "bar", "per cent of the limit", "others, %")
    names = dict.fromkeys(k for row in rows for k in row if k not in ends and k != "suite")
    report(f"Kvasir and its rivals, {args.threads} threads", about, [*names, *ends], rows)


def rows_of(wanted: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The rows of one model, one by one."""
    rounds, tries = (1, 1) if args.quick else (args.rounds, TRIES)
    path, form, shape = subject(wanted)
    ours = Kvasir(path, args.threads, args.kv)
    contenders: list[Contender] = [ours, *(rival(r, path, args.threads) for r in args.rival)]
    for suite in args.suite or ("decode", "prefill"):
        for cell in cells(suite, path, form, shape, args.quick):
            sizes = set(cell.what.split())
            if not sizes & set(args.at) if args.at else args.quick and sizes & {"2048", "16384"}:
                continue
            say(f"{wanted}: {cell.what}")
            row = measured(cell, contenders, rounds, tries, args.threads)
            yield {"suite": suite, "model": wanted, **row}
    ours.close()


if __name__ == "__main__":
    main()
