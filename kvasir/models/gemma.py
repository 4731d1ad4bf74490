"""Gemma 2 and 3: norms before and after each half, windows on most layers, soft-caps (2), two rope bases (3).

Norms are kept as w and mean 1 + w in safetensors; in GGUF one was added already.
Sources: arXiv 2408.00118, arXiv 2503.19786.
"""

from __future__ import annotations

import numpy as np

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import DECODER, Look, Part, Recipe, Recipes, one_more
from kvasir.models import blocks as b
from kvasir.models.blocks import Dims, Family, dims, finish, start
from kvasir.models.rope import Given, Rotation, rotation, simple
from kvasir.plan import Plan

# What a Gemma 3 config leaves out.
USUAL = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
         "max_position_embeddings": 131_072}  # fmt: skip


def gemma2(c: Config, given: Given) -> Plan:
    m = dims(c, given, tied=True)
    r, told = rotation(c, given, m.d), c.has("architectures")  # a GGUF file that says nothing means 50 and 30
    windows = b.layer_windows(c, m.layers, lambda i: i % 2 == 0, 4096)
    c.must("sliding_window_size", max(windows))
    cap = c.float("attn_logit_softcapping", 0.0 if told else 50.0)
    last = c.float("final_logit_softcapping", 0.0 if told else 30.0)
    return gemma("gemma2", c, m, windows, r, r, 46, cap, last)


def gemma3(c: Config, given: Given) -> Plan:
    m = dims(c, given, tied=True, usual=USUAL)
    every = c.int("sliding_window_pattern", 6)
    c.ignore("_sliding_window_pattern")
    windows = b.layer_windows(c, m.layers, lambda i: (i + 1) % every != 0, 4096)
    table = c.table("rope_parameters")
    wide, near = (table.table(f"{k}_attention") for k in ("full", "sliding")) if table else (None, None)
    far = rotation(c, given, m.d, 1e6, t=wide)
    base = c.float("rope_local_base_freq", 1e4)
    local = rotation(c, given, m.d, base, t=near) if near else simple(base, m.d)
    cap, last = c.float("attn_logit_softcapping", 0.0), c.float("final_logit_softcapping", 0.0)
    return gemma("gemma3", c, m, windows, far, local, 62, cap, last)


def gemma(name: str, c: Config, m: Dims, windows: list[int], far: Rotation, local: Rotation, biggest: int,
          cap: float, last: float) -> Plan:  # fmt: skip
    """`biggest`: layers of the 27B model, the one whose scores are scaled by D/H and not by d."""
    for key in ("hidden_act", "hidden_activation"):
        c.must(key, "gelu_pytorch_tanh")
    c.must("attention_bias", False)
    usual = m.width / m.heads if m.layers == biggest else m.d
    scale, ffn = c.float("query_pre_attn_scalar", usual) ** -0.5, c.int("intermediate_size")
    p, x = start(name, m)
    x = p.scale(x, embedding_scale(c, m))
    for i in range(m.layers):
        p.layer(i)
        q, k, v = b.qkv(p, m, p.norm(x, "attn_norm", m.eps))
        if name == "gemma3":
            q, k = b.normed(p, m, q, k)
        q, k = b.turned(p, m, q, k, local if windows[i] else far)
        y = p.attend(q, k, v, m.heads, m.kv_heads, scale, window=windows[i], softcap=cap)
        x = p.add(x, p.norm(p.linear(y, "attn_output", m.width), "post_attention_norm", m.eps))
        y = b.mlp(p, m, p.norm(x, "ffn_norm", m.eps), ffn, "gelu_tanh")
        x = p.add(x, p.norm(y, "post_ffw_norm", m.eps))
    return finish(p, m, x, last)


def embedding_scale(c: Config, m: Dims) -> float:
    """sqrt(D), rounded to the number format the model was trained in."""
    kind, root = c.str("dtype", c.str("torch_dtype", "")), np.float32(m.width**0.5)
    if kind == "float16":
        return float(np.float16(root))
    if kind == "bfloat16":  # to the nearest, ties to even, on the upper half of the bits
        bits = root.view(np.uint32)
        return float(((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32))
    return float(root)


def safetensors(c: Config) -> Recipes:
    names = {
        **DECODER,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    return {k: shifted(str(n)) if k.endswith("norm") else n for k, n in names.items()}


def shifted(name: str) -> Recipe:
    def recipe(look: Look) -> Part:
        return one_more(look(name))

    return recipe


def vision(c: Config) -> str:
    return r"vision_tower\.|multi_modal_projector\."


GEMMA2 = Family(gemma2, safetensors)
GEMMA3 = Family(gemma3, safetensors, set_aside=vision)
