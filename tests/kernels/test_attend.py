"""Attention against the reference: every variant and cache format, ragged batches over several steps."""

from __future__ import annotations

import numpy as np
import pytest

from kvasir.backends.base import Batch, Memory
from kvasir.backends.reference import Reference
from kvasir.plan import Plan
from kvasir.plan.show import KV_BYTES
from kvasir.settings import KV_FORMATS
from tests.kernels.small import USABLE, Sequences, assert_close, backend, weights_for


def attention(heads: int = 4, kv_heads: int = 2, k_dim: int = 16, v_dim: int = 16, **variant: object) -> Plan:
    """q, k and v straight from a table, so that the cache holds what the table says."""
    p = Plan("attend")
    widths = heads * k_dim, kv_heads * k_dim, kv_heads * v_dim
    q, k, v = p.split(p.embed("table", 50, sum(widths)), *widths)
    scale = float(variant.pop("scale", 2.0))  # type: ignore[arg-type]
    p.output = p.attend(q, k, v, heads, kv_heads, scale, **variant)  # type: ignore[arg-type]
    return p


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "one kv head": {"heads": 5, "kv_heads": 1},
    "no groups": {"heads": 3, "kv_heads": 3},
    "groups of nine": {"heads": 9, "kv_heads": 1, "v_dim": 24},
    "odd widths": {"k_dim": 5, "v_dim": 11},
    "wide heads": {"k_dim": 40, "v_dim": 72},
    "groups of seven": {"heads": 14, "k_dim": 32, "v_dim": 64},
    "narrow values": {"k_dim": 24, "v_dim": 8},
    "window": {"window": 9},
    "window of a block": {"window": 16},
    "window of one": {"window": 1},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "all": {"window": 21, "softcap": 2.0, "sinks": True, "heads": 6},
    "encoder": {"cached": False},
    "encoder with window": {"cached": False, "window": 5},
}


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("kv", KV_FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_equals_its_reference(variant: str, kv: str, isa: str) -> None:
    steps = 1 if "encoder" in variant else 4
    assert_close(attention(**VARIANTS[variant]), [1, 70, 16, 33, 5], isa, 1e-5, kv=kv, steps=steps)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if "encoder" not in v])
def test_a_row_does_not_see_its_neighbours(variant: str, isa: str) -> None:
    """Bit for bit: alone and token by token, in one step, among others; over stale numbers."""
    plan, memory = attention(**VARIANTS[variant]), Memory(40, 8)
    weights = weights_for(plan)
    lengths = [37, 5, 50]

    def outputs(steps: list[list[tuple[int, int]]], threads: int) -> list[np.ndarray]:
        program = backend(isa, threads).compile(plan, weights, memory)
        stale = Sequences([600], 50, memory, seed=9)
        program.step(stale.batch([(0, 600)]))
        s, found = Sequences(lengths, 50, memory), [list[np.ndarray]() for _ in lengths]
        for step in steps:
            batch = s.batch(step)
            y = program.step(batch)
            for i, (n, _) in enumerate(step):
                found[n].append(y[batch.starts[i] : batch.starts[i + 1]])
        return [np.concatenate(f) for f in found]

    whole = outputs([[(0, 37), (1, 5), (2, 50)]], 2)
    alone = outputs([[(n, 1)] for n, k in enumerate(lengths) for _ in range(k)], 1)
    mixed = outputs([[(2, 13), (0, 30)], [(1, 2), (2, 1)], [(0, 7), (2, 36), (1, 3)]], 3)
    for a, b, c in zip(whole, alone, mixed, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)


