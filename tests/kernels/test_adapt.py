"""Adapters in a batch: rows with one against the reference and against merged weights, rows without one to
the bit; any company, any chopping, any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.backends.base import Backend, Batch, Memory
from kvasir.backends.cpu import CpuBackend
from kvasir.backends.cpu_check import CheckedBackend
from kvasir.backends.reference import Reference
from kvasir.checkpoint.tensor import LowRank
from kvasir.errors import Bug
from kvasir.plan import Plan, ops
from kvasir.plan.passes import adapt, fuse
from tests.kernels.small import USABLE, Sequences, backend, qwen, tensor, weights_for
from tests.kernels.test_program import hybrid

LENGTHS = [23, 1, 9, 18]
PLANS = {"qwen": qwen, "hybrid": hybrid}
WHOLE = [[(n, length) for n, length in enumerate(LENGTHS)]]


def products(plan: Plan) -> list[ops.Linear]:
    return [op for op in plan.ops if isinstance(op, ops.Linear)]


def adapter_for(
    plan: Plan, seed: int, ranks: Sequence[int] = (3, 8, 17), form: str = "F32"
) -> dict[str, LowRank]:
    """Random matrices for most products, of several ranks, and some products left alone."""
    rng, made = np.random.default_rng(seed), dict[str, LowRank]()
    for i, op in enumerate(products(plan)):
        if (i + seed) % 5 == 0:
            continue
        (o, d), r = op.weight.shape, ranks[i % len(ranks)]
        a, b = rng.standard_normal((r, d)) / d**0.5, rng.standard_normal((o, r)) / r**0.5
        made[op.weight.name] = LowRank(
            tensor("a", a.astype(np.float32), form),
            tensor("b", b.astype(np.float32), form),
            0.5 + 0.25 * seed,
        )
    return made


class Adapted(Sequences):
    """Sequences that have adapters."""

    def __init__(self, adapters: Sequence[int], lengths: Sequence[int], memory: Memory) -> None:
        super().__init__(lengths, 100, memory)
        self.adapters = np.asarray(adapters, np.int32)

    def batch(self, step: Sequence[tuple[int, int]]) -> Batch:
        return replace(super().batch(step), adapters=self.adapters[[n for n, _ in step]])


def rows(
    name: str, adapters: Sequence[int], steps: Sequence[Sequence[tuple[int, int]]], on: Backend,
    form: str = "F32",
) -> list[np.ndarray]:  # fmt: skip
    """The logits of each sequence's tokens, with adapters 0 and 1 loaded and 2 loaded and gone."""
    plan = PLANS[name]()
    program = on.compile(adapt(plan), weights_for(plan, form=form), Memory(12, 4, "f32"))
    program.adapt(2, adapter_for(plan, 2, (40,)))
    for seed in (0, 1):
        program.adapt(seed, adapter_for(plan, seed, form="F16" if seed else "F32"))
    program.adapt(2, None)
    if hasattr(program, "poison"):
        program.poison()
    found = Adapted(adapters, LENGTHS, program.memory).run(program, steps)
    return np.split(found, np.cumsum(LENGTHS)[:-1])


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("name", PLANS)
def test_rows_with_adapters_equal_the_reference(name: str, isa: str) -> None:
    ours = rows(name, [0, -1, 1, 0], WHOLE, backend(isa))
    theirs = rows(name, [0, -1, 1, 0], WHOLE, Reference())
    for got, want in zip(ours, theirs, strict=True):
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("on", [Reference(), backend(USABLE[0])], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", PLANS)
def test_an_adapter_is_what_merging_it_would_give(name: str, on: Backend) -> None:
    plan, memory = PLANS[name](), Memory(12, 4, "f32")
    own, weights = adapter_for(plan, 1), weights_for(plan)
    own.pop("table", None)  # the same matrix embeds tokens
    merged = dict(weights)
    for key, low in own.items():
        added = np.float32(low.scale) * (low.b.floats() @ low.a.floats())
        merged[key] = tensor(key, weights[key].floats() + added)
    plain, adapted = on.compile(plan, merged, memory), on.compile(adapt(plan), weights, memory)
    adapted.adapt(3, own)
    want = Sequences(LENGTHS, 100, memory).run(plain, WHOLE)
    base = Sequences(LENGTHS, 100, memory).run(on.compile(plan, weights, memory), WHOLE)
    got = Adapted([3] * len(LENGTHS), LENGTHS, memory).run(adapted, WHOLE)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max() < 0.1 * np.abs(want - base).max()


@settings(max_examples=12, deadline=None)
@given(st.data())
@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("form", ["F32", "Q4_0"])
@pytest.mark.parametrize("name", PLANS)
def test_any_company_and_chopping_gives_the_same_bits(
    name: str, form: str, isa: str, data: st.DataObject
) -> None:
    adapters = [data.draw(st.integers(-1, 1)) for _ in LENGTHS]
    left, steps = list(LENGTHS), list[list[tuple[int, int]]]()
    while any(left):
        order = data.draw(st.permutations([n for n, k in enumerate(left) if k]))
        chosen = order[: data.draw(st.integers(1, len(order)))]
        steps.append([(n, data.draw(st.integers(1, left[n]))) for n in chosen])
        for n, count in steps[-1]:
            left[n] -= count
    alone = [[(n, length)] for n, length in enumerate(LENGTHS)]
    want = rows(name, adapters, alone, backend(isa, 1), form)
    got = rows(name, adapters, steps, backend(isa, data.draw(st.integers(1, 4))), form)
    plan = PLANS[name]()
    program = backend(isa, 1).compile(plan, weights_for(plan, form=form), Memory(12, 4, "f32"))
    bare = np.split(Sequences(LENGTHS, 100, program.memory).run(program, alone), np.cumsum(LENGTHS)[:-1])
    for n, adapter in enumerate(adapters):
        assert np.array_equal(got[n], want[n])
        assert np.array_equal(got[n], bare[n]) == (adapter < 0)


def test_many_rows_and_wide_outputs_keep_their_bits() -> None:
    """Beyond one chunk of rows and one block of sums."""
    plan = qwen(layers=1, vocabulary=300)
    program = backend(USABLE[0], 3).compile(adapt(plan), weights_for(plan), Memory(40, 4, "f32"))
    program.adapt(0, adapter_for(plan, 0))
    lengths = [250, 130]
    at_once = Adapted([0, 0], lengths, program.memory).run(program, [[(0, 250), (1, 130)]])
    by_parts = Adapted([0, 0], lengths, program.memory).run(
        program, [[(1, 7), (0, 101)], [(0, 100), (1, 123)], [(0, 49)]]
    )
    assert np.array_equal(at_once, by_parts)


def test_only_rows_that_want_logits() -> None:
    plan = qwen()
    program = backend(USABLE[0]).compile(adapt(plan), weights_for(plan), Memory(12, 4, "f32"))
    program.adapt(0, adapter_for(plan, 1))
    all_rows = Adapted([-1, 0, 0, -1], LENGTHS, program.memory).batch(WHOLE[0])
    want = program.step(all_rows)
    some = np.array([50, 22, 30, 24], np.int32)  # in no order, of all sequences
    few = Adapted([-1, 0, 0, -1], LENGTHS, program.memory).batch(WHOLE[0])
    assert np.array_equal(program.step(replace(few, logit_rows=some)), want[some])


def test_room_for_adapters_leaves_fusion_as_it_is() -> None:
    plan = qwen()
    assert fuse(adapt(plan)) == fuse(plan)
    assert [op for op in adapt(plan).ops if isinstance(op, ops.Linear) and not op.adapted] == []
    assert all(not op.adapted for op in products(plan))


def test_a_batch_that_names_an_unknown_adapter_is_refused() -> None:
    plan = qwen()
    program = backend(USABLE[0]).compile(adapt(plan), weights_for(plan), Memory(12, 4, "f32"))
    program.adapt(1, adapter_for(plan, 1))
    for adapters, words in (
        ([0, -1, 1, 1], "no adapter is at 0"),
        ([1, 1, 1], "do not fit"),
        ([-2, 1, 1, 1], "no adapter is at -2"),
    ):
        batch = Adapted([-1] * 4, LENGTHS, program.memory).batch(WHOLE[0])
        wrong = replace(batch, adapters=np.array(adapters, np.int32))
        with pytest.raises(Bug, match=words):
            program.step(wrong)


def test_the_checker_and_references_know_adapters() -> None:
    want = rows("qwen", [1, -1, 0, 0], WHOLE, backend(USABLE[0]), "Q4_0")
    checked = rows("qwen", [1, -1, 0, 0], WHOLE, CheckedBackend(CpuBackend(threads=1)), "Q4_0")
    assert all(np.array_equal(a, b) for a, b in zip(want, checked, strict=True))
    by_reference = rows("qwen", [1, -1, 0, 0], WHOLE, CpuBackend(threads=1, as_reference=[ops.Linear]))
    want = rows("qwen", [1, -1, 0, 0], WHOLE, backend(USABLE[0]))
    for got, wanted in zip(by_reference, want, strict=True):
        assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()
