"""Plans on the CUDA backend with torch's operations, on the CPU: each op, chopping, broken batches."""

# ruff: noqa: E402
from __future__ import annotations

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvasir.backends.base import Memory, Program
from kvasir.backends.cuda.backend import CudaBackend
from kvasir.backends.reference import Reference
from kvasir.errors import Bug
from kvasir.plan import Op, Plan
from tests.kernels.small import Sequences, qwen, weights_for
from tests.kernels.test_program import broken, hybrid
from tests.parity.cases import CASES
from tests.pure.test_chopping import DECODERS, ENCODERS, plans, sequences
from tests.stepping import error, golden, program, run

LIMITS = {"f32": 1e-5, "bf16": 1e-3}


@cache
def made(name: str, compute: str) -> Program:
    return program(name, CudaBackend("cpu", compute))


def differences(plan: Plan, compute: str, kv: str, form: str = "F32") -> list[tuple[Op, float]]:
    """For each op its greatest difference from the reference's, where both got the same batches."""
    memory, weights = Memory(16, 8, kv), weights_for(plan, form=form)
    ours = CudaBackend("cpu", compute).compile(plan, weights, memory)
    theirs = Reference().compile(plan, weights, memory)
    ours.poison()
    texts, worst = Sequences([1, 40, 9, 17], 50, memory), dict[int, tuple[Op, float]]()
    for step in ([(1, 20), (2, 4)], [(0, 1), (1, 1), (2, 5), (3, 17)], [(1, 19)]):
        batch = texts.batch(step)
        for (op, got), (_, want) in zip(ours.values(batch), theirs.values(batch), strict=True):
            assert got.shape == want.shape and not np.isnan(got).any(), f"{op.kind}: NaN or {got.shape}"
            off = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-9)) if got.size else 0.0
            worst[op.out.id] = op, max(off, worst.get(op.out.id, (op, 0.0))[1])
    return list(worst.values())


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("which", [qwen, hybrid])
def test_every_op_equals_its_reference(which, kv: str) -> None:
    limit = {"f32": 1e-5, "f16": 1e-3, "q8_0": 2e-2}[kv]  # a key on a border may round the other way
    for op, off in differences(which(), "f32", kv):
        assert off < limit, f"{op.kind} {op.out}: {off:.2g}"


@pytest.mark.parametrize("form", ["Q4_0", "Q8_0", "Q5_1", "BF16"])
def test_quantized_weights_equal_their_reference(form: str) -> None:
    # BF16 alone is exact in bf16; what meets them is rounded to 8 bits of precision.
    assert max(off for _, off in differences(qwen(), "f32", "f32", form)) < 1e-5
    assert max(off for _, off in differences(qwen(), "bf16", "f16", form)) < 3e-2


@pytest.mark.parametrize("name", CASES)
def test_the_logits_of_transformers(name: str) -> None:
    tokens, want = golden(name)
    whole = [[(0, len(tokens))]]
    assert error(run(made(name, "f32"), [tokens], whole)[0], want) < 1e-4


@pytest.mark.parametrize("compute", LIMITS)
@pytest.mark.parametrize("name", DECODERS)
def test_any_chopping_gives_the_same_logits(name: str, compute: str) -> None:
    texts = sequences(name)
    first, *others = (run(made(name, compute), texts, s, seed) for seed, s in enumerate(plans(name)))
    for other in others:
        off = max(error(got, want) for got, want in zip(other, first, strict=True))
        assert off < LIMITS[compute], f"{off:.2g}"


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_a_text_the_same_row_in_any_company(name: str) -> None:
    alone, together = (run(made(name, "f32"), sequences(name), s) for s in plans(name)[:2])
    assert all(error(t, a) < 1e-5 for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_ids_are_those_of_the_reference(name: str) -> None:
    tokens, _ = golden(name)
    ours, theirs = (greedy(p, tokens[:6].tolist(), 16) for p in (made(name, "f32"), program(name)))
    assert ours == theirs


def greedy(p: Program, tokens: list[int], count: int) -> list[int]:
    """The text goes on by `count` tokens, one a step."""
    texts, done = np.array(tokens + [0] * count, np.int32), len(tokens)
    sequences = Sequences([len(texts)], 1, p.memory)
    sequences.tokens = [texts]
    row = p.step(sequences.batch([(0, done)]))[-1]
    for at in range(done, len(texts)):
        texts[at] = int(row.argmax())
        row = p.step(sequences.batch([(0, 1)]))[-1]
    return texts[done:].tolist()


@pytest.mark.parametrize("name", broken())
def test_a_broken_batch_is_a_bug(name: str) -> None:
    plan = hybrid()
    p = CudaBackend("cpu", "f32").compile(plan, weights_for(plan), Memory(12, 4))
    with pytest.raises(Bug, match=name.removesuffix(" below")):
        p.step(broken()[name])


def test_what_runs_as_one_is_told_op_by_op_to_who_watches() -> None:
    plan = hybrid()
    memory = Memory(12, 4, "f32")
    p = CudaBackend("cpu", "f32").compile(plan, weights_for(plan), memory)
    assert len(p.emitted.calls) < len(p.emitted.alone) <= len(plan.ops)
    texts = Sequences([9], 50, memory)
    fused = p.step(texts.batch([(0, 9)]))
    texts.done = [0]
    seen: list[Op] = []
    alone = p.watch(texts.batch([(0, 9)]), lambda done, took_s, values: seen.extend(done))
    assert error(fused, alone) < 1e-6 and len(seen) == sum(op.kind != "columns" for op in plan.ops)
