"""DeltaNet and convolutions in Triton's interpreter, against the reference: decodes and prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends import reference
from kvasir.backends.base import Batch
from kvasir.backends.cuda.kernels import recurrent
from kvasir.backends.cuda.kernels.face import Step
from kvasir.plan import State, Value, Weight, ops
from tests.cuda.interpreted.check_products import drawn
from tests.cuda.interpreted.poison import DTYPES, Poisoned, exact, strided

STEPS = [((1, 1), (5, 0)), ((1, 2, 7), (9, 0, 3))]  # rows of each sequence, position of its first


def step_of(rows: tuple[int, ...], first: tuple[int, ...]) -> tuple[Batch, Step]:
    starts = np.cumsum([0, *rows]).astype(np.int32)
    positions = np.concatenate([np.arange(p, p + n) for n, p in zip(rows, first, strict=True)])
    slots, none = np.arange(len(rows), dtype=np.int32)[::-1] + 1, np.empty(0, np.int32)
    batch = Batch(none, positions.astype(np.int32), starts, none, slots, none)
    owners = np.repeat(np.arange(len(rows)), rows)
    given = (none, batch.positions, starts, owners, none, none, slots, none, none, none)
    tensors = [torch.from_numpy(np.ascontiguousarray(a, np.int32)) for a in given]
    return batch, Step(*tensors, max(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, first", STEPS)
def test_delta(dtype, rows, first):
    batch, step = step_of(rows, first)
    t, k_heads, v_heads, dk, dv = sum(rows), 2, 4, 12, 20
    q, k, v = (exact(drawn(t, w, seed=w) / 3, dtype) for w in (k_heads * dk, k_heads * dk, v_heads * dv))
    decay, beta = -np.abs(drawn(t, v_heads, seed=5)), 1 / (1 + np.exp(drawn(t, v_heads, seed=6)))
    memory = drawn(len(rows) + 2, v_heads * dv * dk, seed=7)
    value = Value(0, "T", 1)
    op = ops.Delta(value, "", *[value] * 5, State("m", "slot", memory.shape[1]), k_heads, v_heads, dk, dv)
    kept = {"m": memory.copy()}
    wanted = reference.delta(op, reference.Context(batch, kept), q, k, v, decay, beta)
    out, own = Poisoned(t, v_heads * dv, dtype), torch.from_numpy(memory.reshape(-1, v_heads, dv, dk))
    rows_of = [strided(x, dtype) for x in (q, k, v)]
    both = torch.from_numpy(decay), torch.from_numpy(beta)
    recurrent.delta(*rows_of, *both, step, own, k_heads, v_heads, out.view).run()
    out.holds(wanted)
    np.testing.assert_allclose(own.reshape(kept["m"].shape).numpy(), kept["m"], atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, first", STEPS)
@pytest.mark.parametrize("taps", [2, 4])
def test_conv(dtype, rows, first, taps):
    batch, step = step_of(rows, first)
    t, width = sum(rows), 21
    x, weight = exact(drawn(t, width), dtype), drawn(width, taps, seed=1)
    past = drawn(len(rows) + 2, (taps - 1) * width, seed=2)
    value, kept = Value(0, "T", width), {"p": past.copy()}
    op = ops.Conv(value, "", value, Weight("w", (width, taps)), State("p", "slot", past.shape[1]))
    wanted = reference.conv(op, reference.Context(batch, kept), x, weight)
    out, own = Poisoned(t, width, dtype), torch.from_numpy(past)
    for call in recurrent.conv(strided(x, dtype), torch.from_numpy(weight), step, own, out.view):
        call.run()
    out.holds(wanted)
    np.testing.assert_allclose(own.numpy(), kept["p"], atol=1e-6)