LONG: dict[str, dict[str, object]] = {
    "one kv head": {"heads": 2, "kv_heads": 1},
    "groups of eight": {"heads": 8, "kv_heads": 1},
    "window": {"heads": 2, "kv_heads": 1, "window": 700},
    "sinks": {"heads": 6, "kv_heads": 2, "sinks": True},
}


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("kv", KV_FORMATS)
@pytest.mark.parametrize("variant", LONG)
def test_a_long_past_is_read_in_parts(variant: str, kv: str, isa: str) -> None:
    """Over several parts of 512 tokens: near the reference, and the same bits for any steps and threads."""
    plan, memory = attention(**LONG[variant]), Memory(130, 4, kv)
    weights = weights_for(plan)
    first = [[(0, 1100)], [(1, 530)]], [[(1, 500), (0, 1025)], [(1, 30), (0, 75)]]
    last = [[(0, 1), (1, 1)], [(0, 1)], [(0, 3), (1, 2)], [(0, 95)]]
    pieces = [[(0, n)] for n in (1, 510, 1, 1, 70, 517)] + [[(1, n)] for n in (512, 18)]
    found = []
    for steps, threads in ((first[0], 2), (first[1], 1), (pieces, 7)):
        program = backend(isa, threads).compile(plan, weights, memory)
        found.append(Sequences([1200, 533], 50, memory).run(program, steps + last))
    assert all(np.array_equal(found[0], y) for y in found[1:])
    want = Sequences([1200, 533], 50, memory).run(Reference().compile(plan, weights, memory), first[0] + last)
    assert np.abs(found[0] - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("kv", KV_FORMATS)
def test_what_others_left_in_a_block_is_not_seen(kv: str, isa: str) -> None:
    """Not even if it is no number."""
    plan, memory = attention(heads=4, kv_heads=1), Memory(8, 2, kv)
    weights = weights_for(plan)
    weights["table"].raw.view(np.float32).reshape(50, -1)[49] = np.nan
    program = backend(isa).compile(plan, weights, memory)
    own = np.arange(8, dtype=np.int32)[None]

    def batch(tokens: list[int]) -> Batch:
        t = np.asarray(tokens, np.int32)
        positions = np.arange(len(t), dtype=np.int32)
        return Batch(t, positions, np.asarray([0, len(t)], np.int32), own, np.zeros(1, np.int32), positions)

    program.step(batch([49] * 128))
    for length in (1, 3, 70):
        assert np.isfinite(program.step(batch([7] * length))).all()


def test_q8_0_is_near_and_small() -> None:
    """A value is off by half a step at most, the greatest of 32 numbers being 127 of them."""
    plan = attention(heads=4, kv_heads=2, k_dim=64, v_dim=64, scale=0.5)
    weights = weights_for(plan)
    y = {}
    for kv in KV_FORMATS:
        memory = Memory(40, 2, kv)
        y[kv] = Sequences([600], 50, memory).run(backend().compile(plan, weights, memory), [[(0, 600)]])
    off = {kv: float(np.abs(y[kv] - y["f32"]).max() / np.abs(y["f32"]).max()) for kv in KV_FORMATS}
    assert off["f16"] < 5e-4 and off["q8_0"] < 1e-2
    assert KV_BYTES["q8_0"] < 0.54 * KV_BYTES["f16"]


def test_blocks_behind_the_window_may_be_gone() -> None:
    plan, memory = attention(window=16), Memory(20)
    weights = weights_for(plan)
    kept, freed = (backend().compile(plan, weights, memory) for _ in range(2))
    a, b = Sequences([60], 50, memory), Sequences([60], 50, memory)
    for step in ([(0, 50)], [(0, 1)]):
        x, y = a.batch(step), b.batch(step)
        if len(y.tokens) == 1:
            blocks = y.blocks.copy()
            blocks[0, :2] = -1  # position 50 sees from 35 on
            y = Batch(y.tokens, y.positions, y.starts, blocks, y.slots, y.logit_rows)
        assert np.array_equal(kept.step(x), freed.step(y))


def test_numbers_beyond_float16_saturate() -> None:
    """A key of 1e6 is stored as 65504: scores stay finite."""
    plan, memory = attention(scale=1e-6), Memory(4)
    weights = weights_for(plan)
    weights["table"].raw.view(np.float32)[:] *= 1e6
    batch = Sequences([20], 50, memory).batch([(0, 20)])
    assert np.isfinite(backend().compile(plan, weights, memory).step(batch)).all()
