"""KVASIR_DEBUG: a program that tells on standard error what it does, step by step and op by op."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter

import numpy as np

from kvasir.backends.base import Adapter, Batch, Bytes, Floats, Memory, Program
from kvasir.checkpoint.tensor import Tensor
from kvasir.plan import Op, Plan
from kvasir.plan.show import op_cost
from kvasir.records import dataclass
from kvasir.sampling import SamplingParams


def watched(program: Program, weights: Mapping[str, Tensor], level: int) -> Program:
    """The program itself at level 0, else one that tells: 1 batches whose sequences changed, 2 every step,
    3 time and bandwidth of each op, 4 min, max and mean of each value too.
    """
    if level == 0:
        return program
    sizes = {name: weights[name].n_bytes for name in program.plan.weights}
    return Watched(program, sizes, level)


@dataclass
class Watched:
    """Mutable: counts steps.  Times of ops include the call that takes them, a few microseconds each."""

    program: Program
    sizes: Mapping[str, int]
    level: int
    n_steps: int = 0
    last: tuple[int, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.program.plan

    @property
    def memory(self) -> Memory:
        return self.program.memory

    def step(self, batch: Batch) -> Floats:
        self.n_steps += 1
        start = perf_counter()
        output = self.program.step(batch) if self.level < 3 else self.program.watch(batch, self._tell)
        took_s = perf_counter() - start
        counts = tuple(int(c) for c in np.diff(batch.starts))
        if self.level > 1 or len(counts) != len(self.last) or max(counts) > 1:
            rate = len(batch.tokens) / took_s
            say(f"step {self.n_steps}: rows {list(counts)} in {took_s * 1e3:.2f} ms, {rate:.1f} tokens/s")
        self.last = counts
        return output

    def watch(self, batch: Batch, seen: object) -> Floats:
        raise AssertionError("a watched program is not watched again")

    def copy_slot(self, source: int, target: int) -> None:
        self.program.copy_slot(source, target)

    def block(self, number: int) -> tuple[Bytes, ...]:
        return self.program.block(number)

    def slot(self, number: int) -> tuple[Bytes, ...]:
        return self.program.slot(number)

    def adapt(self, at: int, adapter: Adapter | None) -> None:
        self.program.adapt(at, adapter)

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        return self.program.choose(logits, recent, params, drawn)

    def referenced(self) -> frozenset[str]:
        return self.program.referenced()

    def _tell(self, done: Iterable[Op], took_s: float, values: Iterable[Floats]) -> None:
        done = list(done)
        n_bytes = sum(op_cost(op, self.sizes, 0).weight_bytes for op in done)
        line = f"  {done[0].scope + '+'.join(op.kind for op in done):<40} {took_s * 1e6:9.1f} us"
        line += f" {n_bytes / took_s / 1e9:7.2f} GB/s" if n_bytes and took_s > 0 else " " * 13
        say(line)
        for op, y in zip(done, values, strict=True):
            if self.level > 3 and y.size:
                say(f"    {op.out!s:>5} {op.kind:<8} min {y.min():.4g} max {y.max():.4g} mean {y.mean():.4g}")


def say(line: str) -> None:
    print(f"kvasir: {line}", file=sys.stderr, flush=True)
