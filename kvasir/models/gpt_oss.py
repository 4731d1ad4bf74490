"""gpt-oss: attention with sinks, every other layer in a window, biases, MXFP4 experts with a clamped SwiGLU.

Source: arXiv 2508.10925.
"""

from __future__ import annotations

from dataclasses import replace

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import DECODER, Look, Part, Recipe, Recipes, mxfp4, pick, transposed
from kvasir.errors import CheckpointError
from kvasir.models import blocks as b
from kvasir.models.blocks import Family, dims, finish, start
from kvasir.models.rope import Given, rotation
from kvasir.plan import Plan


def gpt_oss(c: Config, given: Given) -> Plan:
    c.must("hidden_act", "silu")
    c.must("swiglu_alpha", 1.702)
    stored(c)
    m = dims(c, given)
    r = rotation(c, replace(given, truncate=False), m.d, 150_000.0)
    windows = b.layer_windows(c, m.layers, lambda i: i % 2 == 0, 128)
    n, k, bias = c.int("num_experts"), c.int("num_experts_per_tok"), c.bool("attention_bias", True)
    ffn, limit = c.int("moe_intermediate_size", c.int("intermediate_size")), c.float("swiglu_limit", 7.0)
    if not 0 < k <= n or limit <= 0:
        raise CheckpointError(f"{c.where}: {k} of {n} experts, clamped at {limit:g}, make no sense")
    p, x = start("gpt-oss", m)
    for i in range(m.layers):
        p.layer(i)
        q, key, v = b.qkv(p, m, p.norm(x, "attn_norm", m.eps), bias)
        q, key = b.turned(p, m, q, key, r)
        y = p.attend(q, key, v, m.heads, m.kv_heads, m.d**-0.5, window=windows[i], sinks=True)
        x = p.add(x, p.linear(y, "attn_output", m.width, bias))
        h = p.norm(x, "post_attention_norm", m.eps)
        scores = p.linear(h, "ffn_gate_inp", n, bias=True)
        x = p.add(x, p.experts(h, scores, k, ffn, "topk_softmax", limit=limit, bias=True))
    return finish(p, m, x)


def stored(c: Config) -> None:
    """How the weights are kept: the tensors themselves say so, if it is a way we know."""
    c.ignore("initial_context_length")
    if quantized := c.table("quantization_config"):
        quantized.must("quant_method", "mxfp4", required=True)
        quantized.ignore("modules_to_not_convert", "dequantize", "use_kernels")


def safetensors(c: Config) -> Recipes:
    return {
        **DECODER,
        "post_attention_norm": "post_attention_layernorm",
        "attn_sinks": "self_attn.sinks",
        "ffn_gate_inp": "mlp.router",
        "ffn_gate_exps": experts("gate_up_proj", 0),
        "ffn_up_exps": experts("gate_up_proj", 1),
        "ffn_down_exps": experts("down_proj", None),
        "ffn_gate_exps.bias": every_other("mlp.experts.gate_up_proj_bias", 0),
        "ffn_up_exps.bias": every_other("mlp.experts.gate_up_proj_bias", 1),
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    }


def every_other(name: str, first: int) -> Recipe:
    return lambda look: pick(look(name), slice(first, None, 2), axis=1)


def experts(name: str, first: int | None) -> Recipe:
    """[E, O, D]: MXFP4 blocks and scales, or floats kept inputs first; rows of gate and up alternate."""

    def recipe(look: Look) -> Part:
        own = f"mlp.experts.{name}"
        packed = look.has(f"{own}_blocks")
        t = mxfp4(look(f"{own}_blocks"), look(f"{own}_scales")) if packed else transposed(look(own))
        return t if first is None else pick(t, slice(first, None, 2), axis=1)

    return recipe


GPT_OSS = Family(gpt_oss, safetensors)
