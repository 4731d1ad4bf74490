"""The op vocabulary: everything a model can ask for, one frozen dataclass each.

Every value is a matrix [rows, width]; `rows` is "T" (tokens of this step), "R" (rows that want logits) or "N"
(sequences) and is the only size that changes between steps.  Heads are a way of reading a width, never an
axis. What an op computes is defined by `backends/reference.py`, in a few lines of numpy each.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Literal, TypeVar

from kvasir.records import dataclass

Rows = Literal["T", "R", "N"]
Ids = Literal["tokens", "positions"]
Pooling = Literal["mean", "first", "last"]
Route = Literal["softmax_renorm", "softmax", "topk_softmax"]
Kind = Literal["paged", "slot"]
Activation = Literal["silu", "sigmoid", "gelu", "gelu_tanh", "relu", "tanh"]


@dataclass(frozen=True)
class Value:
    """A matrix that one op writes: [rows, width] float32."""

    id: int
    rows: Rows
    width: int

    def __str__(self) -> str:
        return f"%{self.id}"


@dataclass(frozen=True)
class Weight:
    """A tensor the checkpoint must supply under `name`, in exactly this shape (outputs first: [out, in])."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class State:
    """Memory that outlives a step.  `paged`: `width` floats a token; `slot`: `width` floats a sequence.

    `window` > 0 says that rows further back than that are never read again.
    """

    name: str
    kind: Kind
    width: int
    window: int = 0


Read = TypeVar("Read", Value, Weight, State)


@dataclass(frozen=True)
class Op:
    """One line of a plan: what it writes (`out`), and in the subclass what it reads."""

    out: Value
    scope: str

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def _reads(self, wanted: type[Read]) -> tuple[Read, ...]:
        found: list[Read] = []
        for f in fields(self):
            if f.name == "out":
                continue
            item = getattr(self, f.name)
            found += [i for i in (item if isinstance(item, tuple) else (item,)) if isinstance(i, wanted)]
        return tuple(found)

    @property
    def inputs(self) -> tuple[Value, ...]:
        return self._reads(Value)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._reads(Weight)

    @property
    def states(self) -> tuple[State, ...]:
        return self._reads(State)

    @property
    def attrs(self) -> dict[str, object]:
        """The fields that are neither values, weights nor states: what the op was told."""
        told = {}
        for f in fields(self):
            item = getattr(self, f.name)
            first = item[0] if isinstance(item, tuple) and item else item
            if f.name not in ("out", "scope") and not isinstance(first, Value | Weight | State):
                told[f.name] = item
        return told


# -- rows in and out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embed(Op):
    """Row `ids[t]` of the table: [T, D].  `by` names the batch's ids: tokens or positions."""

    table: Weight
    by: Ids = "tokens"


@dataclass(frozen=True)
class Take(Op):
    """The rows that want logits: [T, D] -> [R, D]."""

    x: Value


@dataclass(frozen=True)
class Pool(Op):
    """One row a sequence: [T, D] -> [N, D].  A sequence must be computed in one step."""

    x: Value
    how: Pooling


# -- elementwise ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Add(Op):
    """x + y"""

    x: Value
    y: Value


@dataclass(frozen=True)
class Mul(Op):
    """x * y, where y is as wide as x, or one column for each of x's `y.width` equal heads."""

    x: Value
    y: Value


@dataclass(frozen=True)
class Scale(Op):
    """x * by, `by` rounded to float32"""

    x: Value
    by: float


@dataclass(frozen=True)
class Softcap(Op):
    """cap * tanh(x / cap)"""

    x: Value
    cap: float


@dataclass(frozen=True)
class Act(Op):
    """fn(x)"""

    x: Value
    fn: Activation


@dataclass(frozen=True)
class Glu(Op):
    """fn(gate) * up; with `limit` the clamped SwiGLU of gpt-oss: see `backends/reference.py`."""

    gate: Value
    up: Value
    fn: Activation
    limit: float = 0.0


@dataclass(frozen=True)
class Columns(Op):
    """x[:, start:stop]"""

    x: Value
    start: int
    stop: int


