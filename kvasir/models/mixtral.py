"""Mixtral: Llama with 2 of 8 experts in each layer.  Source: arXiv 2401.04088."""

from __future__ import annotations

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import DECODER, Recipes
from kvasir.models.blocks import Family, expert_stack, unpermuted
from kvasir.models.llama import llama

OWN = "block_sparse_moe"


def safetensors(c: Config) -> Recipes:
    each = [f"{OWN}.experts.{{}}.{w}" for w in ("w1", "w3", "w2")]
    return {
        **DECODER,
        **expert_stack("mlp.experts", each),
        "ffn_gate_inp": lambda look: look(f"{OWN}.gate" if look.has(f"{OWN}.gate") else "mlp.gate"),
    }


MIXTRAL = Family(llama, safetensors, unpermuted)
