"""BERT encoders for embeddings: a token sees its whole text, one row a text.  Source: arXiv 1810.04805."""

from __future__ import annotations

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import Look, Part, Recipe, Recipes, pick, shaped, summed
from kvasir.errors import CheckpointError
from kvasir.models.blocks import Family, dims, start
from kvasir.models.rope import Given
from kvasir.plan import Plan, Value
from kvasir.plan.ops import Pooling

POOLING: dict[int, Pooling] = {1: "mean", 2: "first", 3: "last"}  # GGUF's numbers


def bert(c: Config, given: Given) -> Plan:
    c.must("hidden_act", "gelu")
    c.must("is_causal", False)
    c.ignore("type_vocab_size", "classifier_dropout")
    m, ffn, longest = dims(c, given), c.int("intermediate_size"), c.int("max_position_embeddings")
    p, x = start("bert", m)

    def norm(x: Value, name: str) -> Value:
        return p.norm(x, name, m.eps, center=True)

    x = norm(p.add(x, p.embed("position_embd", longest, m.width, by="positions")), "token_embd_norm")
    for i in range(m.layers):
        p.layer(i)
        q, k, v = (p.linear(x, f"attn_{n}", m.width, bias=True) for n in "qkv")
        y = p.attend(q, k, v, m.heads, m.heads, m.d**-0.5, cached=False)
        x = norm(p.add(x, p.linear(y, "attn_output", m.width, bias=True)), "attn_output_norm")
        y = p.act(p.linear(x, "ffn_up", ffn, bias=True), "gelu")
        x = norm(p.add(x, p.linear(y, "ffn_down", m.width, bias=True)), "layer_output_norm")
    p.top()
    p.output = p.pool(x, pooling(c, given))
    return p


def pooling(c: Config, given: Given) -> Pooling:
    """The mean of all rows, unless the file says otherwise."""
    told = c.int("pooling_type", 1)
    if told not in POOLING:
        raise CheckpointError(f"{c.where}: pooling {told}; 1 (mean), 2 (first), 3 (last) are known")
    return given.pooling or POOLING[told]


def positions(table: str, types: str) -> Recipe:
    """The table of positions with row 0 of the token types added: every token is of type 0."""

    def recipe(look: Look) -> Part:
        t = look(types)
        first = t if len(t.shape) == 1 else pick(t, slice(0, 1))
        return summed(look(table), shaped(first, 1, t.shape[-1]))

    return recipe


def safetensors(c: Config) -> Recipes:
    return {
        "token_embd": "embeddings.word_embeddings",
        "position_embd": positions("embeddings.position_embeddings", "embeddings.token_type_embeddings"),
        "token_embd_norm": "embeddings.LayerNorm",
        "attn_q": "attention.self.query",
        "attn_k": "attention.self.key",
        "attn_v": "attention.self.value",
        "attn_output": "attention.output.dense",
        "attn_output_norm": "attention.output.LayerNorm",
        "ffn_up": "intermediate.dense",
        "ffn_down": "output.dense",
        "layer_output_norm": "output.LayerNorm",
    }


def own(c: Config) -> Recipes:
    return {"position_embd": positions("position_embd", "token_types")}


BERT = Family(bert, safetensors, own, layers="encoder.layer.{}.")
