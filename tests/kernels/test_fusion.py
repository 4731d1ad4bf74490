"""Groups of ops that run as one: the same bits as op by op, and the laws of the passes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kvasir.backends.base import Memory
from kvasir.plan import Plan, ops
from kvasir.plan.passes import BEGIN_BY_ROWS, BY_ROWS, Group, fuse, layout, slots
from tests.kernels.small import USABLE, Sequences, backend, qwen, weights_for
from tests.kernels.test_program import LENGTHS, PLANS, WHOLE, hybrid

CHOPPED = [[(0, 5), (2, 20)], [(0, 31), (1, 1)], [(0, 1)]]


def odd() -> Plan:
    """A gated pair of width 41, glus that cannot join their products, a product of a product."""
    p = Plan("odd")
    x = p.embed("table", 100, 64)
    p.layer(0)
    h = p.norm(x, "norm", 1e-6)
    y = p.glu(p.linear(h, "gate", 41, bias=True), p.linear(h, "up", 41), "gelu_tanh")
    x = p.add(x, p.linear(y, "down", 64))
    p.layer(1)
    up, gate = p.linear(x, "up", 96), p.linear(x, "gate", 96)
    x = p.add(x, p.linear(p.glu(gate, up, limit=7.0), "down", 64))
    p.layer(2)
    both = p.split(p.linear(p.linear(x, "wide", 128), "packed", 192), 96, 96)
    x = p.add(x, p.linear(p.glu(*both), "down", 64))
    p.top()
    p.output = p.glu(p.linear(x, "a", 32), p.linear(x, "b", 32))
    return p


ALL = {**PLANS, "odd": odd}


def singly(plan: Plan, alone: object = ()) -> list[Group]:
    """Every op by itself: what `fuse` is held against."""
    kinds = {ops.Linear: "products"} | dict.fromkeys(BY_ROWS, "rows")
    return [Group((i,), kinds.get(type(op), "op")) for i, op in enumerate(plan.ops)]  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("form", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ALL)
def test_groups_give_the_bits_of_single_ops(
    name: str, form: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, memory = ALL[name](), Memory(12, 4)
    weights = weights_for(plan, form=form)

    def outputs(steps: list[list[tuple[int, int]]], threads: int) -> np.ndarray:
        program = backend(isa, threads).compile(plan, weights, memory)
        program.poison()
        return Sequences(LENGTHS, 100, memory).run(program, steps)

    fused = [outputs(steps, threads) for steps in (WHOLE, CHOPPED) for threads in (1, 3)]
    monkeypatch.setattr("kvasir.backends.cpu_compile.fuse", singly)
    want = outputs(WHOLE, 1)
    assert np.isfinite(want).all()
    for got in fused:
        assert np.array_equal(got, want)


@pytest.mark.parametrize("form", ["F16", "Q4_0"])
def test_many_rows_in_chunks_give_the_bits_of_few(form: str) -> None:
    plan, memory, lengths = qwen(ffn=160), Memory(40, 4), [301, 97]
    program = backend(threads=3).compile(plan, weights_for(plan, form=form), memory)
    want = Sequences(lengths, 100, memory).run(program, [[(0, 301), (1, 97)]])
    few = [[(0, 96)], [(0, 90), (1, 1)], *([(0, 5), (1, 4)] for _ in range(23)), [(1, 4)]]
    assert np.array_equal(Sequences(lengths, 100, memory).run(program, few), want)


def test_every_value_of_a_group_can_be_seen() -> None:
    plan, memory = qwen(), Memory(12, 4)
    program = backend().compile(plan, weights_for(plan, form="Q8_0"), memory)
    batch = Sequences(LENGTHS, 100, memory).batch(WHOLE[0])
    told = list[tuple[ops.Op, ...]]()
    program.watch(batch, lambda done, took_s, values: told.append(tuple(done)))
    assert [op for done in told for op in done] == [plan.ops[i] for g in fuse(plan) for i in g.ops]
    assert len(told) == len(fuse(plan))
    assert all(np.isfinite(value).all() for _, value in program.values(batch))


def test_the_groups_of_a_layer() -> None:
    plan = qwen(layers=1)
    kinds = [(g.kind, " ".join(plan.ops[i].kind for i in g.ops)) for g in fuse(plan)]
    assert kinds == [
        ("rows", "embed norm"),
        ("products", "linear linear linear"),
        ("rows", "norm rope norm rope attend"),
        ("products", "linear"),
        ("rows", "add norm"),
        ("gated", "linear linear glu"),
        ("products", "linear"),
        ("rows", "add norm"),
        ("rows", "take"),
        ("products", "linear"),
    ]


@pytest.mark.parametrize("name", ALL)
def test_groups_hold_every_op_once_and_after_what_it_reads(name: str) -> None:
    plan = ALL[name]()
    groups, done = fuse(plan), set[int]()
    assert sorted(i for g in groups for i in g.ops) == list(range(len(plan.ops)))
    for group in groups:
        for i in group.ops:
            assert done.issuperset(v.id for v in plan.ops[i].inputs), f"{plan.ops[i].out} comes too early"
            done.add(i)
        its_ops = [plan.ops[i] for i in group.ops]
        assert len({op.out.rows for op in its_ops}) == 1
        if group.kind == "rows":
            assert all(isinstance(op, (*BY_ROWS, ops.Columns)) for op in its_ops[:-1])
            assert isinstance(its_ops[-1], (*BY_ROWS, *BEGIN_BY_ROWS, ops.Columns))
        elif group.kind != "op":
            assert len({op.x.id for op in its_ops if isinstance(op, ops.Linear)}) == 1


def test_products_of_one_input_stand_together() -> None:
    p = Plan("apart")
    x = p.norm(p.embed("table", 50, 64), "norm", 1e-6)
    mixed = p.act(p.linear(x, "a", 64), "silu")
    beta = p.act(p.linear(x, "b", 8), "sigmoid")
    gate, up = p.linear(x, "gate", 64), p.linear(x, "up", 64)
    p.output = p.mul(p.add(mixed, p.glu(gate, up)), beta)
    kinds = [(g.kind, " ".join(p.ops[i].kind for i in g.ops)) for g in fuse(p)]
    assert kinds == [
        ("rows", "embed norm"),
        ("products", "linear linear"),
        ("rows", "act act"),
        ("gated", "linear linear glu"),
        ("rows", "add mul"),
    ]


def test_an_op_that_runs_as_its_reference_is_in_no_group() -> None:
    plan = hybrid()
    for kind in {type(op) for op in plan.ops}:
        alone = [g for g in fuse(plan, {kind}) if any(type(plan.ops[i]) is kind for i in g.ops)]
        if kind is not ops.Columns:
            assert alone and all(len(g.ops) == 1 and g.kind == "op" for g in alone), kind


@pytest.mark.parametrize("name", ALL)
def test_values_of_a_group_share_no_room(name: str) -> None:
    plan = ALL[name]()
    groups = fuse(plan)
    places, group_of = layout(plan, groups).places, {i: n for n, g in enumerate(groups) for i in g.ops}
    last = {op.out.id: group_of[i] for i, op in enumerate(plan.ops)}
    for i, op in enumerate(plan.ops):
        last |= {v.id: max(last[v.id], group_of[i]) for v in op.inputs}
    for i, op in enumerate(plan.ops):
        mine = places[op.out.id]
        for j, other in enumerate(plan.ops):
            if j == i or group_of[j] > group_of[i]:
                continue
            theirs = places[other.out.id]
            apart = mine.base != theirs.base or mine.offset + mine.stride <= theirs.offset
            apart = apart or theirs.offset + theirs.stride <= mine.offset
            ended = last[other.out.id] < group_of[i]
            view = isinstance(op, ops.Columns) or isinstance(other, ops.Columns)
            assert apart or ended or view or plan.output in (op.out, other.out), f"{op.out} {other.out}"


def test_prepared_rows_that_are_still_read_share_no_buffer() -> None:
    for make in ALL.values():
        plan = make()
        groups = fuse(plan)
        at = {i: n for n, g in enumerate(groups) for i in g.ops}
        chosen = slots(plan, groups)
        readers = {
            id: [at[i] for i, op in enumerate(plan.ops) if isinstance(op, ops.Linear) and op.x.id == id]
            for id in chosen
        }
        for a in chosen:
            for b in chosen:
                if a < b and chosen[a] == chosen[b]:
                    assert max(readers[a]) < at[b], f"%{a} and %{b} share buffer {chosen[a]}"


REFUSED = """
import resource
from kvasir.backends.cpu import CpuBackend
from kvasir.errors import CapacityError
pool = CpuBackend(threads=2, oversubscribe=True).pool
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    CpuBackend(threads=500, oversubscribe=True)
except CapacityError as error:
    print(error)
try:
    pool.resize(500)
except RuntimeError as error:
    print(error, pool.threads)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_a_thread_that_the_system_refuses_is_an_error_and_no_crash() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("the system refused thread ") and second.startswith("the system refused thread ")
    assert second.endswith(" of 500 1")
