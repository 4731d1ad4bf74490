"""`face.Kernels` by Triton's kernels; what has none, or is better left to cuBLAS, is torch's.

Which kernel a product takes goes by its rows: up to four a matrix-vector kernel (two with weights of 4 or 8
bits, whose decoding fills the registers), then up to 64 one with tl.dot where the weights have to be decoded
or the table of this GPU names it, above that cuBLAS, to which such weights are decoded in pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kvasir.backends.cuda.kernels import attend, inputs, matvec, recurrent, rows
from kvasir.backends.cuda.kernels.common import Config, power
from kvasir.backends.cuda.kernels.elementwise import elementwise
from kvasir.backends.cuda.kernels.experts import sort_pairs
from kvasir.backends.cuda.kernels.face import Attention, ExpertsOf, Paged, Rope, Sampling, Step
from kvasir.backends.cuda.kernels.matvec_codes import matvec_codes
from kvasir.backends.cuda.kernels.norm import norm
from kvasir.backends.cuda.kernels.sample import sample
from kvasir.backends.cuda.kernels.torch_ops import TorchOps
from kvasir.backends.cuda.weights import Blocks, Dense, Fp8, Weight

PIECE = 4096  # rows of weights that are decoded at a time

# A kernel's name and what fixes its shape -> its configuration on this GPU, or None for the default.
Chosen = Callable[[str, tuple[int, ...]], Config | None]


def defaults(kernel: str, shape: tuple[int, ...]) -> Config | None:
    return None


class TritonOps(TorchOps):
    """The face on a GPU.  Mutable: owns the workspace that its kernels meet in, made at the first call on a
    device (never while a graph is captured: steps run before that).  One stream at a time.

    `splits` > 0 cuts every past into so many parts whatever the batch, so that a row of a decode does not
    depend on how many rows there are.
    """

    name = "triton"

    def __init__(self, chosen: Chosen = defaults, splits: int = 0) -> None:
        self.works: dict[torch.device, matvec.Workspace] = {}
        self.chosen = chosen
        self.splits = splits

    def work(self, x: Tensor) -> matvec.Workspace:
        if x.device not in self.works:
            self.works[x.device] = matvec.Workspace.on(x.device)
        return self.works[x.device]

    # -- elementwise ------------------------------------------------------------------------------

    def add(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        elementwise("add", x, y, out).run()

    def mul(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        elementwise("mul", x, y, out).run()

    def scale(self, x: Tensor, by: float, out: Tensor) -> None:
        elementwise("scale", x, None, out, by).run()

    def softcap(self, x: Tensor, cap: float, out: Tensor) -> None:
        elementwise("softcap", x, None, out, cap).run()

    def act(self, x: Tensor, fn: str, out: Tensor) -> None:
        elementwise("act", x, None, out, fn=fn).run()

    def glu(self, gate: Tensor, up: Tensor, fn: str, limit: float, out: Tensor) -> None:
        elementwise("limited" if limit else "glu", gate, up, out, limit, fn).run()

    def copy(self, x: Tensor, out: Tensor) -> None:
        elementwise("copy", x, None, out).run()

    # -- norms ------------------------------------------------------------------------------------

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, heads: int, center: bool,
        out: Tensor,
    ) -> None:  # fmt: skip
        norm(x, None, weight, bias, eps, heads, "layer" if center else "rms", None, out).run()

    def add_norm(
        self, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool,
        total: Tensor, out: Tensor,
    ) -> None:  # fmt: skip
        norm(x, y, weight, bias, eps, 1, "layer" if center else "rms", total, out).run()

    def l2norm(self, x: Tensor, heads: int, eps: float, out: Tensor) -> None:
        norm(x, None, None, None, eps, heads, "l2", None, out).run()

    # -- products ---------------------------------------------------------------------------------

    def product(self, x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor) -> None:
        if self._few(x, weight, bias, out, "", 0.0):
            return
        config = self.chosen("rows", (len(x), out.shape[1], x.shape[1]))
        own = config is not None or not isinstance(weight, Dense)
        if len(x) <= rows.MOST_ROWS and own and weight.shape[-1] % 32 == 0:
            rows.some_rows(x, weight, bias, out, self.work(x), config=config).run()
        elif isinstance(weight, Blocks) and x.device.type == "cuda":
            self._by_pieces(x, weight, bias, out)
        else:
            super().product(x, weight, bias, out)

    def _by_pieces(self, x: Tensor, weight: Blocks, bias: Tensor | None, out: Tensor) -> None:
        """Weights decoded PIECE rows at a time, each piece multiplied by cuBLAS."""
        outputs, width = weight.shape
        piece = torch.empty(min(PIECE, outputs), width, dtype=x.dtype, device=x.device)
        for first in range(0, outputs, PIECE):
            own = piece[: outputs - first]
            rows.decoded(weight, first, own).run()
            y = F.linear(x, own)
            to = slice(first, first + len(own))
            out[:, to] = y if bias is None else y + bias[to]

    # -- experts ----------------------------------------------------------------------------------

    def experts(self, x: Tensor, scores: Tensor, of: ExpertsOf, out: Tensor) -> None:
        if x.shape[1] % 32 or of.down.shape[-1] % 32:
            super().experts(x, scores, of, out)
            return
        n_pairs, n_experts = len(x) * of.k, scores.shape[1]
        block = min(max(power(n_pairs // n_experts), 16), rows.MOST_ROWS)
        by = sort_pairs(scores, of.k, of.route, block)
        work, inner = self.work(x), of.down.shape[-1]
        both = torch.empty(n_pairs, 2 * inner, dtype=x.dtype, device=x.device)
        given = work, by.pairs, by.block_expert
        rows.some_rows(x, of.gate_up, of.gate_up_bias, both, *given, of.k, block).run()
        hidden = torch.empty(n_pairs, inner, dtype=x.dtype, device=x.device)
        self.glu(both[:, :inner], both[:, inner:], of.fn, of.limit, hidden)
        answers = torch.empty(n_pairs, out.shape[1], dtype=torch.float32, device=x.device)
        rows.some_rows(hidden, of.down, of.down_bias, answers, *given, 1, block).run()
        out.copy_((answers.unflatten(0, (-1, of.k)) * by.share[..., None]).sum(1))

    def gated(
        self, x: Tensor, gate_up: Weight, bias: Tensor | None, fn: str, limit: float, scratch: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        if self._few(x, gate_up, bias, out, fn, limit):
            return
        self.product(x, gate_up, bias, scratch)
        half = out.shape[1]
        self.glu(scratch[:, :half], scratch[:, half:], fn, limit, out)

    def _few(
        self, x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor, fn: str, limit: float
    ) -> bool:
        """The product by a matrix-vector kernel, if it has few rows; whether it was done."""
        most = 2 if isinstance(weight, Blocks) else matvec.MOST_ROWS
        if not 0 < len(x) <= most:
            return False
        shape = (len(x), out.shape[1], x.shape[1], int(bool(fn)))
        if isinstance(weight, Blocks):
            config = self.chosen(f"matvec_codes{weight.bits}", shape)
            matvec_codes(x, weight, bias, out, self.work(x), fn, limit, config).run()
        elif isinstance(weight, Dense):
            config = self.chosen("matvec", shape)
            matvec.matvec(x, weight.data, None, bias, out, self.work(x), fn, limit, config).run()
        else:
            assert isinstance(weight, Fp8)
            config = self.chosen("matvec8", shape)
            matvec.matvec(x, weight.data, weight.scales, bias, out, self.work(x), fn, limit, config).run()
        return True

    # -- position and past ------------------------------------------------------------------------

    def attend_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
        table: Rope | None, heads: int, kv_heads: int, step: Step, cache: Paged, q_out: Tensor,
        k_out: Tensor | None,
    ) -> None:  # fmt: skip
        given = q, k, v, q_norm, k_norm, eps, table, heads, kv_heads, step, cache, q_out, k_out
        if cache.k_scales is not None or (q_norm is None) != (k_norm is None):
            super().attend_inputs(*given)
        else:
            inputs.inputs(*given).run()

    def attend(self, q: Tensor, cache: Paged, step: Step, told: Attention, out: Tensor) -> None:
        if cache.k_scales is not None:
            super().attend(q, cache, step, told, out)
        elif step.is_decode:
            shape = (len(q), told.heads, told.kv_heads, cache.k.shape[3])
            config = self.chosen("decode", shape)
            attend.decode(q, cache, step, told, out, self.work(q), config, self.splits).run()
        else:
            config = self.chosen("pieces", (told.heads, told.kv_heads, cache.k.shape[3]))
            attend.by_pieces(q, cache, step, told, out, config).run()

    def conv(self, x: Tensor, weight: Tensor, step: Step, past: Tensor, out: Tensor) -> None:
        for call in recurrent.conv(x, weight, step, past, out):
            call.run()

    def delta(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, step: Step, memory: Tensor,
        k_heads: int, v_heads: int, out: Tensor,
    ) -> None:  # fmt: skip
        recurrent.delta(q, k, v, decay, beta, step, memory, k_heads, v_heads, out).run()

    def attend_fresh(self, q: Tensor, k: Tensor, v: Tensor, step: Step, told: Attention, out: Tensor) -> None:
        plain = not told.softcap and told.sinks is None and not 0 < told.window < step.longest
        if step.host is None or not plain:
            super().attend_fresh(q, k, v, step, told, out)
            return
        for _, own in step.host.sequences():
            queries, keys, values = (
                x[own].unflatten(1, (heads, -1)).transpose(0, 1)[None]
                for x, heads in ((q, told.heads), (k, told.kv_heads), (v, told.kv_heads))
            )
            y = F.scaled_dot_product_attention(
                queries, keys.to(q.dtype), values.to(q.dtype), is_causal=told.causal, scale=told.scale,
                enable_gqa=told.heads != told.kv_heads,
            )  # fmt: skip
            out[own] = y[0].transpose(0, 1).flatten(1).to(out.dtype)

    # -- choosing ---------------------------------------------------------------------------------

    def choose(self, logits: Tensor, how: Sampling, out: Tensor) -> None:
        sample(logits, how, out).run()
