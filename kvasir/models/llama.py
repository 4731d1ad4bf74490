"""Llama and Mistral: pre-norm, grouped heads, rope, Mixtral's frame.  Source: arXiv 2307.09288."""

from __future__ import annotations

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import DECODER
from kvasir.models.blocks import Family, attend, dims, finish, mlp, moe, qkv, start, turned, unpermuted
from kvasir.models.rope import Given, rotation
from kvasir.plan import Plan


def llama(c: Config, given: Given) -> Plan:
    c.must("hidden_act", "silu")
    m, n = dims(c, given), c.int("num_experts", 0)
    r, window, ffn = rotation(c, given, m.d), c.int("sliding_window", 0), c.int("intermediate_size")
    bias = c.bool("attention_bias", "blk.0.attn_q.bias" in given.tensors)
    mlp_bias = c.bool("mlp_bias", "blk.0.ffn_up.bias" in given.tensors)
    k = c.int("num_experts_per_tok", 2) if n else 0
    p, x = start("llama", m)
    for i in range(m.layers):
        p.layer(i)
        q, key, v = qkv(p, m, p.norm(x, "attn_norm", m.eps), bias)
        y = attend(p, m, *turned(p, m, q, key, r), v, window)
        x = p.add(x, p.linear(y, "attn_output", m.width, bias))
        h = p.norm(x, "ffn_norm", m.eps)
        x = p.add(x, moe(p, h, n, k, ffn, "softmax_renorm") if n else mlp(p, m, h, ffn, bias=mlp_bias))
    return finish(p, m, x)


LLAMA = Family(llama, lambda c: DECODER, unpermuted)
