"""Attention over the paged cache in Triton's interpreter, against `reference.attend`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from kvasir.backends import reference
from kvasir.backends.base import BLOCK, Batch
from kvasir.backends.cuda.kernels import attend, inputs
from kvasir.backends.cuda.kernels.common import Config
from kvasir.backends.cuda.kernels.face import PIECE_ROWS, Attention, Paged, Rope, Step
from kvasir.backends.cuda.kernels.matvec import Workspace
from kvasir.plan import State, Value, Weight, ops
from tests.cuda.interpreted.poison import DTYPES, Poisoned, exact, strided

CUT = Config({"BN": 16, "STAGES": 1})


@dataclass
class Case:
    """Sequences of `lengths` whose last `rows` rows are asked for."""

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    dtype: torch.dtype
    heads: int = 6
    kv_heads: int = 2
    dk: int = 20
    dv: int = 12

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        need = [-(-n // BLOCK) for n in self.lengths]
        dealt, at = rng.permutation(sum(need) + 2).astype(np.int32), 0
        self.blocks = np.full((len(need), max(need) + 1), sum(need) + 2, np.int32)  # the scratch block
        for n, count in enumerate(need):
            self.blocks[n, :count] = dealt[at : at + count]
            at += count
        starts = np.cumsum([0, *self.rows]).astype(np.int32)
        positions = np.concatenate(
            [np.arange(n - r, n) for n, r in zip(self.lengths, self.rows, strict=True)]
        )
        none = np.empty(0, np.int32)
        self.batch = Batch(
            np.zeros(len(positions), np.int32), positions.astype(np.int32), starts, self.blocks, none, none
        )
        n_cells = (sum(need) + 3) * BLOCK
        width = self.kv_heads * (self.dk + self.dv)
        self.state = exact(rng.standard_normal((n_cells, width)), self.dtype)
        t = len(positions)
        shapes = self.heads * self.dk, self.kv_heads * self.dk, self.kv_heads * self.dv
        self.q, self.k, self.v = (exact(rng.standard_normal((t, w)), self.dtype) for w in shapes)

    def cache(self) -> Paged:
        """The state as the device keeps it; cells that nobody may read are NaN."""
        n = len(self.state) // BLOCK
        state = np.full_like(self.state, np.nan)
        for row, length in zip(self.blocks, self.lengths, strict=True):
            cells = [row[u // BLOCK] * BLOCK + u % BLOCK for u in range(length)]
            state[cells] = self.state[cells]
        tiles = torch.from_numpy(state).reshape(n, BLOCK, -1).to(self.dtype)
        split = self.kv_heads * self.dk
        k = tiles[..., :split].reshape(n, BLOCK, self.kv_heads, self.dk).transpose(1, 2).contiguous()
        v = tiles[..., split:].reshape(n, BLOCK, self.kv_heads, self.dv).transpose(1, 2).contiguous()
        return Paged(k, v)

    def step(self) -> Step:
        b = self.batch
        owners = np.repeat(np.arange(len(self.rows), dtype=np.int32), self.rows)
        pieces = [
            (n, r) for n in range(len(self.rows)) for r in range(b.starts[n], b.starts[n + 1], PIECE_ROWS)
        ]
        given = (b.tokens, b.positions, b.starts, owners, np.asarray(self.lengths), self.blocks, b.slots)
        tensors = [torch.from_numpy(np.asarray(a, np.int32)) for a in given]
        empty = torch.empty(0, dtype=torch.int32)
        return Step(*tensors, empty, empty, torch.tensor(pieces, dtype=torch.int32), max(self.rows), b)

    def op(self, told: Attention) -> ops.Attend:
        q, k, v = (Value(n, "T", x.shape[1]) for n, x in enumerate((self.q, self.k, self.v)))
        state = State("kv", "paged", self.state.shape[1])
        return ops.Attend(
            Value(3, "T", self.heads * self.dv), "", q, k, v, state, self.heads, self.kv_heads, told.scale,
            told.window, True, told.softcap, Weight("s", (self.heads,)) if told.sinks is not None else None,
        )  # fmt: skip

    def wanted(self, told: Attention) -> np.ndarray:
        """What the reference gives; it writes k and v of the rows, which are in the cache already here."""
        for n, rows in self.batch.sequences():
            at = self.batch.positions[rows]
            cells = self.blocks[n, at // BLOCK] * BLOCK + at % BLOCK
            self.state[cells] = np.concatenate([self.k[rows], self.v[rows]], 1)
        context = reference.Context(self.batch, {"kv": self.state.copy()})
        sinks = None if told.sinks is None else told.sinks.numpy()
        return reference.attend(self.op(told), context, self.q, self.k, self.v, sinks)


TOLD = {
    "plain": Attention(6, 2, 0.3),
    "window": Attention(6, 2, 0.3, window=21),
    "capped": Attention(6, 2, 0.7, softcap=1.5),
    "sinks": Attention(6, 2, 0.3, window=40, sinks=torch.linspace(-2, 3, 6)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", TOLD)
def test_one_row_a_sequence(dtype, splits, name):
    case = Case((1, 17, 75), (1, 1, 1), dtype)
    wanted, out, work = case.wanted(TOLD[name]), Poisoned(3, 72, dtype), Workspace.on("cpu", 1 << 14, 64)
    work.partial.fill_(float("nan"))
    attend.decode(
        strided(case.q, dtype), case.cache(), case.step(), TOLD[name], out.view, work, CUT, splits
    ).run()
    out.holds(wanted)
    assert not work.counter.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TOLD)
def test_several_rows_a_sequence(dtype, name):
    case = Case((1, 40, 90), (1, 7, 70), dtype)
    wanted, out = case.wanted(TOLD[name]), Poisoned(78, 72, dtype)
    attend.by_pieces(strided(case.q, dtype), case.cache(), case.step(), TOLD[name], out.view, CUT).run()
    out.holds(wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 12, 20])
@pytest.mark.parametrize("has_norms", [True, False])
def test_what_comes_before(dtype, dim, has_norms):
    case = Case((3, 33), (2, 3), dtype)
    rng = np.random.default_rng(3)
    weights = [1 + rng.standard_normal(20).astype(np.float32) for _ in range(2)] if has_norms else []
    angle = np.arange(40)[:, None] * 0.5 ** np.arange(dim // 2)
    table = Rope(*(torch.from_numpy(f(angle).astype(np.float32)) for f in (np.cos, np.sin))) if dim else None
    made = []
    for n, (x, heads) in enumerate(((case.q, 6), (case.k, 2))):
        value = Value(0, "T", x.shape[1])
        if has_norms:
            op = ops.Norm(value, "", value, Weight("w", (20,)), None, 1e-5, heads)
            x = reference.norm(op, None, x, weights[n])
        if dim:
            turns = tuple(0.5**i for i in range(dim // 2))
            x = reference.rope(
                ops.Rope(value, "", value, heads, dim, turns), reference.Context(case.batch, {}), x
            )
        made.append(x)
    cache, q_out, k_out = case.cache(), Poisoned(5, 120, dtype), Poisoned(5, 40, dtype)
    before = cache.k.clone(), cache.v.clone()
    given = [torch.from_numpy(w) for w in weights] or [None, None]
    rows = [strided(x, dtype) for x in (case.q, case.k, case.v)]
    inputs.inputs(*rows, *given, 1e-5, table, 6, 2, case.step(), cache, q_out.view, k_out.view).run()
    q_out.holds(made[0])
    k_out.holds(made[1])
    step = case.step()
    block, place = (
        step.blocks[step.owners.long(), step.positions // BLOCK].long(),
        step.positions.long() % BLOCK,
    )
    assert torch.equal(cache.k[block, :, place].flatten(1), k_out.view)
    assert torch.equal(cache.v[block, :, place].flatten(1), rows[2])
    for own, old in zip((cache.k, cache.v), before, strict=True):
        own[block, :, place] = old[block, :, place]
        assert torch.equal(torch.nan_to_num(own), torch.nan_to_num(old)), "other cells were touched"
