"""The Qwen3 architecture in plain torch, for training only; names of weights are those of Hugging Face.

Letters: N rows, L tokens a row, D width, H query heads, K kv heads, d head width, F ffn width, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_width: int
    head_width: int = 64
    n_vocab: int = 4096
    n_context: int = 1024
    rope_theta: float = 10_000.0
    eps: float = 1e-6


# Every width is a multiple of 256, so that K-quants fit; the draft is for speed, its blocks are of 32.
SHAPES = {
    "mead": Shape(width=256, n_layers=7, n_heads=4, n_kv_heads=2, ffn_width=1024),
    "draft": Shape(width=128, n_layers=2, n_heads=2, n_kv_heads=1, ffn_width=384),
}


def rope_angles(n_context: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles: [n_context, d], the two halves alike (NeoX order)."""
    rates = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.outer(torch.arange(n_context, dtype=torch.float64), rates)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, h, L, d] turned by its positions' angles [L, d]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Norm(nn.Module):
    """RMSNorm: x over the root of its mean square along the last axis, times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with grouped kv heads and a norm on each head of q and k."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q_width, kv_width = shape.n_heads * shape.head_width, shape.n_kv_heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, q_width, bias=False)
        self.k_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, shape.width, bias=False)
        self.q_norm = Norm(shape.head_width, shape.eps)
        self.k_norm = Norm(shape.head_width, shape.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, L, D] to [N, L, D]."""
        s, (n, length, _) = self.shape, x.shape
        q = self.q_norm(self.q_proj(x).view(n, length, s.n_heads, s.head_width)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(n, length, s.n_kv_heads, s.head_width)).transpose(1, 2)
        v = self.v_proj(x).view(n, length, s.n_kv_heads, s.head_width).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = s.n_heads // s.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(n, length, -1), self.o_proj.weight)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.down_proj = nn.Linear(shape.ffn_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] to [N, L, D]."""
        return F.linear(F.silu(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)


class Layer(nn.Module):
    """Attention and SwiGLU, each behind a norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.width, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.width, shape.eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, L, D] to [N, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Model(nn.Module):
    """The whole model; the embedding is also the output layer."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.n_vocab, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        self.norm = Norm(shape.width, shape.eps)
        cos, sin = rope_angles(shape.n_context, shape.head_width, shape.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._start()

    def _start(self) -> None:
        """Normal weights; what writes to the stream begins smaller, by the number of writers."""
        into_stream = 1 / math.sqrt(2 * self.shape.n_layers)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = into_stream if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                std = 0.02 if "embed" in name else weight.shape[1] ** -0.5 * 0.7
                nn.init.normal_(weight, std=std * scale)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens [N, L] to normed states [N, L, D]. Rows begin at position 0; padding goes at their ends."""
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, L] to logits [N, L, V]."""
        return F.linear(self.hidden(tokens), self.embed_tokens.weight)

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of cross entropies in nats; all three are [N, L]. Weight 0 costs no logits."""
        wanted = weights.flatten().nonzero().squeeze(1)
        logits = F.linear(self.hidden(tokens).flatten(0, 1)[wanted], self.embed_tokens.weight)
        losses = F.cross_entropy(logits, targets.flatten()[wanted], reduction="none")
        return (losses * weights.flatten()[wanted]).sum()


def n_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(weight.numel() for weight in model.parameters())
