"""What the backend asks of its kernels: one method an op or fused group, on torch tensors.

Rules that hold for every method:

- All tensors are on one device.  A matrix of activations is [rows, width] in float32, bfloat16 or float16,
  its last stride 1 and its row stride anything at least the width (`Columns` are views).  Inputs and outputs
  of one call may differ in dtype; sums and functions are computed in float32 and rounded once, to the dtype
  of `out`.
- `out` is written whole and is never one of the inputs, unless a method says that it may be.
- No method reads a tensor on the host, allocates anything that outlives the call, or depends on values that
  lie on the device for its launch: shapes and the integers of `Step` decide the grid, so that calls can be
  captured in a CUDA graph.  The one exception: with `step.host` (eager steps) a method may look at it.
- Rows of padding look like rows of sequences of one token at position 0 whose block and slot are the scratch
  ones; what is computed for them is not read, and must not fail.
- Ids, positions, starts, lengths, blocks, slots and rows are int32.

`torch_ops.TorchOps` gives all of it in plain torch, on any device; tests hold kernels to it, and it to
`backends/reference.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kvasir.backends.base import BLOCK, Batch
from kvasir.backends.cuda.weights import Weight

__all__ = [
    "BLOCK", "PIECE_ROWS", "Attention", "ExpertsOf", "Kernels", "LowRanks", "Paged", "Rope", "Sampling",
    "Step",
]  # fmt: skip

PIECE_ROWS = 64


@dataclass(frozen=True)
class Step:
    """A batch on the device: T rows of N sequences, R rows that want logits, blocks in a table B wide.

    Sizes are those of the tensors, padding included.  `longest`: rows of one sequence at most (1: a decode).
    `host`: the same batch as the engine gave it, in eager steps; None while a graph is captured.
    `pieces` [P, 2]: sequences are cut into pieces of PIECE_ROWS rows; the sequence n and the first row (of T)
    of each, for kernels that go through ragged sequences by pieces.
    """

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    starts: Tensor  # [N+1]  sequence n owns rows starts[n]:starts[n+1]
    owners: Tensor  # [T]    the sequence of each row
    lengths: Tensor  # [N]   positions of a sequence that exist after this step: its last one + 1
    blocks: Tensor  # [N, B] cache blocks in order; entries past a sequence's own are the scratch block
    slots: Tensor  # [N]    the scratch slot where a sequence has none
    logit_rows: Tensor  # [R]
    adapters: Tensor  # [N]  -1: none
    pieces: Tensor  # [P, 2]
    longest: int
    host: Batch | None = None
    fresh: bool = False  # every sequence begins in this step: nothing is cached

    @property
    def is_decode(self) -> bool:
        """One row a sequence: row n is sequence n."""
        return self.longest == 1


@dataclass(frozen=True)
class Rope:
    """cos and sin [positions, dim/2] float32, `magnitude` in them: pairs (i, i + dim/2) of a head turn."""

    cos: Tensor
    sin: Tensor

    @property
    def dim(self) -> int:
        return 2 * int(self.cos.shape[1])


@dataclass(frozen=True)
class Paged:
    """A layer's KV cache: k [blocks, K, 16, dk] and v [blocks, K, 16, dv], float16, bfloat16 or float32.

    The last three dimensions are contiguous; the stride of blocks is anything (k and v of a block lie side
    by side).  The last block is scratch.  With int8 (q8_0): k_scales [blocks, K, 16, ceil(dk/32)] float16 and
    v_scales likewise, value = scale * code, as `reference.kept` rounds.
    """

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None


@dataclass(frozen=True)
class Attention:
    """What an Attend op was told.  Query head h reads kv head h // (heads / kv_heads)."""

    heads: int
    kv_heads: int
    scale: float
    window: int = 0  # > 0: only the last so many positions, itself included
    causal: bool = True
    softcap: float = 0.0  # > 0: cap * tanh(score / cap), before the mask
    sinks: Tensor | None = None  # [heads] float32: a score that takes part in the softmax, no value


