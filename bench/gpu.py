"""How near the CUDA backend is to what the GPU allows: one command, under eight minutes, the table last.

Random weights of real shapes, made on the device.  In the same run: how fast the device reads its memory and
multiplies in bf16; every figure stands beside its share of that.  Then the checks: a graph's replay is the
eager step bit for bit, greedy ids are the reference's, and what answers that do not depend on the batch cost.

`python bench/gpu.py [--only 8B-bf16 ...] [--runs 5] [--device cuda] [--tiny]`; `--tiny --device cpu` tries
its own logic with a model of two layers, and says nothing about speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, machine, number, report, say
from bench.models import SHAPES, Shape
from kvasir.backends.base import BLOCK, Batch, Memory
from kvasir.checkpoint.tensor import Tensor
from kvasir.plan import Plan
from kvasir.quant.formats import FORMATS
from kvasir.sampling import SamplingParams

LLAMA_8B = Shape("llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192, 5e5, pre="llama-bpe")
GREEDY = SamplingParams(temperature=0)
PRODUCT = 8192  # the side of the matrices that the limit is measured with
BUDGET_S = 480


@dataclass(frozen=True)
class Case:
    """One row: a shape in a format, what is measured, the published best, and the bar."""

    name: str
    shape: Shape
    form: str
    kind: str  # decode, prefill, serve, ttft
    published: str
    bar: float
    unit: str
    sequences: int = 1
    prompt: int = 128
    tokens: int = 128


CASES = (
    Case("8B-bf16 decode", LLAMA_8B, "BF16", "decode", "SGLang 158", 165, "tok/s"),
    Case("8B-Q4_0 decode", LLAMA_8B, "Q4_0", "decode", "GemLite 255", 350, "tok/s"),
    Case("1B-bf16 decode", SHAPES["llama3.2-1b"], "BF16", "decode", "megakernel 78 %, SGLang 50 %",
         850, "tok/s"),
    Case("0.6B-bf16 decode", SHAPES["qwen3-0.6b"], "BF16", "decode", "vLLM 14 % on a 3090", 1000, "tok/s"),
    Case("8B-bf16 prefill", LLAMA_8B, "BF16", "prefill", "50 to 70 % of peak", 60, "% of the product",
         prompt=2048),
    Case("8B-bf16 serving", LLAMA_8B, "BF16", "serve", "SGLang 16.2k", 15000, "tok/s", sequences=256),
    Case("8B-bf16 first token", LLAMA_8B, "BF16", "ttft", "SGLang 27 ms over HTTP", 12, "ms", prompt=230),
)  # fmt: skip


# -- a model that nobody trained ------------------------------------------------------------------


def plan_of(shape: Shape) -> Plan:
    """The plan of a dense decoder of this shape: Llama's, or Qwen3's with norms of q and k."""
    p, turns = (
        Plan(shape.arch, context=shape.context),
        [shape.theta ** (-2 * i / shape.d) for i in range(shape.d // 2)],
    )
    q_norm = shape.arch == "qwen3"
    x = p.embed("token_embd", shape.vocab, shape.width)
    for i in range(shape.layers):
        p.layer(i)
        h = p.norm(x, "attn_norm", 1e-5)
        q = p.linear(h, "attn_q", shape.heads * shape.d)
        k, v = (p.linear(h, f"attn_{n}", shape.kv_heads * shape.d) for n in "kv")
        if q_norm:
            q = p.norm(q, "attn_q_norm", 1e-6, shape.heads)
            k = p.norm(k, "attn_k_norm", 1e-6, shape.kv_heads)
        q, k = p.rope(q, shape.heads, turns), p.rope(k, shape.kv_heads, turns)
        y = p.attend(q, k, v, shape.heads, shape.kv_heads, shape.d**-0.5)
        x = p.add(x, p.linear(y, "attn_output", shape.width))
        h = p.norm(x, "ffn_norm", 1e-5)
        gate, up = p.linear(h, "ffn_gate", shape.ffn), p.linear(h, "ffn_up", shape.ffn)
        x = p.add(x, p.linear(p.glu(gate, up), "ffn_down", shape.width))
    p.top()
    p.output = p.linear(p.take(p.norm(x, "output_norm", 1e-5)), "output", shape.vocab)
    return p


def named(plan: Plan, form: str) -> dict[str, Tensor]:
    """Names, shapes and formats without any numbers: matrices in `form`, the rest float."""
    empty = np.empty((0, 0), np.uint8)
    return {
        w.name: Tensor(w.name, FORMATS[form if len(w.shape) > 1 else "F32"], w.shape, empty)
        for w in plan.weights.values()
    }


def invented() -> Any:
    """A loader that makes weights on the device: the same for the same name."""
    import zlib  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from kvasir.backends.cuda import weights as on_device  # noqa: PLC0415
    from kvasir.backends.cuda.emit import Loader  # noqa: PLC0415

    class Invented(Loader):
        def _load(self, w: Any) -> Any:
            chance = torch.Generator(self.device).manual_seed(zlib.crc32(w.name.encode()))
            small = float(w.shape[-1]) ** -0.5
            if self.tensors[w.name].format.name != "Q4_0":
                data = torch.empty(w.shape, dtype=self.compute, device=self.device)
                return on_device.Dense(data.normal_(0, small, generator=chance))
            *rows, width = w.shape
            codes = torch.randint(0, 256, (*rows, width // 2), generator=chance, device=self.device,
                                  dtype=torch.uint8)  # fmt: skip
            scales = torch.full((*rows, width // 32), small / 4.6, dtype=torch.float16, device=self.device)
            return on_device.Blocks(codes, scales, None, None, None, None, 4, 32, 8)

        def vector(self, w: Any) -> Any:
            return None if w is None else torch.ones(w.shape, device=self.device)

    return Invented


# -- limits ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What the device reached in this run: bytes a second read, and multiply-adds times two a second."""

    read: float
    product: float

    def __str__(self) -> str:
        return f"reads {self.read / 1e12:.2f} TB/s, multiplies {self.product / 1e12:.0f} TFLOP/s in bf16"


