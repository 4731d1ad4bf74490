"""Whole plans on the CPU backend: the chopping law, broken batches, references, the checker, the layout."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.backends import reference
from kvasir.backends.base import Batch, Memory
from kvasir.backends.cpu import CpuBackend, CpuProgram, kernels, load
from kvasir.backends.cpu_check import CheckedBackend
from kvasir.backends.cpu_threads import cores
from kvasir.backends.reference import Context, Reference
from kvasir.errors import Bug, UsageError
from kvasir.plan import Plan, ops
from kvasir.plan.passes import OUTPUT, fuse, layout, slots
from tests.kernels.small import USABLE, Sequences, assert_close, backend, differences, ints, qwen, weights_for

LENGTHS = [37, 1, 20]
WHOLE = [[(0, 37), (1, 1), (2, 20)]]


def hybrid() -> Plan:
    """All that remembers: windowed attention with sinks, a convolution, a delta rule; and experts."""
    p = Plan("hybrid")
    x = p.embed("table", 100, 64)
    p.layer(0)
    h = p.conv(p.linear(p.norm(x, "attn_norm", 1e-6), "qkv", 2 * 16 + 2 * 16 + 4 * 16 + 4 + 4), "conv", 4)
    q, k, v, g, beta = p.split(h, 32, 32, 64, 4, 4)
    y = p.delta(p.l2norm(q, 2), p.l2norm(k, 2), v, p.decay(g, "a", "a.bias"), p.act(beta, "sigmoid"), 2, 4)
    x = p.add(x, p.linear(y, "out", 64))
    p.layer(1)
    h = p.norm(x, "attn_norm", 1e-6)
    q, k, v = (p.linear(h, n, w, bias=True) for n, w in (("q", 64), ("k", 32), ("v", 32)))
    x = p.add(x, p.linear(p.attend(q, k, v, 4, 2, 0.25, window=11, softcap=3.0, sinks=True), "o", 64))
    h = p.norm(x, "ffn_norm", 1e-6)
    x = p.add(x, p.experts(h, p.linear(h, "router", 6), 2, 32, "topk_softmax", bias=True, limit=7.0))
    p.top()
    p.output = p.softcap(p.linear(p.take(p.norm(x, "output_norm", 1e-6)), "table", 100), 20.0)
    return p


PLANS = {"qwen": qwen, "hybrid": hybrid}


def logits(program: CpuProgram, steps: list[list[tuple[int, int]]]) -> np.ndarray:
    return Sequences(LENGTHS, 100, program.memory).run(program, steps)


def compiled(name: str, form: str, isa: str, threads: int) -> CpuProgram:
    plan = PLANS[name]()
    program = backend(isa, threads).compile(plan, weights_for(plan, form=form), Memory(12, 4))
    program.poison()
    return program


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("kv", ["f16", "f32"])
@pytest.mark.parametrize("name", PLANS)
def test_a_whole_plan_equals_its_reference(name: str, kv: str, isa: str) -> None:
    # A key that falls on the border of two float16 may round the other way.
    assert_close(PLANS[name](), [1, 40, 9, 17], isa, 1e-5 if kv == "f32" else 1e-3, kv=kv)


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("form", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", PLANS)
def test_any_chopping_gives_the_same_bits(name: str, form: str, isa: str, data: st.DataObject) -> None:
    left, steps = list(LENGTHS), list[list[tuple[int, int]]]()
    while any(left):
        order = data.draw(st.permutations([n for n, k in enumerate(left) if k]))
        chosen = order[: data.draw(st.integers(1, len(order)))]
        steps.append([(n, data.draw(st.integers(1, left[n]))) for n in chosen])
        for n, count in steps[-1]:
            left[n] -= count
    threads = data.draw(st.integers(1, 4))
    assert np.array_equal(
        logits(compiled(name, form, isa, 1), WHOLE), logits(compiled(name, form, isa, threads), steps)
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("which", ["helped", *USABLE])
@pytest.mark.parametrize("name", PLANS)
def test_a_step_in_pieces_gives_the_same_bits(name: str, which: str, threads: int) -> None:
    """With steps of another sequence between its ops; it may also be given up, and another begun."""
    plan, helped = PLANS[name](), CpuBackend(threads=1, as_reference=[ops.Attend, ops.Glu, ops.Experts])
    own = helped if which == "helped" else backend(which, threads)
    program = own.compile(plan, weights_for(plan), Memory(12, 4))
    program.poison()
    with pytest.raises(AssertionError, match="no step"):
        program.go_on(0)
    want = Sequences([37, 20], 100, program.memory).run(program, [[(0, 37)], *[[(1, 1)]] * 20])
    sequences, found = Sequences([37, 20], 100, program.memory), list[np.ndarray]()
    given_up = Sequences([9], 100, program.memory, seed=5).batch([(0, 9)])
    program.begin_aside(given_up)
    assert program.go_on(0) is None
    program.begin_aside(sequences.batch([(0, 37)]))
    n_pieces = 1
    while (output := program.go_on(0)) is None:
        n_pieces += 1
        if sequences.done[1] < 20:
            found.append(program.step(sequences.batch([(1, 1)])))
    while sequences.done[1] < 20:
        found.append(program.step(sequences.batch([(1, 1)])))
    assert n_pieces > 5 and np.array_equal(np.concatenate([output, *found]), want)
    with pytest.raises(AssertionError, match="no step"):
        program.go_on(0)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("which", ["reference", "helped", *USABLE])
def test_blocks_and_slots_can_be_carried_to_another_program(which: str, name: str, kv: str) -> None:
    """Their bytes are all that a sequence leaves behind: elsewhere, and at other places, it goes on from them
    to the same bits.
    """
    plan, memory = PLANS[name](), Memory(12, 4, kv)
    helped = CpuBackend(threads=1, as_reference=[ops.Attend, ops.Delta])
    made = Reference() if which == "reference" else helped if which == "helped" else backend(which, 2)
    here, there = (made.compile(plan, weights_for(plan), memory) for _ in range(2))
    sequences = Sequences([37], 100, memory)
    sequences.run(here, [[(0, 32)]])
    carried, blocks, slot = {}, sequences.blocks.copy(), sequences.slots.copy()
    sequences.blocks, sequences.slots = (blocks + 1) % 12, (slot + 1) % 4
    for old, new in zip(blocks[0, :2], sequences.blocks[0, :2], strict=True):
        carried[new] = [part.copy() for part in here.block(int(old))]
    for new, parts in carried.items():
        for mine, part in zip(there.block(int(new)), parts, strict=True):
            mine[:] = part
    for mine, part in zip(there.slot(int(sequences.slots[0])), here.slot(int(slot[0])), strict=True):
        mine[:] = part
    assert sum(map(len, here.block(0))) > 0 and bool(here.slot(0)) == (name == "hybrid")
    rest = sequences.run(there, [[(0, 5)]])
    sequences.done, sequences.blocks, sequences.slots = [32], blocks, slot
    assert np.array_equal(rest, sequences.run(here, [[(0, 5)]]))


def test_threads_can_change_between_steps() -> None:
    plan = qwen()
    own = CpuBackend(threads=1, oversubscribe=True)
    program = own.compile(plan, weights_for(plan), Memory(12, 4))
    want = logits(program, WHOLE)
    for n in (3, 1, 4, 2):
        program.set_threads(n)
        assert own.pool.threads == n and np.array_equal(logits(program, WHOLE), want)
    program.begin_aside(Sequences([9], 100, program.memory).batch([(0, 9)]))
    program.set_threads(3)
    with pytest.raises(RuntimeError, match="threads have changed"):
        program.go_on(0)


def test_never_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CpuBackend(threads=999).pool.threads == cores()
    monkeypatch.setenv("KVASIR_THREADS", "1")
    assert CpuBackend().pool.threads == 1


def broken() -> dict[str, Batch]:
    blocks, slots = ints([[0, 1], [2, -1]]), ints([0, 1])
    good = {"tokens": ints([1, 2, 3]), "positions": ints([0, 1, 0]), "starts": ints([0, 2, 3]),
            "blocks": blocks, "slots": slots, "logit_rows": ints([2])}  # fmt: skip
    changes: dict[str, dict[str, np.ndarray]] = {
        "tokens": {"tokens": ints([1, 100, 3])},
        "tokens below": {"tokens": ints([-1, 2, 3])},
        "positions": {"positions": ints([0, 2, 0])},
        "positions below": {"positions": ints([-1, 0, 0])},
        "too few blocks": {"positions": ints([31, 32, 0])},
        "blocks": {"blocks": ints([[0, 1], [12, -1]])},
        "blocks below": {"blocks": ints([[-1, 1], [2, -1]])},
        "write one block": {"blocks": ints([[0, 1], [0, -1]])},
        "starts": {"starts": ints([0, 2, 4])},
        "starts do not rise": {"starts": ints([0, 3, 3])},
        "logit_rows": {"logit_rows": ints([3])},
        "slots": {"slots": ints([0, 4])},
        "share a slot": {"slots": ints([1, 1])},
        "empty": {"tokens": ints([]), "positions": ints([]), "starts": ints([0]), "slots": ints([]),
                  "blocks": np.zeros((0, 2), np.int32), "logit_rows": ints([])},
        "fit together": {"positions": ints([0, 1])},
    }  # fmt: skip
    return {name: Batch(**(good | change)) for name, change in changes.items()}


@pytest.mark.parametrize("name", broken())
def test_a_broken_batch_is_a_bug_and_no_crash(name: str) -> None:
    with pytest.raises(Bug, match=name.removesuffix(" below")):
        compiled("hybrid", "F32", USABLE[0], 2).step(broken()[name])


@pytest.mark.parametrize(
    "kinds", [[ops.Act, ops.Norm], [ops.Attend], [ops.Delta, ops.Conv, ops.Experts], ops.VOCABULARY]
)
def test_an_op_without_a_kernel_runs_as_its_reference(
    kinds: list[type[ops.Op]], caplog: pytest.LogCaptureFixture
) -> None:
    plan = hybrid()
    with caplog.at_level(logging.WARNING):
        program = CpuBackend(as_reference=kinds).compile(plan, weights_for(plan), Memory(12, 4))
    assert program.referenced() == {op.kind for op in plan.ops if type(op) in kinds} - {"columns"}
    (line,) = [r.message for r in caplog.records if r.name == "kvasir.cpu"]
    assert all(kind in line for kind in program.referenced())
    assert max(off for _, off in differences(plan, [1, 20, 7], USABLE[0], as_reference=kinds)) < 1e-5


def test_an_error_in_a_reference_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = hybrid()
    program = CpuBackend(as_reference=[ops.Act]).compile(plan, weights_for(plan), Memory(12, 4))
    want = logits(program, WHOLE)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as m:
        m.setattr("kvasir.backends.reference.run", fail)
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            logits(program, WHOLE)
    assert np.array_equal(logits(program, WHOLE), want)


@pytest.mark.parametrize("form", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", PLANS)
def test_the_checker_agrees(name: str, form: str) -> None:
    plan = PLANS[name]()
    program = CheckedBackend(backend()).compile(plan, weights_for(plan, form=form), Memory(12, 4))
    s = Sequences([20, 9], 100, program.memory)
    for step in ([(0, 15), (1, 1)], [(0, 1), (1, 7)], [(1, 1), (0, 4)]):
        assert np.isfinite(program.step(s.batch(step))).all()


def test_the_checker_names_the_first_op_that_differs() -> None:
    plan = qwen()
    program = CheckedBackend(backend()).compile(plan, weights_for(plan), Memory(12, 4))
    program.decoded["blk.1.ffn_up"] = program.weights["blk.1.ffn_up"].floats() * 1.01
    with pytest.raises(Bug, match=r"blk\.1\.linear %\d+ differs from its reference by 0.0"):
        program.step(Sequences([20], 100, program.memory).batch([(0, 20)]))


def test_the_checker_finds_a_nan_and_takes_equal_infinities_for_equal() -> None:
    plan = qwen()
    program = CheckedBackend(backend()).compile(plan, weights_for(plan), Memory(12, 4))
    batch = Sequences([2], 100, program.memory).batch([(0, 2)])
    op, context = plan.ops[0], Context(batch, {})
    want = reference.run(op, context, {}, {"table": program._floats(op.weights[0])})
    program.decoded["table"] = np.full_like(program.decoded["table"], -np.inf)
    program._compare(op, context, {}, np.full_like(want, -np.inf))
    bad = np.full_like(want, -np.inf)
    bad[1, 3] = np.nan
    with pytest.raises(Bug, match="row 1, column 3 is nan"):
        program._compare(op, context, {}, bad)


def test_isa_is_chosen_and_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels().isa == USABLE[0]
    monkeypatch.setenv("KVASIR_ISA", "portable")
    assert kernels().isa == "portable" and CpuBackend().kernels.isa == "portable"
    with pytest.raises(UsageError, match=r"KVASIR_ISA=mmx: this machine runs .*portable"):
        load("mmx")


def test_live_values_never_share_room() -> None:
    for make in PLANS.values():
        plan = make()
        places = layout(plan).places
        last = {v.id: i for i, op in enumerate(plan.ops) for v in op.inputs}
        for i, op in enumerate(plan.ops):
            if isinstance(op, ops.Columns) or places[op.out.id].base == OUTPUT:
                continue
            for other in plan.ops[:i]:
                a, b = places[op.out.id], places[other.out.id]
                if last.get(other.out.id, -1) >= i and a.base == b.base:
                    assert a.offset + a.width <= b.offset or b.offset + b.stride <= a.offset, (
                        f"{op.out} {other.out}"
                    )


def test_the_arena_is_reused() -> None:
    short, long = qwen(layers=2), qwen(layers=20)
    assert layout(long).widths == layout(short).widths
    assert layout(long, fuse(long)).widths == layout(short, fuse(short)).widths
    assert max(slots(long, fuse(long)).values()) <= 1


def test_the_output_equals_that_of_the_reference_backend() -> None:
    plan, memory = qwen(), Memory(12, 4, "f32")
    weights = weights_for(plan)
    batch = Sequences(LENGTHS, 100, memory).batch(WHOLE[0])
    want = Reference().compile(plan, weights, memory).step(batch)
    got = backend().compile(plan, weights, memory).step(batch)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


LEAVING = """
from kvasir.backends.cpu import CpuBackend
from tests.engine.test_model import *
from tests.stepping import program
m = Model(INFO, Prompter(Letters(), None), Engine(program("llama", CpuBackend())), 0.0)
streams = [m.submit(ChatRequest(wish(n=16, max_tokens=None), prompt="123")) for _ in range(3)]
next(iter(streams[0]))
print("leaving")
"""


def test_a_program_may_end_while_answers_are_computed() -> None:
    root = Path(__file__).parents[2]
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", LEAVING], cwd=root, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
