"""The oracle's ops against formulas written another way, where no golden model would show a mistake."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from kvasir.backends import reference
from kvasir.backends.base import Batch, Memory
from kvasir.backends.reference import Context, ReferenceProgram, route
from kvasir.plan import Plan, Value
from kvasir.plan.ops import VOCABULARY

rng = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def batch(*lengths: int, start: int = 0) -> Batch:
    """Sequences that all begin at `start`, in cache blocks that are not in order."""
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    positions = np.concatenate([np.arange(n) + start for n in lengths]).astype(np.int32)
    blocks = np.arange(4 * len(lengths), dtype=np.int32)[::-1].reshape(len(lengths), 4).copy()
    slots, rows = np.arange(len(lengths), dtype=np.int32), np.arange(starts[-1], dtype=np.int32)
    return Batch(np.zeros(starts[-1], np.int32), positions, starts, blocks, slots, rows)


def ran(build: Callable[[Plan, Value], Value], x: np.ndarray, b: Batch, **weights: np.ndarray) -> np.ndarray:
    """What `build(plan, x)` gives for the values x [T, D], which go in as an embedding."""
    p = Plan("test")
    p.output = build(p, p.embed("x", *x.shape))
    program = ReferenceProgram(p, Memory(16, 4, "f32"), {"x": x, **weights})
    tokens = np.arange(len(b.tokens), dtype=np.int32)
    return program.step(Batch(tokens, b.positions, b.starts, b.blocks, b.slots, b.logit_rows))


def test_every_op_has_a_reference() -> None:
    assert set(reference.OPS) == set(VOCABULARY)


def test_activations_are_what_their_names_say() -> None:
    x = np.linspace(-6, 6, 200, dtype=np.float32)
    exact = {
        "silu": [v / (1 + math.exp(-v)) for v in x],
        "sigmoid": [1 / (1 + math.exp(-v)) for v in x],
        "gelu": [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x],
        "gelu_tanh": [
            v * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in map(float, x)
        ],
        "relu": [max(v, 0) for v in x],
        "tanh": [math.tanh(v) for v in x],
    }
    for name, fn in reference.ACTIVATIONS.items():
        assert fn(x) == pytest.approx(np.array(exact[name]), abs=2e-6), name


def test_extreme_inputs_give_limits_and_no_nan() -> None:
    x = np.array([-1e30, -100, 100, 1e30], np.float32)
    with np.errstate(over="ignore"):
        assert np.isfinite(reference.ACTIVATIONS["silu"](x)).all()
        assert reference.sigmoid(x) == pytest.approx(np.array([0, 0, 1, 1]), abs=1e-30)
    assert reference.softmax(np.array([[1e4, 0]], np.float32)).tolist() == [[1, 0]]


def test_clamped_swiglu_cuts_gate_above_and_up_on_both_sides() -> None:
    gate, up = np.array([[9, -9, 1]], np.float32), np.array([[9, -9, 0.5]], np.float32)
    g, u = np.array([7, -9, 1.0]), np.array([7, -7, 0.5])
    want = g / (1 + np.exp(-1.702 * g)) * (u + 1)
    assert reference.gated(gate, up, "silu", 7.0)[0] == pytest.approx(want, rel=1e-5)


def test_routes_weigh_experts_and_break_ties_by_number() -> None:
    scores = np.array([[1, 3, 3, 0]], np.float32)
    p = np.exp([1, 3, 3, 0]) / np.exp([1, 3, 3, 0]).sum()
    assert dict(route(scores, 2, "softmax")[0]) == pytest.approx({1: p[1], 2: p[2]})
    assert dict(route(scores, 3, "softmax_renorm")[0]) == pytest.approx(
        {e: p[e] / p[:3].sum() for e in range(3)}
    )
    assert dict(route(scores, 3, "topk_softmax")[0]) == dict(route(scores, 3, "softmax_renorm")[0])
    assert [e for e, _ in route(np.zeros((1, 5), np.float32), 2, "softmax")[0]] == [0, 1]


def test_rope_turns_each_pair_as_a_complex_number() -> None:
    x, frequencies = floats(5, 2 * 6), (0.7, 0.01)
    got = ran(lambda p, v: p.rope(v, 2, frequencies, 1.5), x, batch(5, start=100_000)).reshape(5, 2, 6)
    h = x.reshape(5, 2, 6)
    turn = 1.5 * np.exp(1j * (100_000 + np.arange(5))[:, None, None] * np.array(frequencies))
    z = (h[..., :2] + 1j * h[..., 2:4]) * turn
    assert got[..., :2] == pytest.approx(z.real, abs=1e-5)
    assert got[..., 2:4] == pytest.approx(z.imag, abs=1e-5)
    assert (got[..., 4:] == h[..., 4:]).all()


@pytest.mark.parametrize("window", [0, 3])
def test_attention_by_hand(window: int) -> None:
    x, b = floats(9, 8 + 4 + 4), batch(5, 4)  # 4 heads of 2, two of them to a kv head

    def model(p: Plan, v: Value) -> Value:
        return p.attend(*p.split(v, 8, 4, 4), 4, 2, 0.5, window=window, softcap=2.0, sinks=True)

    sinks = floats(4)
    got = ran(model, x, b, attn_sinks=sinks)
    q, k, v = x[:, :8].reshape(9, 4, 2), x[:, 8:12].reshape(9, 2, 2), x[:, 12:].reshape(9, 2, 2)
    for start, stop in ((0, 5), (5, 9)):
        for t in range(start, stop):
            seen = range(max(start, t - window + 1) if window else start, t + 1)
            for h in range(4):
                s = [2 * math.tanh(0.5 * float(q[t, h] @ k[u, h // 2]) / 2) for u in seen]
                e = np.exp(s) / (np.exp(s).sum() + math.exp(sinks[h]))
                want = sum(w * v[u, h // 2] for w, u in zip(e, seen, strict=True))
                assert got[t, 2 * h : 2 * h + 2] == pytest.approx(want, abs=1e-5)


def test_encoder_rows_see_their_whole_text_and_no_other() -> None:
    x = floats(5, 6)
    got = ran(lambda p, v: p.attend(*p.split(v, 2, 2, 2), 1, 1, 1.0, cached=False), x, batch(2, 3))
    s = np.exp(x[2:, :2] @ x[2:, 2:4].T)
    assert got[2:] == pytest.approx(s / s.sum(1, keepdims=True) @ x[2:, 4:], abs=1e-5)


def test_value_head_h_of_delta_reads_key_head_h_mod_k_heads() -> None:
    t, keys, values = 4, 2, 6
    x = floats(t, 2 * keys * 3 + values * 2 + 2 * values)

    def model(p: Plan, v: Value) -> Value:
        q, k, val, decay, beta = p.split(v, keys * 3, keys * 3, values * 2, values, values)
        return p.delta(q, k, val, p.act(decay, "tanh"), beta, keys, values)

    got = ran(model, x, batch(t)).reshape(t, values, 2)
    q, k = (x[:, i * 6 : i * 6 + 6].reshape(t, keys, 3) for i in (0, 1))
    v, decay, beta = x[:, 12:24].reshape(t, values, 2), np.tanh(x[:, 24:30]), x[:, 30:]
    for h in range(values):
        memory = np.zeros((2, 3))
        for i in range(t):
            key = k[i, h % keys]
            memory = memory * math.exp(decay[i, h])
            memory = memory + beta[i, h] * np.outer(v[i, h] - memory @ key, key)
            assert got[i, h] == pytest.approx(memory @ q[i, h % keys] / math.sqrt(3), abs=1e-4)


def test_conv_sees_only_its_own_past() -> None:
    x, w = floats(6, 3), floats(3, 4)
    got = ran(lambda p, v: p.conv(v, "w", 4), x, batch(2, 4), w=w)
    for start, stop in ((0, 2), (2, 6)):
        padded = np.concatenate([np.zeros((3, 3)), x[start:stop]])
        for t in range(stop - start):
            assert got[start + t] == pytest.approx((padded[t : t + 4] * w.T).sum(0), abs=1e-5)


def test_norms_by_hand() -> None:
    x, w, bias = floats(3, 8), floats(4), floats(8)
    rms = ran(lambda p, v: p.norm(v, "w", 1e-3, heads=2), x, batch(3), w=w).reshape(3, 2, 4)
    h = x.reshape(3, 2, 4)
    assert rms == pytest.approx(h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-3) * w, abs=1e-5)
    wide = floats(8)
    layer = ran(lambda p, v: p.norm(v, "w", 1e-3, center=True), x, batch(3), w=wide, **{"w.bias": bias})
    spread = np.sqrt(x.var(1, keepdims=True) + 1e-3)
    assert layer == pytest.approx((x - x.mean(1, keepdims=True)) / spread * wide + bias, abs=1e-5)


@pytest.mark.parametrize(("how", "rows"), [("first", [0, 2]), ("last", [1, 4])])
def test_pooling_picks_a_row_a_text(how: str, rows: list[int]) -> None:
    x = floats(5, 3)
    assert (ran(lambda p, v: p.pool(v, how), x, batch(2, 3)) == x[rows]).all()


def test_mul_takes_one_column_for_each_head() -> None:
    x = floats(2, 6 + 2)
    got = ran(lambda p, v: p.mul(*p.split(v, 6, 2)), x, batch(2))
    assert (got == x[:, :6] * np.repeat(x[:, 6:], 3, 1)).all()


def test_a_slot_is_forgotten_when_a_sequence_begins_in_it() -> None:
    p = Plan("test")
    p.output = p.conv(p.embed("x", 4, 2), "w", 3)
    program = ReferenceProgram(p, Memory(4, 4, "f32"), {"x": floats(4, 2), "w": floats(2, 3)})
    first = program.step(batch(4)).copy()
    assert not (program.step(batch(4, start=4)) == first).all()
    assert (program.step(batch(4)) == first).all()


def test_context_finds_the_cells_of_positions() -> None:
    b = batch(3)
    assert Context(b, {}).cells(0, np.array([0, 15, 16, 33], np.int32)).tolist() == [48, 63, 32, 17]
