"""Qwen3.5's text model: three Gated DeltaNet layers to one of attention with an output gate.

Value heads lie tiled: head h goes with key head h % k_heads, as in GGUF; safetensors group them by key head.
Sources: arXiv 2412.06464; the release of Qwen3-Next.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import (
    DECODER,
    Indices,
    Look,
    Part,
    Recipe,
    Recipes,
    changed,
    one_more,
    pick,
    shaped,
)
from kvasir.errors import CheckpointError
from kvasir.models import blocks as b
from kvasir.models.blocks import Dims, Family, dims, finish, start
from kvasir.models.rope import Given, Rotation, rotation, table
from kvasir.plan import Plan, Value
from kvasir.records import dataclass


@dataclass(frozen=True)
class Heads:
    """The heads of a DeltaNet layer."""

    k: int
    v: int
    k_dim: int
    v_dim: int
    taps: int

    @staticmethod
    def of(c: Config) -> Heads:
        k, v = c.int("linear_num_key_heads", 16), c.int("linear_num_value_heads", 32)
        if v % k:
            raise CheckpointError(f"{c.where}: {v} value heads cannot share {k} key heads")
        k_dim, v_dim = c.int("linear_key_head_dim", 128), c.int("linear_value_head_dim", 128)
        return Heads(k, v, k_dim, v_dim, c.int("linear_conv_kernel_dim", 4))

    def tiled(self, columns: int) -> Indices:
        """Where safetensors keep each of our value heads' `columns` rows."""
        rows = np.arange(self.v * columns).reshape(self.k, -1, columns)
        return rows.swapaxes(0, 1).reshape(-1)


def qwen35(c: Config, given: Given) -> Plan:
    c.must("hidden_act", "silu")
    c.must("attention_bias", False)
    c.must("attn_output_gate", True)
    c.must("mlp_only_layers", [])
    c.ignore("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mrope_section")
    table(c).ignore("mrope_section", "mrope_interleaved")  # text moves along all three axes at once
    m, ffn, heads = sizes(c, given), c.int("intermediate_size"), Heads.of(c)
    r = rotation(c, given, m.d, part=0.25)
    p, x = start("qwen35", m)
    for i, full in enumerate(full_layers(c, m)):
        p.layer(i)
        h = p.norm(x, "attn_norm", m.eps)
        x = p.add(x, gated_attention(p, m, h, r) if full else delta_net(p, m, h, heads))
        x = p.add(x, b.mlp(p, m, p.norm(x, "post_attention_norm", m.eps), ffn))
    return finish(p, m, x)


def sizes(c: Config, given: Given) -> Dims:
    """GGUF counts the layers that draft tokens among the layers; they come last and are not run."""
    m = dims(c, given, usual={"head_dim": 256})
    return replace(m, layers=m.layers - c.int("num_nextn_predict_layers", 0))


def full_layers(c: Config, m: Dims) -> list[bool]:
    every, kinds = c.int("full_attention_interval", 4), c.strs("layer_types", [])
    if kinds and (len(kinds) != m.layers or not set(kinds) <= {"linear_attention", "full_attention"}):
        raise CheckpointError(f"{c.where}: layer_types must be {m.layers} of linear_ and full_attention")
    return [k == "full_attention" for k in kinds] or [(i + 1) % every == 0 for i in range(m.layers)]


def gated_attention(p: Plan, m: Dims, x: Value, r: Rotation) -> Value:
    gate = p.linear(x, "attn_q_gate", m.heads * m.d, split=True)
    q, k, v = b.qkv(p, m, x)
    q, k = b.turned(p, m, *b.normed(p, m, q, k), r)
    y = b.attend(p, m, q, k, v)
    return p.linear(p.mul(y, p.act(gate, "sigmoid")), "attn_output", m.width)


def delta_net(p: Plan, m: Dims, x: Value, n: Heads) -> Value:
    keys, values = n.k * n.k_dim, n.v * n.v_dim
    mixed, gate = p.linear(x, "attn_qkv", 2 * keys + values), p.linear(x, "attn_gate", values)
    beta, alpha = p.linear(x, "ssm_beta", n.v), p.linear(x, "ssm_alpha", n.v)
    q, k, v = p.split(p.act(p.conv(mixed, "ssm_conv1d", n.taps), "silu"), keys, keys, values)
    beta, decay = p.act(beta, "sigmoid"), p.decay(alpha, "ssm_a", "ssm_dt.bias")
    y = p.delta(p.l2norm(q, n.k), p.l2norm(k, n.k), v, decay, beta, n.k, n.v)
    return p.linear(p.glu(gate, p.norm(y, "ssm_norm", m.eps, n.v)), "ssm_out", m.width)


# -- recipes --------------------------------------------------------------------------------------


def q_and_gate(c: Config, name: str) -> dict[str, Recipe]:
    """Each head of the packed matrix has its rows of q, then its rows of the gate."""
    m = dims(c, Given(), usual={"head_dim": 256})
    rows = np.arange(2 * m.heads * m.d).reshape(m.heads, 2, m.d).swapaxes(0, 1).reshape(2, -1)
    return {"attn_q": moved(name, rows[0]), "attn_q_gate": moved(name, rows[1])}


def moved(name: str, index: Indices, axis: int = 0) -> Recipe:
    return lambda look: pick(look(name), index, axis)


def safetensors(c: Config) -> Recipes:
    n = Heads.of(c)
    keys = 2 * n.k * n.k_dim
    mixed = np.concatenate([np.arange(keys), keys + n.tiled(n.v_dim)])

    def norm(name: str) -> Recipe:
        return lambda look: one_more(look(name))

    def conv(look: Look) -> Part:
        t = look("linear_attn.conv1d")
        return pick(shaped(t, t.shape[0], t.shape[-1]), mixed)

    return {
        **DECODER,
        **q_and_gate(c, "self_attn.q_proj"),
        **{k: norm(str(DECODER[k])) for k in ("attn_norm", "output_norm", "attn_q_norm", "attn_k_norm")},
        "post_attention_norm": norm("post_attention_layernorm"),
        "attn_qkv": moved("linear_attn.in_proj_qkv", mixed),
        "attn_gate": moved("linear_attn.in_proj_z", n.tiled(n.v_dim)),
        "ssm_beta": moved("linear_attn.in_proj_b", n.tiled(1)),
        "ssm_alpha": moved("linear_attn.in_proj_a", n.tiled(1)),
        "ssm_conv1d": conv,
        "ssm_a": moved("linear_attn.A_log", n.tiled(1)),
        "ssm_dt.bias": moved("linear_attn.dt_bias", n.tiled(1)),
        "ssm_norm": "linear_attn.norm",
        "ssm_out": moved("linear_attn.out_proj", n.tiled(n.v_dim), axis=1),
    }


def gguf(c: Config) -> Recipes:
    """GGUF's names are the plan's; it keeps -exp(A_log) for A_log."""
    return {**q_and_gate(c, "attn_q"), "ssm_a": lambda look: changed(lambda a: np.log(-a), look("ssm_a"))}


def aside(c: Config) -> str:
    """Vision, and the layers that draft tokens."""
    layers, drafts = c.int("num_hidden_layers"), c.int("num_nextn_predict_layers", 0)
    return "|".join([r"visual\.|mtp\.", *(rf"blk\.{i}\." for i in range(layers - drafts, layers))])


QWEN35 = Family(qwen35, safetensors, gguf, aside)
