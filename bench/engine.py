"""What the engine adds to a bare step, and what its tricks save, on one model of real shape.

    python bench/engine.py [--shape qwen3-0.6b] [--form Q4_0] [--runs 5] [--only SUITE...] [--streams 4]

prefix    time to first token of a prompt of 1,300 tokens, first and again
drafts    tokens a second with and without n-gram drafts: on a copy-edit text, and on text without repeats.
          The weights are random, so the text is dictated: the program computes every row in full, and then
          the wanted token's logit is raised.
pair      tokens a second of a model (the shape `pair`) with and without a draft model that agrees with it
stall     time between the tokens of some streams while a prompt of 4,096 tokens arrives
tenants   time to first token of a prompt that another tenant has asked before, beside one that nobody has
overhead  share of a step of 16 sequences that is not spent inside the program
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import RUNS, Spread, machine, report, say
from bench.models import model_file
from kvasir.backends.base import Batch, Floats, Memory, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.checkpoint.open import open_checkpoint
from kvasir.engine.draft_model import ModelDrafter
from kvasir.engine.engine import Engine
from kvasir.engine.sequence import Sequence
from kvasir.models import build
from kvasir.sampling import SamplingParams

PROMPT, LONG, ANSWER = 1300, 4096, 256
STALL_S = 100.0  # of the arrival of a long prompt are looked at, if it takes longer
CALM = 100  # steps before the long prompt, and as many behind it


class Dictated:
    """A program whose sequences follow scripts: row at position p of a text gives the text's token p + 1."""

    def __init__(self, program: Program, text: list[int]):
        self.program, self.text = program, text
        self.plan, self.memory = program.plan, program.memory
        self.took_s = 0.0

    def step(self, batch: Batch) -> Floats:
        begun = perf_counter()
        logits = self.program.step(batch)
        self.took_s += perf_counter() - begun
        for row, at in zip(logits, batch.positions[batch.logit_rows], strict=True):
            row[self.text[min(int(at) + 1, len(self.text) - 1)]] = 1e6
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)


def ended(engine: Engine, sequences: list[Sequence]) -> None:
    while any(s.finished is None for s in sequences):
        engine.step()


def ask(engine: Engine, tokens: list[int], n_tokens: int, tenant: str = "") -> Sequence:
    wish = SamplingParams(temperature=0, max_tokens=n_tokens, ignore_eos=True)
    sequence = engine.sequence(tokens, wish, tenant=tenant)
    engine.add(sequence)
    return sequence


def prefix(program: Program, runs: int) -> list[dict[str, object]]:
    firsts, seconds = [], []
    for i in range(runs):
        engine = Engine(program)
        prompt = [(7919 * j + i) % 5000 for j in range(PROMPT)]
        for into in (firsts, seconds):
            sequence = ask(engine, prompt, 1)
            ended(engine, [sequence])
            into.append(sequence.metrics().ttft_s)
        say(f"  prefix: run {i + 1} of {runs}: {firsts[-1]:.2f} s, {seconds[-1]:.4f} s")
    share = 100 * statistics.median(seconds) / statistics.median(firsts)
    return [
        {"what": f"first token after {PROMPT} tokens, new", "figure": Spread.of(firsts), "unit": "s"},
        {"what": "the same again, from the prefix cache", "figure": Spread.of(seconds), "unit": "s"},
        {"what": "the second as a share of the first", "figure": share, "unit": "%", "bar": "<= 1"},
    ]