@dataclass(frozen=True)
class Cat(Op):
    """The columns of all xs, side by side."""

    xs: tuple[Value, ...]


# -- products and norms ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear(Op):
    """y = x W^T + b: [rows, D] -> [rows, O].  `split`: ranks may share out the columns of y.

    `adapted`: rows whose sequence has an adapter get scale (x A^T) B^T of its A and B for this weight on top.
    """

    x: Value
    weight: Weight
    bias: Weight | None = None
    split: bool = False
    adapted: bool = False


@dataclass(frozen=True)
class Norm(Op):
    """RMS norm of each of `heads` equal parts of a row, times w; `center` makes it a layer norm (mean
    removed).
    """

    x: Value
    weight: Weight | None
    bias: Weight | None
    eps: float
    heads: int = 1
    center: bool = False


@dataclass(frozen=True)
class L2Norm(Op):
    """Each of `heads` equal parts divided by sqrt(sum of squares + eps)."""

    x: Value
    heads: int
    eps: float = 1e-6


# -- position and past ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rope(Op):
    """Rotates pairs (i, i + dim/2) of the first `dim` columns of each head by position *
    inverse_frequencies[i].

    `magnitude` multiplies cos and sin (YaRN and LongRoPE's attention factor).
    """

    x: Value
    heads: int
    dim: int
    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class Attend(Op):
    """Writes k|v of this step's tokens into `cache`, then lets each q row read its own sequence's past.

    Without a cache (encoders) a row reads the rows of its sequence in this step.  `window` > 0: only the last
    `window` positions, itself included.  `softcap` > 0 caps scores.  `sinks`: a learned score for each head
    that takes part in the softmax and has no value.
    """

    q: Value
    k: Value
    v: Value
    cache: State | None
    heads: int
    kv_heads: int
    scale: float
    window: int = 0
    causal: bool = True
    softcap: float = 0.0
    sinks: Weight | None = None


@dataclass(frozen=True)
class Conv(Op):
    """Causal depthwise convolution over a sequence's rows; the last taps-1 inputs live in `past`. weight:
    [D, taps]
    """

    x: Value
    weight: Weight
    past: State


@dataclass(frozen=True)
class Decay(Op):
    """-exp(a) * softplus(x + bias): the log decay of Gated DeltaNet.  [T, H]"""

    x: Value
    a: Weight
    bias: Weight


@dataclass(frozen=True)
class Delta(Op):
    """Gated delta rule for each value head: S <- S exp(decay) + beta (v - S k) k^T;  y = S q / sqrt(k_dim).

    q, k: [T, k_heads * k_dim]; v: [T, v_heads * v_dim]; value head h reads key head h % k_heads.
    decay, beta: [T, v_heads].  memory: [v_heads, v_dim, k_dim] a sequence.  Source: arXiv 2412.06464.
    """

    q: Value
    k: Value
    v: Value
    decay: Value
    beta: Value
    memory: State
    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int


# -- experts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experts(Op):
    """Chooses `k` of E experts for each row by `scores` [T, E], runs their GLU, and adds them by weight.

    route: `softmax_renorm` (softmax over all, top k, renormalized), `softmax` (not renormalized),
    `topk_softmax` (top k, softmax over those).  gate, up: [E, F, D]; down: [E, D, F]; biases [E, F], [E, F],
    [E, D] or none.
    Ties go to the lower expert; the k contributions are added in the order of their expert numbers.
    """

    x: Value
    scores: Value
    gate: Weight
    up: Weight
    down: Weight
    gate_bias: Weight | None
    up_bias: Weight | None
    down_bias: Weight | None
    k: int
    route: Route
    fn: Activation = "silu"
    limit: float = 0.0


VOCABULARY: tuple[type[Op], ...] = (
    Embed, Take, Pool, Add, Mul, Scale, Softcap, Act, Glu, Columns, Cat,
    Linear, Norm, L2Norm, Rope, Attend, Conv, Decay, Delta, Experts,
)  # fmt: skip