@dataclass(frozen=True)
class LowRanks:
    """What adapters add to one product.  a [n, r, D], b [n, O, r], scales [n] float32; unused ranks are 0."""

    a: Tensor
    b: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Sampling:
    """How R rows choose, on the device; row r as `sampling.choose` says with these, without typical-p.

    temperature, top_p, min_p [R] float32; top_k [R] int32, 0: all; drawn [R] float64 in [0, 1).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    drawn: Tensor


@dataclass(frozen=True)
class ExpertsOf:
    """The weights of an Experts op.  gate_up [E, 2F, D]: F gate rows, then F up rows; down [E, D, F].

    Biases float32: gate_up_bias [E, 2F], down_bias [E, D], or None.
    """

    gate_up: Weight
    down: Weight
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    k: int
    route: str
    fn: str
    limit: float = 0.0


class Kernels(Protocol):
    """One method an op or fused group.  Shapes are those of the arguments' comments."""

    @property
    def name(self) -> str: ...

    # -- rows in and out --------------------------------------------------------------------------

    def embed(self, table: Weight, ids: Tensor, out: Tensor) -> None:
        """out[t] = table[ids[t]]: table [V, D], ids [T], out [T, D]."""

    def take(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        """out[r] = x[rows[r]]: x [T, D], rows [R], out [R, D]."""

    def pool(self, x: Tensor, step: Step, how: str, out: Tensor) -> None:
        """out[n] = mean, first or last of the rows of sequence n: x [T, D], out [N, D]."""

    # -- elementwise: out may be x ----------------------------------------------------------------

    def add(self, x: Tensor, y: Tensor, out: Tensor) -> None: ...

    def mul(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        """y is as wide as x, or has one column for each of x's y.width equal heads."""

    def scale(self, x: Tensor, by: float, out: Tensor) -> None: ...

    def softcap(self, x: Tensor, cap: float, out: Tensor) -> None: ...

    def act(self, x: Tensor, fn: str, out: Tensor) -> None:
        """fn is one of plan.ops.Activation."""

    def glu(self, gate: Tensor, up: Tensor, fn: str, limit: float, out: Tensor) -> None:
        """`reference.gated`."""

    def copy(self, x: Tensor, out: Tensor) -> None: ...

    # -- norms ------------------------------------------------------------------------------------

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
        heads: int, center: bool, out: Tensor,
    ) -> None:  # fmt: skip
        """As ops.Norm: x [rows, heads * d], weight and bias [d] float32."""

    def add_norm(
        self, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None,
        eps: float, center: bool, total: Tensor, out: Tensor,
    ) -> None:  # fmt: skip
        """total = x + y (total may be x), out = norm(x + y) over the whole row, from the sum in float32."""

    def l2norm(self, x: Tensor, heads: int, eps: float, out: Tensor) -> None: ...

    # -- products ---------------------------------------------------------------------------------

    def product(self, x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor) -> None:
        """out = x W^T + bias: x [rows, D], W [O, D], bias [O] float32, out [rows, O].

        Matrices that share their input come as one (`weights.stack`), its outputs as columns of `out`.
        """

    def gated(
        self, x: Tensor, gate_up: Weight, bias: Tensor | None, fn: str, limit: float,
        scratch: Tensor, out: Tensor,
    ) -> None:  # fmt: skip
        """out = gated(gate, up) of x gate_up^T + bias: gate_up [2F, D], F gate rows first; out [rows, F].

        scratch [rows, 2F], in the dtype of out, may be written or not.
        """

    def low_rank(
        self,
        x: Tensor,
        ranks: LowRanks,
        owners: Tensor,
        adapters: Tensor,
        out: Tensor,
    ) -> None:
        """out[t] += scales[i] * b[i] (a[i] x[t]) where i = adapters[owners[t]] >= 0."""

    # -- position and past ------------------------------------------------------------------------

    def rope(self, x: Tensor, table: Rope, positions: Tensor, heads: int, out: Tensor) -> None: ...

    def store(self, k: Tensor, v: Tensor, step: Step, cache: Paged) -> None:
        """k [T, K*dk] and v [T, K*dv] of every row into blocks[owner, position / 16] at position % 16."""

    def attend_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor | None,
        k_norm: Tensor | None, eps: float, table: Rope | None, heads: int, kv_heads: int, step: Step,
        cache: Paged, q_out: Tensor, k_out: Tensor | None,
    ) -> None:  # fmt: skip
        """q_out = rope(norm(q)), and rope(norm(k)) with v into the cache; norms a head, weights [d] or None.

        Keys are rounded to the dtype of q_out before they go into the cache, so that an attention over this
        step's own keys and one over the cache see the same numbers.

        A norm without weight does not occur: None says that there is none.  k_out [T, K*dk]: where the new
        keys are wanted besides (in the dtype of q_out), or None.
        """

    def attend(self, q: Tensor, cache: Paged, step: Step, told: Attention, out: Tensor) -> None:
        """Every row over the positions up to its own, from the cache alone: q [T, H*dk], out [T, H*dv]."""

    def attend_fresh(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: Step,
        told: Attention,
        out: Tensor,
    ) -> None:
        """Over the rows of the same sequence in this step, no cache: encoders (told.causal False), and
        prompts of which nothing is cached.
        """

    def conv(self, x: Tensor, weight: Tensor, step: Step, past: Tensor, out: Tensor) -> None:
        """As ops.Conv: x [T, D], weight [D, taps] float32, past [slots, (taps-1) * D] float32, oldest first.

        A sequence whose first row is at position 0 finds zeros.
        """

    def decay(self, x: Tensor, a: Tensor, bias: Tensor, out: Tensor) -> None:
        """out = -exp(a) * softplus(x + bias): x, out [T, H], a, bias [H] float32."""

    def delta(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor,
        step: Step, memory: Tensor, k_heads: int, v_heads: int, out: Tensor,
    ) -> None:  # fmt: skip
        """As ops.Delta: memory [slots, v_heads, v_dim, k_dim] float32; value head h reads key head
        h % k_heads.
        A sequence whose first row is at position 0 finds zeros.
        """

    # -- experts ----------------------------------------------------------------------------------

    def experts(self, x: Tensor, scores: Tensor, of: ExpertsOf, out: Tensor) -> None:
        """As ops.Experts: x [T, D], scores [T, E] float32, out [T, D]."""

    # -- choosing ---------------------------------------------------------------------------------

    def choose(self, logits: Tensor, how: Sampling, out: Tensor) -> None:
        """The next token of each row: logits [R, V], out [R] int32."""