def drafts(program: Program, runs: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 50_000, ANSWER).tolist()
    edited = [int(rng.integers(0, 50_000)) if rng.random() < 0.03 else t for t in source]
    rows = []
    for name, text, bar in (
        ("copy-edit, 3 words in 100 changed", [*source, 7, *edited], ">= 1.8"),
        ("text without repeats", rng.integers(0, 50_000, 2 * ANSWER + 1).tolist(), ">= 0.97"),
    ):
        rates: dict[str, list[float]] = {"plain": [], "drafts": []}
        for i in range(runs):
            for kind, into in rates.items():
                engine = Engine(Dictated(program, text), drafter="ngram" if kind == "drafts" else None)
                sequence = ask(engine, text[: ANSWER + 1], ANSWER - 1)
                ended(engine, [sequence])
                assert sequence.generated == text[ANSWER + 1 : 2 * ANSWER]
                into.append(sequence.metrics().decode_rate)
            say(f"  {name}: run {i + 1} of {runs}: {rates['plain'][-1]:.1f}, {rates['drafts'][-1]:.1f}")
        ratio = statistics.median(d / p for d, p in zip(rates["drafts"], rates["plain"], strict=True))
        rows += [
            {"what": f"{name}, plain", "figure": Spread.of(rates["plain"]), "unit": "tokens/s"},
            {"what": f"{name}, n-gram drafts", "figure": Spread.of(rates["drafts"]), "unit": "tokens/s"},
            {"what": f"{name}, ratio", "figure": ratio, "unit": "", "bar": bar},
        ]
    return rows


def pair(program: Program, runs: int) -> list[dict[str, object]]:
    """Not `program`: a model whose first layers are its draft model."""
    target, draft = (compiled(name, "Q4_0") for name in ("pair", "pair-draft"))
    rates: dict[str, list[float]] = {"plain": [], "drafts": []}
    kept = list[float]()
    for i in range(runs):
        texts = []
        prompt = [(7919 * j + i) % 5000 for j in range(64)]
        for kind, into in rates.items():
            engine = Engine(target, drafter=ModelDrafter(draft) if kind == "drafts" else None)
            sequence = ask(engine, prompt, ANSWER)
            ended(engine, [sequence])
            texts.append(sequence.generated)
            into.append(sequence.metrics().decode_rate)
        assert texts[0] == texts[1], "drafts changed an answer"
        kept.append(100 * sequence.n_accepted / max(sequence.n_drafted, 1))
        say(f"  pair: run {i + 1} of {runs}: {rates['plain'][-1]:.1f}, {rates['drafts'][-1]:.1f}")
    ratio = statistics.median(d / p for d, p in zip(rates["drafts"], rates["plain"], strict=True))
    return [
        {"what": "a pair that agrees, plain", "figure": Spread.of(rates["plain"]), "unit": "tokens/s"},
        {"what": "a pair that agrees, with the draft", "figure": Spread.of(rates["drafts"]),
         "unit": "tokens/s"},
        {"what": "a pair that agrees, guesses that were right", "figure": Spread.of(kept), "unit": "%"},
        {"what": "a pair that agrees, ratio", "figure": ratio, "unit": "", "bar": ">= 2"},
    ]  # fmt: skip


def stall(program: Program, runs: int, n_streams: int = 4) -> list[dict[str, object]]:
    calm, slow, busy, read = [], [], [], []
    for i in range(runs):
        engine = Engine(program, drafter=None)
        streams = [ask(engine, [5 + n, 6, 7], 4000) for n in range(n_streams)]
        gaps = [_timed(engine.step) for _ in range(CALM + 8)][8:]
        long = ask(engine, [(7919 * j + i) % 5000 for j in range(LONG)], 1)
        during = []
        while long.n_generated == 0 and sum(during) < STALL_S:
            during.append(_timed(engine.step))
        read.append(long.n_computed / sum(during))
        engine.finish(long, "abort")
        gaps += [_timed(engine.step) for _ in range(CALM + 8)][8:]  # what the machine does to a step changes
        for each in streams:
            engine.finish(each, "abort")
        calm.append(statistics.median(gaps))
        slow.append(float(np.quantile(gaps, 0.99)))
        busy.append(float(np.quantile(during, 0.99)))
        say(f"  stall: run {i + 1} of {runs}: {calm[-1] * 1e3:.1f} ms, then {busy[-1] * 1e3:.1f} ms")
    ratio = statistics.median(b / c for b, c in zip(busy, calm, strict=True))
    what = f"between tokens of {n_streams} streams"
    return [
        {"what": f"{what}, median, alone", "figure": Spread.of(calm), "unit": "s"},
        {"what": f"{what}, p99, alone", "figure": Spread.of(slow), "unit": "s"},
        {"what": f"{what}, p99, while {LONG} tokens arrive", "figure": Spread.of(busy), "unit": "s"},
        {"what": f"{what}, ratio", "figure": ratio, "unit": "", "bar": "<= 2"},
        {"what": f"the {LONG} meanwhile, beside {n_streams} streams", "figure": Spread.of(read),
         "unit": "tokens/s"},
    ]  # fmt: skip


