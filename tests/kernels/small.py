"""Small plans, random weights and ragged batches for the kernel tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from gguf import GGMLQuantizationType, quants

from kvasir.backends.base import BLOCK, Batch, Memory, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.backends.reference import Reference
from kvasir.checkpoint.tensor import Tensor
from kvasir.native import usable
from kvasir.plan import Op, Plan, Value
from kvasir.quant.formats import FORMATS

USABLE = list(usable())


@cache
def backend(isa: str = "auto", threads: int = 2) -> CpuBackend:
    return CpuBackend(threads=threads, isa=isa, oversubscribe=True)


def tensor(name: str, x: np.ndarray, form: str = "F32") -> Tensor:
    """A float32 array as a tensor of some format."""
    raw = quants.quantize(x.reshape(-1, x.shape[-1]), GGMLQuantizationType[form])
    return Tensor(name, FORMATS[form], x.shape, np.ascontiguousarray(raw).view(np.uint8))


def weights_for(plan: Plan, seed: int = 0, form: str = "F32") -> dict[str, Tensor]:
    """Weights that keep values near 1: matrices scaled by width, vectors around 1."""
    rng, made = np.random.default_rng(seed), {}
    for w in plan.weights.values():
        x = rng.standard_normal(w.shape).astype(np.float32)
        x = 1 + 0.2 * x if len(w.shape) == 1 else x / np.float32(np.sqrt(w.shape[-1]))
        made[w.name] = tensor(w.name, x, form if len(w.shape) > 1 and w.shape[-1] % 32 == 0 else "F32")
    return made


def ints(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, np.int32)


class Sequences:
    """Token sequences with cache blocks and slots of their own, computed in any steps."""

    def __init__(self, lengths: Sequence[int], vocabulary: int, memory: Memory, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tokens = [rng.integers(0, vocabulary, n).astype(np.int32) for n in lengths]
        need = [-(-n // BLOCK) for n in lengths]
        dealt = rng.permutation(memory.n_blocks)[: sum(need)]
        self.blocks = np.full((len(lengths), max(need)), -1, np.int32)
        for own, row in zip(np.split(dealt, np.cumsum(need)[:-1]), self.blocks, strict=True):
            row[: len(own)] = own
        self.slots = rng.permutation(memory.n_slots)[: len(lengths)].astype(np.int32)
        self.done = [0] * len(lengths)

    def batch(self, step: Sequence[tuple[int, int]]) -> Batch:
        """The next `count` tokens of each sequence named, and logits for all rows."""
        which = [n for n, _ in step]
        rows = [np.arange(self.done[n], self.done[n] + count) for n, count in step]
        for n, count in step:
            self.done[n] += count
        starts = np.cumsum([0, *map(len, rows)])
        tokens = np.concatenate([self.tokens[n][r] for n, r in zip(which, rows, strict=True)])
        return Batch(tokens, ints(np.concatenate(rows)), ints(starts), self.blocks[which], self.slots[which],
                     ints(np.arange(starts[-1])))  # fmt: skip

    def run(self, program: Program, steps: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
        """The outputs of all rows, sequence by sequence, computed in these steps."""
        found = [list[np.ndarray]() for _ in self.done]
        for step in steps:
            batch = self.batch(step)
            y = program.step(batch)
            for i, (n, _) in enumerate(step):
                found[n].append(y[batch.starts[i] : batch.starts[i + 1]])
        return np.concatenate([np.concatenate(f) for f in found])


def op_plan(make: Callable[[Plan, Value], Value], width: int, vocabulary: int = 50) -> Plan:
    """A plan of one op, over rows of a table of random numbers."""
    p = Plan("op")
    x = p.embed("table", vocabulary, width)
    p.output = make(p, x)
    return p


def differences(
    plan: Plan, lengths: Sequence[int], isa: str, *, form: str = "F32", steps: int = 3, kv: str = "f32",
    as_reference: Sequence[type[Op]] = (),
) -> list[tuple[Op, float]]:  # fmt: skip
    """For each op its greatest difference from the reference, relative to the greatest value.

    The arena is NaN before each step, and each sequence gets its tokens in up to `steps` portions.
    """
    memory = Memory(n_blocks=64, n_slots=8, kv_format=kv)
    weights = weights_for(plan, form=form)
    b = backend(isa) if not as_reference else CpuBackend(isa=isa, as_reference=as_reference)
    ours, theirs = b.compile(plan, weights, memory), Reference().compile(plan, weights, memory)
    ours.poison()
    vocabulary = min((w.shape[0] for w in plan.weights.values() if w.name == "table"), default=50)
    sequences, worst = Sequences(lengths, vocabulary, memory), dict[int, tuple[Op, float]]()
    for step in range(steps):
        left = {n: len(t) - sequences.done[n] for n, t in enumerate(sequences.tokens)}
        take = {n: k if step == steps - 1 else k // 2 for n, k in left.items()}
        batch = sequences.batch([(n, count) for n, count in take.items() if count])
        for (op, got), (_, want) in zip(ours.values(batch), theirs.values(batch), strict=True):
            assert got.shape == want.shape and not np.isnan(got).any(), f"{op.kind}: NaN or {got.shape}"
            off = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-9)) if got.size else 0.0
            worst[op.out.id] = op, max(off, worst.get(op.out.id, (op, 0.0))[1])
    return list(worst.values())


def assert_close(plan: Plan, lengths: Sequence[int], isa: str, limit: float = 1e-5, **more: object) -> None:
    for op, off in differences(plan, lengths, isa, **more):  # type: ignore[arg-type]
        assert off <= limit, f"{op.kind} {op.out}: {off:.2g}"


def qwen(layers: int = 2, width: int = 64, heads: int = 4, kv_heads: int = 2, d: int = 16, ffn: int = 96,
         vocabulary: int = 100) -> Plan:  # fmt: skip
    """Qwen3's shape, tied embeddings."""
    p, inverse = Plan("qwen3-like"), [10000 ** (-2 * i / d) for i in range(d // 2)]
    x = p.embed("table", vocabulary, width)
    for i in range(layers):
        p.layer(i)
        h = p.norm(x, "attn_norm", 1e-6)
        q, k, v = (
            p.linear(h, f"attn_{n}", m * d) for n, m in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q = p.rope(p.norm(q, "attn_q_norm", 1e-6, heads), heads, inverse)
        k = p.rope(p.norm(k, "attn_k_norm", 1e-6, kv_heads), kv_heads, inverse)
        x = p.add(x, p.linear(p.attend(q, k, v, heads, kv_heads, d**-0.5), "attn_output", width))
        h = p.norm(x, "ffn_norm", 1e-6)
        x = p.add(
            x, p.linear(p.glu(p.linear(h, "ffn_gate", ffn), p.linear(h, "ffn_up", ffn)), "ffn_down", width)
        )
    p.top()
    p.output = p.linear(p.take(p.norm(x, "output_norm", 1e-6)), "table", vocabulary)
    return p