def limits(device: str, tiny: bool) -> Limits:
    """The best of ten of each, timed by the device's clock."""
    import torch  # noqa: PLC0415

    n_bytes, side = (1 << 22, 256) if tiny else (1 << 32, PRODUCT)
    buffer = torch.ones(n_bytes // 4, device=device)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    read = min(timed(lambda: buffer.sum(), device, 10))
    product = min(timed(lambda: a @ b, device, 10))
    return Limits(n_bytes / read, 2 * side**3 / product)


def timed(work: Callable[[], Any], device: str, runs: int) -> list[float]:
    """Seconds of each run, after two that do not count."""
    import torch  # noqa: PLC0415

    took = list[float]()
    for i in range(runs + 2):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds = begin.elapsed_time(end) / 1e3
        else:
            begun = perf_counter()
            work()
            seconds = perf_counter() - begun
        if i > 1:
            took.append(seconds)
    return took


# -- steps ----------------------------------------------------------------------------------------


class Answers:
    """Sequences side by side on one program, each with blocks of its own.  Mutable."""

    def __init__(self, program: Any, n: int, most: int, vocabulary: int) -> None:
        self.program, self.n, self.at = program, n, 0
        each = -(-most // BLOCK)
        self.blocks = np.arange(n * each, dtype=np.int32).reshape(n, each)
        self.slots = np.arange(n, dtype=np.int32)
        self.chance, self.vocabulary = np.random.default_rng(0), vocabulary
        self.tokens = np.zeros(n, np.int32)

    def read(self, count: int, step_rows: int = 8192) -> np.ndarray:
        """`count` random tokens of each sequence, in steps of at most so many rows; the last logits."""
        rows = list[np.ndarray]()
        group = max(1, step_rows // count)
        for first in range(0, self.n, group):
            own = slice(first, min(first + group, self.n))
            n = own.stop - own.start
            ids = self.chance.integers(0, self.vocabulary, n * count).astype(np.int32)
            starts = np.arange(n + 1, dtype=np.int32) * count
            positions = np.tile(np.arange(self.at, self.at + count, dtype=np.int32), n)
            y = self.program.step(
                Batch(ids, positions, starts, self.blocks[own], self.slots[own], starts[1:] - 1)
            )
            rows.append(y)
        self.at += count
        logits = np.concatenate(rows)
        self.tokens = logits.argmax(1).astype(np.int32)
        return logits

    def batch(self, tokens: np.ndarray) -> Batch:
        """One more token of each."""
        counted = np.arange(self.n + 1, dtype=np.int32)
        positions = np.full(self.n, self.at, np.int32)
        self.at += 1
        return Batch(tokens, positions, counted, self.blocks, self.slots, counted[:-1])

    def write(self, count: int) -> np.ndarray:
        """`count` greedy tokens of each, one step ahead of what is known: [count, n]."""
        found, tokens = list[np.ndarray](), self.tokens
        if not self.program.can_begin:
            for _ in range(count):
                tokens = self.program.step(self.batch(tokens)).argmax(1).astype(np.int32)
                found.append(tokens)
            self.tokens = tokens
            return np.stack(found)
        before = None
        for _ in range(count):
            begun = self.program.begin(self.batch(tokens), [GREEDY] * self.n, [0.0] * self.n)
            tokens = -1 - np.arange(self.n, dtype=np.int32)
            if before is not None:
                found.append(before.ids())
            before = begun
        assert before is not None
        found.append(before.ids())
        self.tokens = found[-1]
        return np.stack(found)


def compiled(case: Case, device: str, **more: Any) -> Any:
    """The case's model on the device, with room for its sequences."""
    from kvasir.backends.cuda.backend import CudaBackend  # noqa: PLC0415

    plan = plan_of(case.shape)
    tokens = case.prompt + 8 * case.tokens + 64
    memory = Memory(case.sequences * -(-tokens // BLOCK), 1, "f16")
    more.setdefault("in_background", False)
    return CudaBackend(device, loads=invented(), **more).compile(plan, named(plan, case.form), memory)


def measured(case: Case, program: Any, runs: int) -> Spread:
    """The case's figure, the median of `runs`."""
    values = list[float]()
    warm = Answers(program, case.sequences, case.prompt + 2 * case.tokens + 64, case.shape.vocab)
    warm.read(case.prompt)
    if case.kind in ("decode", "serve"):
        warm.write(min(case.tokens, 8))
        program.graphs.settle()
    for i in range(runs):
        own = Answers(program, case.sequences, case.prompt + 2 * case.tokens + 64, case.shape.vocab)
        begun = perf_counter()
        own.read(case.prompt)
        first_s = perf_counter() - begun
        if case.kind == "decode":
            begun = perf_counter()
            own.write(case.tokens)
            values.append(case.tokens / (perf_counter() - begun))
        elif case.kind == "serve":
            own.write(case.tokens - 1)
            values.append(case.sequences * case.tokens / (perf_counter() - begun))
        elif case.kind == "prefill":
            values.append(prefill_work(case.shape, case.prompt) / first_s)
        else:
            values.append(first_s * 1e3)
        say(f"  {case.name}: run {i + 1} of {runs}: {number(values[-1])}")
    return Spread.of(values)


def prefill_work(shape: Shape, n: int) -> float:
    """Floating-point operations of a prompt of n tokens: products, and attention's lower half."""
    qkv = shape.width * (shape.heads + 2 * shape.kv_heads) * shape.d
    layer = qkv + shape.heads * shape.d * shape.width + 3 * shape.width * shape.ffn
    attention = n * n * shape.heads * shape.d  # half of n * n, for scores and for values
    return 2.0 * (n * shape.layers * layer + shape.layers * attention + shape.width * shape.vocab)


def weight_bytes(program: Any, case: Case) -> float:
    """Bytes of weights that a token reads: all matrices but the table of embeddings."""
    from math import prod  # noqa: PLC0415

    each = 144 / 256 if case.form == "Q4_0" else 2
    names = (w for w in program.plan.weights.values() if len(w.shape) > 1 and w.name != "token_embd")
    return sum(prod(w.shape) for w in names) * each


def row(case: Case, program: Any, found: Spread, top: Limits) -> dict[str, object]:
    """The case's line of the table."""
    share: float | None = None
    shown = found
    if case.kind == "decode":
        share = 100 * found.median * weight_bytes(program, case) / top.read
    elif case.kind == "prefill":
        shown = Spread(*(100 * x / top.product for x in (found.median, found.low, found.high)), found.runs)
        share = shown.median
    elif case.kind == "ttft":
        share = 100 * prefill_work(case.shape, case.prompt) / top.product / (found.median / 1e3)
    else:
        work = 2 * weight_bytes(program, case) / 2 * 2 * case.sequences * case.tokens
        share = 100 * work / top.product / (case.sequences * case.tokens / found.median)
    met = shown.median <= case.bar if case.kind == "ttft" else shown.median >= case.bar
    return {"case": case.name, "published": case.published, "bar": f"{case.bar:g} {case.unit}", "here": shown,
            "% of the limit": share, "met": "yes" if met else "no"}  # fmt: skip


# -- checks ---------------------------------------------------------------------------------------


def replay_equals_eager(case: Case, device: str) -> str:
    """A few steps from graphs and eagerly: the same bits?"""
    logits = list[np.ndarray]()
    for graphs in (True, False):
        program = compiled(replace(case, sequences=3, prompt=40, tokens=16), device, graphs=graphs)
        own = Answers(program, 3, 128, case.shape.vocab)
        own.read(40)
        rows = [program.step(own.batch(own.tokens)) for _ in range(4)]
        program.graphs.settle()
        rows += [program.step(own.batch(own.tokens)) for _ in range(4)]
        if graphs and device == "cuda" and not program.graphs.n_replayed:
            return "no graph was replayed"
        logits.append(np.stack(rows))
    return "equal" if np.array_equal(*logits) else f"apart by {np.abs(logits[0] - logits[1]).max():.2g}"


def greedy_equals_reference(device: str) -> str:
    """The greedy ids of every tiny checkpoint of the tests, and of mead, against the reference's."""
    from kvasir.backends.cuda.backend import CudaBackend  # noqa: PLC0415
    from kvasir.backends.reference import Reference  # noqa: PLC0415
    from kvasir.checkpoint.open import open_checkpoint  # noqa: PLC0415
    from kvasir.models import build  # noqa: PLC0415
    from kvasir.store.names import find  # noqa: PLC0415
    from tests.parity.cases import CASES as TINY  # noqa: PLC0415
    from tests.parity.cases import GOLDEN  # noqa: PLC0415

    wrong, n = list[str](), 0
    paths = [(name, GOLDEN / name, c.context) for name, c in TINY.items() if not c.model.startswith("Bert")]
    for name, path, context in [*paths, ("mead", find("mead").path, 256)]:
        plan, weights = build(open_checkpoint(path), context)
        ids = list[list[int]]()
        for backend in (CudaBackend(device, "f32", in_background=False), Reference()):
            program = backend.compile(plan, weights, Memory(8, 2, "f32"))
            ids.append(greedy(program, [5, 9, 4, 7, 11], 24))
        n += 1
        if ids[0] != ids[1]:
            wrong.append(name)
    return f"equal on {n} models" if not wrong else f"not equal on {', '.join(wrong)} (of {n})"


def greedy(program: Any, tokens: Sequence[int], count: int) -> list[int]:
    """The text goes on by `count` tokens."""
    ids, done = list(tokens), 0
    blocks, slots = np.arange(4, dtype=np.int32)[None], np.zeros(1, np.int32)
    for _ in range(count):
        new = np.array(ids[done:], np.int32)
        at = np.arange(done, len(ids), dtype=np.int32)
        starts = np.array([0, len(new)], np.int32)
        y = program.step(Batch(new, at, starts, blocks, slots, starts[1:] - 1))
        done = len(ids)
        ids.append(int(y[-1].argmax()))
    return ids[len(tokens) :]


def invariant_cost(case: Case, device: str, runs: int) -> str:
    """Decoding with and without answers that do not depend on the batch, and whether they do not."""
    rates, apart = list[float](), ""
    for invariant in (False, True):
        program = compiled(replace(case, sequences=8), device, invariant=invariant)
        rates.append(
            measured(replace(case, sequences=8, name=f"invariant={invariant}"), program, runs).median
        )
        if invariant:
            apart = alone_and_together(program, case)
    return f"{apart}; costs {100 * (1 - rates[1] / rates[0]):.1f} % at 8 sequences"


def alone_and_together(program: Any, case: Case) -> str:
    """One sequence by itself and among eight: the same bits?"""
    own = Answers(program, 8, case.prompt + 2 * case.tokens + 64, case.shape.vocab)
    own.read(min(64, case.prompt))
    batch = own.batch(own.tokens)
    together = program.step(batch)[:1]
    one = np.array([0, 1], np.int32)
    alone = program.step(
        Batch(batch.tokens[:1], batch.positions[:1], one, batch.blocks[:1], batch.slots[:1], one[:1])
    )
    return "the same bits" if np.array_equal(alone, together) else "NOT the same bits"


# -- the command ----------------------------------------------------------------------------------


def cases(tiny: bool) -> list[Case]:
    if not tiny:
        return list(CASES)
    small = replace(SHAPES["tiny"], context=256)
    return [replace(c, shape=replace(small, arch=c.shape.arch), sequences=min(c.sequences, 5), tokens=4,
                    prompt=min(c.prompt, 40)) for c in CASES]  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names contain one of these")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(words)
    begun, checks, rows = perf_counter(), dict[str, str](), list[dict[str, object]]()
    top = limits(args.device, args.tiny)
    say(f"{args.device}: {top}")
    wanted = [c for c in cases(args.tiny) if not args.only or any(o in c.name for o in args.only)]
    programs: dict[tuple[str, str, int, int], Any] = {}
    for case in wanted:
        key = (case.shape.arch, case.form, case.shape.width, case.sequences * (case.prompt + 8 * case.tokens))
        if key not in programs:
            programs.clear()  # one model at a time
            programs[key] = compiled(case, args.device)
        rows.append(row(case, programs[key], measured(case, programs[key], args.runs), top))
    programs.clear()
    smallest = min(cases(args.tiny), key=lambda c: c.shape.width * c.shape.layers)
    checks["graph replay against eager"] = replay_equals_eager(smallest, args.device)
    checks["greedy ids against the reference"] = greedy_equals_reference(args.device)
    checks["answers that do not depend on the batch"] = invariant_cost(smallest, args.device, args.runs)
    took = perf_counter() - begun
    about = {**machine(), "device": args.device, "limits": str(top), "took_s": round(took)}
    for name, told in checks.items():
        print(f"{name}: {told}")
    print(f"{top}; {took:.0f} s in all{'' if took < BUDGET_S else ', over its eight minutes'}\n")
    columns = ("case", "published", "bar", "here", "% of the limit", "met")
    report("one GPU", about, columns, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