def tenants(program: Program, runs: int) -> list[dict[str, object]]:
    found: dict[str, list[float]] = {"own": [], "another's": [], "new": []}
    engine = Engine(program)
    for i in range(2 * runs):
        known, new = ([(7919 * j + 2 * i + k) % 5000 for j in range(PROMPT // 4)] for k in (0, 1))
        ended(engine, [ask(engine, known, 1, "first")])
        asked = [("own", known, "first"), ("another's", known, "second"), ("new", new, "second")]
        for what, prompt, tenant in asked if i % 2 else reversed(asked):
            sequence = ask(engine, prompt, 1, tenant)
            ended(engine, [sequence])
            assert what == "own" or not sequence.n_cached
            found[what].append(sequence.metrics().ttft_s)
        say(f"  tenants: run {i + 1} of {2 * runs}: " + ", ".join(f"{v[-1]:.3f} s" for v in found.values()))
    ratio = statistics.median(a / b for a, b in zip(found["another's"], found["new"], strict=True))
    return [
        {"what": "first token, asked before by oneself", "figure": Spread.of(found["own"]), "unit": "s"},
        {"what": "first token, asked before by another tenant", "figure": Spread.of(found["another's"]),
         "unit": "s"},
        {"what": "first token, never asked before", "figure": Spread.of(found["new"]), "unit": "s"},
        {"what": "another tenant's by a new one, ratio", "figure": ratio, "unit": "", "bar": "0.97 to 1.03"},
    ]  # fmt: skip


def overhead(program: Program, runs: int) -> list[dict[str, object]]:
    shares = []
    for _ in range(runs):
        timed = Dictated(program, list(range(400)))
        engine = Engine(timed)
        sequences = [ask(engine, [i + 1] * 8, 64) for i in range(16)]
        engine.step()
        timed.took_s, begun = 0.0, perf_counter()
        ended(engine, sequences)
        shares.append(100 * (1 - timed.took_s / (perf_counter() - begun)))
    return [
        {"what": "outside the program, 16 sequences", "figure": Spread.of(shares), "unit": "%", "bar": "< 5"}
    ]


def _timed(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


def compiled(shape: str, form: str, threads: int | None = None) -> Program:
    plan, weights = build(open_checkpoint(model_file(shape, form)))
    return CpuBackend(threads=threads).compile(plan, weights, Memory(1600))


SUITES: dict[str, Callable[..., list[dict[str, object]]]] = {
    "prefix": prefix, "drafts": drafts, "pair": pair, "stall": stall, "tenants": tenants,
    "overhead": overhead,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="qwen3-0.6b", help="a shape of bench/models.py")
    parser.add_argument("--form", default="Q4_0")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--streams", type=int, default=4, help="of the suite stall")
    args = parser.parse_args()
    about = machine()
    program = compiled(args.shape, args.form, args.threads)
    rows = []
    for name in args.only:
        more = (args.streams,) if name == "stall" else ()
        rows += SUITES[name](program, args.runs, *more)
    report(f"the engine, {args.shape} {args.form}", about, ("what", "figure", "unit", "bar"), rows)


if __name__ == "__main__":
    main()
