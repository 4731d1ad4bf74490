"""Decodes in buckets: padding changes no answer, graphs read nothing on the host, steps begun ahead choose as
the host does.  A recorder stands in for CUDA graphs: it keeps the work and does it again.
"""

# ruff: noqa: E402
from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode

from kvasir.backends.base import BLOCK, Batch, Memory
from kvasir.backends.cuda.backend import CudaBackend
from kvasir.backends.cuda.graphs import BUCKETS, WIDTHS, Key, bucket_of
from kvasir.backends.cuda.program import CudaProgram
from kvasir.errors import Bug
from kvasir.sampling import SamplingParams, choose
from tests.kernels.small import Sequences, ints, qwen, weights_for
from tests.kernels.test_program import hybrid

PLANS = {"qwen": qwen, "hybrid": hybrid}


class NoHostReads(TorchDispatchMode):
    """Fails where CUDA's capture would: a value asked for on the host, or a size that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(
            bad in name for bad in ("_local_scalar_dense", "nonzero", "unique", "masked_select")
        ), name
        return func(*args, **(kwargs or {}))


class StandIn:
    """Records by doing the work once on the side, as capture would launch nothing.  Mutable: counts."""

    def __init__(self, fails: bool = False) -> None:
        self.recorded, self.replayed, self.fails = 0, 0, fails

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.fails:
            raise RuntimeError("not today")
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with NoHostReads():
                work()

        return replay


def made(name: str, recorder: StandIn | None = None, compute: str = "f32", **more: object) -> CudaProgram:
    plan = PLANS[name]()
    backend = CudaBackend("cpu", compute, recorder=recorder, in_background=False, **more)
    return backend.compile(plan, weights_for(plan), Memory(64, 24, "f32"))


def batch_of(n: int, width: int, rows: int = 0) -> Batch:
    t = rows or n
    blocks = np.zeros((n, width), np.int32)
    starts = ints(np.linspace(0, t, n + 1))
    return Batch(ints(range(t)), ints([0] * t), starts, blocks, ints(range(n)), ints(range(n)))


def test_a_decode_runs_in_the_next_bucket() -> None:
    assert [bucket_of(batch_of(n, 1)).n_sequences for n in (1, 3, 9, 97, 129)] == [1, 4, 12, 128, 160]
    assert [bucket_of(batch_of(2, w)).n_blocks for w in (1, 16, 17, 300)] == [16, 16, 64, 1024]
    assert bucket_of(batch_of(2, 1, rows=5)) is None
    assert bucket_of(batch_of(BUCKETS[-1] + 1, 1)) is None and bucket_of(batch_of(1, WIDTHS[-1] + 1)) is None


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("n", [1, 3, 5, 13])
def test_padding_changes_no_answer_and_no_memory(name: str, n: int) -> None:
    lengths = [3 + 5 * i % 37 for i in range(n)]
    graphs, eager = made(name, StandIn()), made(name)
    eager.poison()  # nothing is padded then, and what nobody wrote is NaN
    texts = Sequences(lengths, 100, graphs.memory)
    for p in (graphs, eager):
        texts.done = [0] * n
        p.step(texts.batch([(i, length - 2) for i, length in enumerate(lengths)]))
    before = list(texts.done)
    for _ in range(2):
        batch = texts.batch([(i, 1) for i in range(n)])
        got = graphs.step(batch)
        want = eager.step(batch)
        alone = np.concatenate([eager_row(eager, batch, i) for i in range(n)]) if name == "qwen" else want
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
        assert np.abs(got - alone).max() <= 1e-5 * np.abs(want).max()
    assert graphs.graphs.n_replayed > 0 and not eager.graphs.buckets and before != texts.done
    for b in range(graphs.memory.n_blocks):
        for mine, theirs in zip(graphs.block(b), eager.block(b), strict=True):
            assert np.allclose(mine.view(np.float32), theirs.view(np.float32), atol=1e-5)
    for s in range(graphs.memory.n_slots):
        for mine, theirs in zip(graphs.slot(s), eager.slot(s), strict=True):
            assert np.allclose(mine.view(np.float32), theirs.view(np.float32), atol=1e-5)


def eager_row(p: CudaProgram, batch: Batch, i: int) -> np.ndarray:
    """One sequence of a decode by itself; its row of the cache is written again with what is there."""
    at = slice(i, i + 1)
    token, position, blocks, slot = (
        a[at] for a in (batch.tokens, batch.positions, batch.blocks, batch.slots)
    )
    return p.step(Batch(token, position, ints([0, 1]), blocks, slot, ints([0])))


def test_the_scratch_block_is_nobodys() -> None:
    p = made("qwen", StandIn())
    assert p.states.scratch.block == p.memory.n_blocks and p.states.scratch.slot == p.memory.n_slots
    texts = Sequences([5, 5, 5], 100, p.memory)
    texts.blocks[:] = [[60], [61], [62]]
    p.step(texts.batch([(i, 4) for i in range(3)]))
    others = [b for b in range(64) if b not in (60, 61, 62)]
    p.step(texts.batch([(i, 1) for i in range(3)]))
    assert all((part == 0).all() for b in others for part in p.block(b))
    assert any((own[-1] != 0).any() for own in p.states.blocks.values())  # padding went there


def test_a_bucket_that_cannot_be_recorded_stays_eager_and_says_why() -> None:
    p = made("qwen", StandIn(fails=True))
    texts = Sequences([9], 100, p.memory)
    p.step(texts.batch([(0, 5)]))
    for _ in range(3):
        p.step(texts.batch([(0, 1)]))
    own = p.graphs.buckets[Key(1, 16)]
    assert own.replay is None and "not today" in own.failed and p.graphs.n_eager == 3


def test_recording_goes_on_in_the_background() -> None:
    gate, begun = threading.Event(), threading.Event()

    class Slow(StandIn):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            begun.set()
            assert gate.wait(30)
            return super().record(work)

    p = made("qwen", Slow())
    p.graphs.in_background = True
    texts = Sequences([12], 100, p.memory)
    p.step(texts.batch([(0, 5)]))
    p.step(texts.batch([(0, 1)]))
    assert begun.wait(30)
    p.step(texts.batch([(0, 1)]))  # does not wait for the graph
    assert p.graphs.n_eager == 2 and p.graphs.n_replayed == 0
    gate.set()
    p.graphs.settle()
    p.step(texts.batch([(0, 1)]))
    assert p.graphs.n_replayed == 1


WAYS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.8, top_k=5),
    SamplingParams(temperature=1.3, top_p=0.7),
    SamplingParams(temperature=0.7, min_p=0.1, top_k=40, top_p=0.95),
    SamplingParams(),
]


def test_steps_begun_ahead_choose_what_the_host_would() -> None:
    """Step k+1 is launched before the choice of step k is known."""
    n, rng = len(WAYS), np.random.default_rng(1)
    p = made("qwen", StandIn())
    texts = Sequences([4] * n, 100, p.memory)
    for own in texts.tokens:
        own[3] = 7
    p.step(texts.batch([(i, 3) for i in range(n)]))
    drawn = rng.random((4, n))
    batch = texts.batch([(i, 1) for i in range(n)])
    begun = []
    for k in range(4):
        begun.append(p.begin(batch, WAYS, drawn[k]))
        batch = Batch(ints([-1 - i for i in range(n)]), batch.positions + 1, batch.starts, batch.blocks,
                      batch.slots, batch.logit_rows)  # fmt: skip
    got = [each.ids().tolist() for each in begun]
    tokens, want = [7] * n, []
    for k in range(4):
        rows = p.step(Batch(ints(tokens), ints([3 + k] * n), batch.starts, batch.blocks, batch.slots,
                            batch.logit_rows))  # fmt: skip
        tokens = [choose(row, w, d) for row, w, d in zip(rows, WAYS, drawn[k], strict=True)]
        want.append(tokens)
    assert got == want


def test_a_token_that_nobody_chose_is_a_bug() -> None:
    p = made("qwen")
    texts = Sequences([BLOCK], 100, p.memory)
    batch = texts.batch([(0, 1)])
    batch.tokens[0] = -1
    with pytest.raises(Bug, match="no step before"):
        p.begin(batch, WAYS[:1], [0.5])
    with pytest.raises(Bug, match="tokens"):
        p.step(batch)


def test_the_choice_on_the_device_is_the_law() -> None:
    rng, p = np.random.default_rng(3), made("qwen")
    for trial in range(60):
        logits = (rng.standard_normal((len(WAYS), 50)) * 3).round(1).astype(np.float32)  # with ties
        logits[:, rng.integers(0, 50, trial % 9)] = -np.inf
        if trial % 7 == 0:
            logits[:, rng.integers(0, 50, 2)] = (np.inf, np.nan)
        drawn = rng.random(len(WAYS))
        got = p._chosen(torch.from_numpy(logits.copy()), WAYS, drawn).ids().tolist()
        assert got == [choose(row, w, d) for row, w, d in zip(logits, WAYS, drawn, strict=True)]


@pytest.mark.parametrize("name", PLANS)
def test_the_invariant_mode_gives_the_same_bits_in_any_company_and_chopping(name: str) -> None:
    p = made(name, StandIn(), "bf16" if name == "qwen" else "f32", invariant=True)
    lengths, rng = [37, 1, 20, 70] if name == "qwen" else [7, 1, 5], np.random.default_rng(2)
    texts = Sequences(lengths, 100, p.memory)

    def run(steps: list[list[tuple[int, int]]]) -> np.ndarray:
        texts.done = [0] * len(lengths)
        return texts.run(p, steps)

    want = run([[(i, n)] for i, n in enumerate(lengths)])
    assert np.array_equal(run([list(enumerate(lengths))]), want)
    left, steps = list(lengths), list[list[tuple[int, int]]]()
    while any(left):
        steps.append(
            [(i, int(rng.integers(1, n + 1))) for i, n in enumerate(left) if n and rng.random() < 0.7]
        )
        for i, count in steps[-1]:
            left[i] -= count
    assert np.array_equal(run([s for s in steps if s]), want)
    assert len(p.graphs.buckets) == 1 and p.graphs.n_replayed > 3
    exact = made(name)
    texts.done = [0] * len(lengths)
    near = texts.run(exact, [list(enumerate(lengths))])
    assert np.abs(near - want).max() < 0.05 * np.abs(near).max()
