"""Qwen2, Qwen3 and Qwen3-MoE: Llama's frame with a bias on q, k, v, then with a norm on each head of q and k.

Sources: arXiv 2407.10671, arXiv 2505.09388.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import DECODER, Recipes
from kvasir.models import blocks as b
from kvasir.models.blocks import Dims, Family, dims, finish, start
from kvasir.models.rope import Given, rotation
from kvasir.plan import Plan, Value

Kind = Literal["qwen2", "qwen3", "qwen3moe"]


def qwen(kind: Kind, c: Config, given: Given) -> Plan:
    c.must("hidden_act", "silu")
    c.must("use_mrope", False)
    m = dims(c, given)
    r, windows, dense = rotation(c, given, m.d), sliding(c, m, kind), dense_layers(c, m, kind)
    bias = c.bool("attention_bias", "blk.0.attn_q.bias" in given.tensors) if kind != "qwen2" else False
    p, x = start(kind, m)
    for i in range(m.layers):
        p.layer(i)
        q, k, v = b.qkv(p, m, p.norm(x, "attn_norm", m.eps), bias or kind == "qwen2")
        if kind != "qwen2":
            q, k = b.normed(p, m, q, k)
        y = b.attend(p, m, *b.turned(p, m, q, k, r), v, windows[i])
        x = p.add(x, p.linear(y, "attn_output", m.width, bias))
        h = p.norm(x, "ffn_norm", m.eps)
        x = p.add(x, b.mlp(p, m, h, c.int("intermediate_size")) if dense[i] else sparse(p, c, h))
    return finish(p, m, x)


def sliding(c: Config, m: Dims, kind: Kind) -> list[int]:
    """Qwen2 and 3 slide from layer max_window_layers on; Qwen3-MoE in all layers; each only if told to."""
    if not c.bool("use_sliding_window", False):
        c.ignore("sliding_window", "max_window_layers", "layer_types")
        return [0] * m.layers
    first = 0 if kind == "qwen3moe" else c.int("max_window_layers", 28)
    if kind == "qwen3moe":
        c.ignore("max_window_layers", "layer_types")
        return [c.int("sliding_window", 4096)] * m.layers
    return b.layer_windows(c, m.layers, lambda i: i >= first)


def dense_layers(c: Config, m: Dims, kind: Kind) -> list[bool]:
    """Which layers have no experts."""
    if kind != "qwen3moe":
        return [True] * m.layers
    step, only = c.int("decoder_sparse_step", 1), c.ints("mlp_only_layers", [])
    if m.layers and step < 1:
        return [True] * m.layers
    c.ignore("intermediate_size")
    return [i in only or (i + 1) % step != 0 for i in range(m.layers)]


def sparse(p: Plan, c: Config, x: Value) -> Value:
    # Its own default is false, but GGUF files do not say, and every published model renormalizes.
    renorm = c.bool("norm_topk_prob", not c.has("architectures"))
    return b.moe(p, x, c.int("num_experts"), c.int("num_experts_per_tok"), c.int("moe_intermediate_size"),
               "softmax_renorm" if renorm else "softmax")  # fmt: skip


def experts(c: Config) -> Recipes:
    each = [f"mlp.experts.{{}}.{w}_proj" for w in ("gate", "up", "down")]
    return {**DECODER, **b.expert_stack("mlp.experts", each), "ffn_gate_inp": "mlp.gate"}


QWEN2 = Family(partial(qwen, "qwen2"), lambda c: DECODER)
QWEN3 = Family(partial(qwen, "qwen3"), lambda c: DECODER)
QWEN3_MOE = Family(partial(qwen, "qwen3moe"), experts)
