"""A plan is a model written down as a list: ops in order, each naming what it reads and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise

from kvasir.plan import ops
from kvasir.plan.ops import Activation, Ids, Kind, Op, Pooling, Route, Rows, State, Value, Weight
from kvasir.records import dataclass


@dataclass
class Plan:
    """A model as a list.  Mutable only while a model file builds it: one method an op appends one line.

    `weight()` and the op methods prefix names with the current scope ("blk.3."), set by `layer(i)`.
    """

    name: str
    ops: list[Op] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    output: Value | None = None
    context: int = 0  # positions the model was made for; 0: no limit
    scope: str = ""

    # -- building ----------------------------------------------------------------------------------

    def layer(self, i: int) -> None:
        self.scope = f"blk.{i}."

    def top(self) -> None:
        self.scope = ""

    def value(self, width: int, rows: Rows = "T") -> Value:
        """A fresh value: the id of the op about to be appended."""
        return Value(len(self.ops), rows, width)

    def append(self, op: Op) -> Value:
        assert op.out.id == len(self.ops), "an op writes the value that bears its place in the list"
        self.ops.append(op)
        return op.out

    def weight(self, name: str, *shape: int) -> Weight:
        full = f"{self.scope}{name}"
        known = self.weights.setdefault(full, Weight(full, shape))
        assert known.shape == shape, f"{full} is used as {known.shape} and as {shape}"
        return known

    def state(self, name: str, kind: Kind, width: int, window: int = 0) -> State:
        full = f"{self.scope}{name}"
        return self.states.setdefault(full, State(full, kind, width, window))

    # -- the vocabulary ----------------------------------------------------------------------------

    def embed(self, name: str, vocab: int, width: int, by: Ids = "tokens") -> Value:
        table = self.weight(name, vocab, width)
        return self.append(ops.Embed(self.value(width), self.scope, table, by))

    def take(self, x: Value) -> Value:
        return self.append(ops.Take(self.value(x.width, "R"), self.scope, x))

    def pool(self, x: Value, how: Pooling) -> Value:
        return self.append(ops.Pool(self.value(x.width, "N"), self.scope, x, how))

    def add(self, x: Value, y: Value) -> Value:
        assert x.width == y.width and x.rows == y.rows, f"add {x.width} and {y.width}"
        return self.append(ops.Add(self.value(x.width, x.rows), self.scope, x, y))

    def mul(self, x: Value, y: Value) -> Value:
        assert x.width % y.width == 0 and x.rows == y.rows, f"mul {x.width} and {y.width}"
        return self.append(ops.Mul(self.value(x.width, x.rows), self.scope, x, y))

    def scale(self, x: Value, by: float) -> Value:
        return self.append(ops.Scale(self.value(x.width, x.rows), self.scope, x, by))

    def softcap(self, x: Value, cap: float) -> Value:
        return self.append(ops.Softcap(self.value(x.width, x.rows), self.scope, x, cap))

    def act(self, x: Value, fn: Activation) -> Value:
        return self.append(ops.Act(self.value(x.width, x.rows), self.scope, x, fn))

    def glu(self, gate: Value, up: Value, fn: Activation = "silu", limit: float = 0.0) -> Value:
        assert gate.width == up.width, f"glu {gate.width} and {up.width}"
        return self.append(ops.Glu(self.value(up.width, up.rows), self.scope, gate, up, fn, limit))

    def columns(self, x: Value, start: int, stop: int) -> Value:
        assert 0 <= start < stop <= x.width, f"columns {start}:{stop} of {x.width}"
        return self.append(ops.Columns(self.value(stop - start, x.rows), self.scope, x, start, stop))

    def split(self, x: Value, *widths: int) -> list[Value]:
        assert sum(widths) == x.width, f"{widths} do not add up to {x.width}"
        edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
        return [self.columns(x, a, b) for a, b in pairwise(edges)]

    def cat(self, *xs: Value) -> Value:
        return self.append(ops.Cat(self.value(sum(x.width for x in xs), xs[0].rows), self.scope, xs))

    def linear(self, x: Value, name: str, width: int, bias: bool = False, split: bool = False) -> Value:
        w = self.weight(name, width, x.width)
        b = self.weight(f"{name}.bias", width) if bias else None
        return self.append(ops.Linear(self.value(width, x.rows), self.scope, x, w, b, split))

    def norm(self, x: Value, name: str, eps: float, heads: int = 1, center: bool = False) -> Value:
        w = self.weight(name, x.width // heads)
        b = self.weight(f"{name}.bias", x.width // heads) if center else None
        return self.append(ops.Norm(self.value(x.width, x.rows), self.scope, x, w, b, eps, heads, center))

    def l2norm(self, x: Value, heads: int, eps: float = 1e-6) -> Value:
        return self.append(ops.L2Norm(self.value(x.width, x.rows), self.scope, x, heads, eps))

    def rope(
        self, x: Value, heads: int, inverse_frequencies: Sequence[float], magnitude: float = 1.0
    ) -> Value:
        dim = 2 * len(inverse_frequencies)
        assert dim <= x.width // heads, f"rope over {dim} of a head of {x.width // heads}"
        spec = tuple(float(f) for f in inverse_frequencies)
        return self.append(ops.Rope(self.value(x.width, x.rows), self.scope, x, heads, dim, spec, magnitude))

    def attend(
        self, q: Value, k: Value, v: Value, heads: int, kv_heads: int, scale: float, *, window: int = 0,
        softcap: float = 0.0, sinks: bool = False, cached: bool = True,
    ) -> Value:  # fmt: skip
        """Causal over the cache; `cached=False` is an encoder: no cache, a row sees its whole sequence."""
        cache = self.state("kv", "paged", k.width + v.width, window) if cached else None
        sink = self.weight("attn_sinks", heads) if sinks else None
        width = heads * (v.width // kv_heads)
        return self.append(ops.Attend(self.value(width), self.scope, q, k, v, cache, heads, kv_heads, scale,
                                      window, cached, softcap, sink))  # fmt: skip

    def conv(self, x: Value, name: str, taps: int) -> Value:
        w, past = self.weight(name, x.width, taps), self.state(name, "slot", x.width * (taps - 1))
        return self.append(ops.Conv(self.value(x.width), self.scope, x, w, past))

    def decay(self, x: Value, a: str, bias: str) -> Value:
        wa, wb = self.weight(a, x.width), self.weight(bias, x.width)
        return self.append(ops.Decay(self.value(x.width), self.scope, x, wa, wb))

    def delta(
        self, q: Value, k: Value, v: Value, decay: Value, beta: Value, k_heads: int, v_heads: int
    ) -> Value:
        k_dim, v_dim = k.width // k_heads, v.width // v_heads
        memory = self.state("delta", "slot", v_heads * v_dim * k_dim)
        return self.append(ops.Delta(self.value(v.width), self.scope, q, k, v, decay, beta, memory,
                                     k_heads, v_heads, k_dim, v_dim))  # fmt: skip

    def experts(
        self, x: Value, scores: Value, k: int, width: int, route: Route, *, fn: Activation = "silu",
        limit: float = 0.0, bias: bool = False,
    ) -> Value:  # fmt: skip
        n = scores.width
        gate, up = (self.weight(f"ffn_{w}_exps", n, width, x.width) for w in ("gate", "up"))
        down = self.weight("ffn_down_exps", n, x.width, width)
        gb, ub = (self.weight(f"ffn_{w}_exps.bias", n, width) if bias else None for w in ("gate", "up"))
        db = self.weight("ffn_down_exps.bias", n, x.width) if bias else None
        return self.append(ops.Experts(self.value(x.width), self.scope, x, scores, gate, up, down, gb, ub, db,
                                       k, route, fn, limit))  # fmt: skip

    # -- reading -----------------------------------------------------------------------------------

    def table_rows(self, by: Ids) -> int:
        """Rows of the smallest table that tokens, or positions, are looked up in; 0 if none is."""
        tables = (op.table for op in self.ops if isinstance(op, ops.Embed) and op.by == by)
        return min((table.shape[0] for table in tables), default=0)

    @property
    def n_vocab(self) -> int:
        """Token ids that the model reads."""
        return self.table_rows("tokens")

    def __str__(self) -> str:
        return "\n".join(line(op) for op in self.ops)


def line(op: Op) -> str:
    """One op as text: what it writes, its kind, what it reads, what it was told."""
    reads = [str(v) for v in op.inputs]
    reads += [f"{w.name}[{'x'.join(map(str, w.shape))}]" for w in op.weights] + [
        f"@{s.name}" for s in op.states
    ]
    told = " ".join(
        f"{name}={brief(item)}" for name, item in op.attrs.items() if item not in (None, False, ())
    )
    return f"{op.out!s:>5} [{op.out.rows},{op.out.width}] = {op.kind:<8} {' '.join(reads)}  {told}".rstrip()


def brief(item: object) -> str:
    """An attribute as a person reads it: floats in six digits, long tuples as first..last."""
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, tuple) and len(item) > 2:
        return f"{brief(item[0])}..{brief(item[-1])}({len(item)})"
    return str(item)
