"""Phi-3 and Phi-4: Llama's frame, q|k|v and gate|up packed, LongRoPE.  Source: arXiv 2404.14219."""

from __future__ import annotations

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import DECODER, Recipes
from kvasir.models import blocks as b
from kvasir.models.blocks import Family, dims, finish, start
from kvasir.models.rope import Given, rotation
from kvasir.plan import Plan


def phi3(c: Config, given: Given) -> Plan:
    c.must("hidden_act", "silu")
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        c.must(key, False)
    for key in ("full_attn_mod", "interpolate_factor"):
        c.must(key, 1)
    m = dims(c, given)
    r, window, ffn = rotation(c, given, m.d), c.int("sliding_window", 0), c.int("intermediate_size")
    c.ignore("original_max_position_embeddings")  # means nothing without scaling
    p, x = start("phi3", m)
    for i in range(m.layers):
        p.layer(i)
        q, k, v = b.qkv(p, m, p.norm(x, "attn_norm", m.eps))
        y = b.attend(p, m, *b.turned(p, m, q, k, r), v, window)
        x = p.add(x, p.linear(y, "attn_output", m.width))
        x = p.add(x, b.mlp(p, m, p.norm(x, "ffn_norm", m.eps), ffn))
    return finish(p, m, x)


def unpacked(c: Config, qkv: str, gate_up: str) -> Recipes:
    m, ffn = dims(c, Given()), c.int("intermediate_size")
    heads, kv = m.heads * m.d, m.kv_heads * m.d
    return {
        **b.packed(qkv, ("attn_q", heads), ("attn_k", kv), ("attn_v", kv)),
        **b.packed(gate_up, ("ffn_gate", ffn), ("ffn_up", ffn)),
    }


def safetensors(c: Config) -> Recipes:
    return {**DECODER, **unpacked(c, "self_attn.qkv_proj", "mlp.gate_up_proj")}


PHI3 = Family(phi3, safetensors, lambda c: unpacked(c, "attn_qkv", "ffn_up"))
