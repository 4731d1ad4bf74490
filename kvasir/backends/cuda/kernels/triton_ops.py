"""`face.Kernels` by Triton's kernels; what has none, or is better left to cuBLAS, is torch's.

Which kernel a product takes goes by its rows: up to four a matrix-vector kernel (two with weights of 4 or 8
bits, whose decoding fills the registers), above that cuBLAS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kvasir.backends.cuda.kernels import attend, inputs, matvec
from kvasir.backends.cuda.kernels.common import Config
from kvasir.backends.cuda.kernels.elementwise import elementwise
from kvasir.backends.cuda.kernels.face import Attention, Paged, Rope, Step
from kvasir.backends.cuda.kernels.matvec_codes import matvec_codes
from kvasir.backends.cuda.kernels.norm import norm
from kvasir.backends.cuda.kernels.torch_ops import TorchOps
from kvasir.backends.cuda.weights import Blocks, Dense, Fp8, Weight

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
        if not self._few(x, weight, bias, out, "", 0.0):
            super().product(x, weight, bias, out)

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

    def attend_fresh(self, q: Tensor, k: Tensor, v: Tensor, step: Step, told: Attention, out: Tensor) -> None:
        plain = not told.softcap and told.sinks is None and not 0 < told.window < step.longest
        if step.host is None or not plain:
            super().attend_fresh(q, k, v, step, told, out)
            return
        for _, rows in step.host.sequences():
            queries, keys, values = (
                x[rows].unflatten(1, (heads, -1)).transpose(0, 1)[None]
                for x, heads in ((q, told.heads), (k, told.kv_heads), (v, told.kv_heads))
            )
            y = F.scaled_dot_product_attention(
                queries, keys.to(q.dtype), values.to(q.dtype), is_causal=told.causal, scale=told.scale,
                enable_gqa=told.heads != told.kv_heads,
            )  # fmt: skip
            out[rows] = y[0].transpose(0, 1).flatten(1).to(out.dtype)
