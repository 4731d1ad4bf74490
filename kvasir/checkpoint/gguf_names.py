"""The one table of GGUF's keys and their Hugging Face names, so that a model file reads one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.gguf import Gguf
from kvasir.errors import CheckpointError

# "{arch}." + left in the file; right is what a model reads.
NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attention.causal": "is_causal",
    "attention.scale": "attention_multiplier",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.dimension_count": "rope_dim",
    "rope.dimension_sections": "mrope_section",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_gating_func": "scoring_func",
    "leading_dense_block_count": "first_k_dense_replace",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "full_attention_interval": "full_attention_interval",
    "swiglu_clamp_exp": "swiglu_limit",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": "linear_inner_size",
    "pooling_type": "pooling_type",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logit_scale",
}
# "{arch}.rope.scaling." + left; right is a key of the table "rope_scaling".
SCALING = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attn_factor",
    "yarn_attn_factor": "yarn_attn_factor",
    "yarn_ext_factor": "yarn_ext_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_log_multiplier": "yarn_log_multiplier",
}
# Under "{arch}.", and no mathematics: how the file was made, how it was trained.
NOTES = ("tensor_data_layout", "rope.scaling.finetuned")
# Neutral values, which the converters write whatever the model does.
NEUTRAL = {"attn_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0}
# Parts of the file that belong to an encoder of images or sound: presented as one table each.
ENCODERS = {"vision.": "vision_config", "audio.": "audio_config"}
GATING = {1: "softmax", 2: "sigmoid"}
NO_MODELS = ("adapter", "mmproj", "imatrix", "vocab")


def gguf_config(file: Gguf, where: str) -> Config:
    """The file's `{arch}.*` keys under their Hugging Face names; a key without one keeps its own.

    Also from the tensors: `vocab_size` where the file does not give it, `tie_word_embeddings`, and for
    encoders `type_vocab_size`.
    Raises CheckpointError when the file names no architecture, or is an adapter or another part of a model.
    """
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or not 0 < len(arch) <= 64 or not arch.isprintable():
        raise CheckpointError(
            f"{where}: general.architecture is {arch!r:.80}", hint="not a language model in GGUF"
        )
    kind = file.metadata.get("general.type", "model")
    if isinstance(kind, str) and kind in NO_MODELS:
        raise CheckpointError(f"{where}: holds a part of a model ({kind}), no model by itself")
    values: dict[str, object] = {}
    keys: dict[str, str] = {}
    scaling: dict[str, object] = {}
    for key, value in file.metadata.items():
        if not key.startswith(f"{arch}."):
            continue  # general, tokenizer, quantize, split and strangers' notes: nothing to compute with
        own = key.removeprefix(f"{arch}.")
        encoder = next((name for prefix, name in ENCODERS.items() if own.startswith(prefix)), None)
        if own in NOTES:
            continue
        if encoder is not None:
            _put_in_table(values, encoder, own, value)
        elif own.startswith("rope.scaling.") and own.removeprefix("rope.scaling.") in SCALING:
            name = SCALING[own.removeprefix("rope.scaling.")]
            scaling[name] = value
            keys[f"rope_scaling.{name}"] = key
        else:
            name = NAMES.get(own, key)
            values[name] = value
            keys[name] = key
    _scaling(values, scaling, keys, file)
    _widths(values)
    _from_tensors(values, file)
    gating = values.get("scoring_func")
    if isinstance(gating, int) and gating in GATING:
        values["scoring_func"] = GATING[gating]
    return Config(values, where, arch, keys)


def _put_in_table(values: dict[str, object], table: str, key: str, value: object) -> None:
    inner = values.setdefault(table, {})
    if isinstance(inner, dict):
        inner[key] = value


def _scaling(values: dict[str, object], scaling: dict[str, object], keys: dict[str, str], file: Gguf) -> None:
    """`rope_scaling`, absent when the file scales nothing.

    Phi-3's long rope comes as two tensors and an attention factor without a type, its original length beside.
    """
    scaling = {k: v for k, v in scaling.items() if not (isinstance(v, float) and v == NEUTRAL.get(k))}
    if "rope_factors_long.weight" in file.tensors:
        scaling["rope_type"] = "longrope"
        if "attn_factor" in scaling:
            scaling["attention_factor"] = scaling.pop("attn_factor")
            keys["rope_scaling.attention_factor"] = keys["rope_scaling.attn_factor"]
    kind = scaling.get("rope_type", "linear" if "factor" in scaling else "none")
    kind = kind if isinstance(kind, str) else repr(kind)[:40]
    original = "original_max_position_embeddings"
    if original in scaling and kind in ("none", "longrope"):
        values[original] = scaling.pop(original)
        keys[original] = keys[f"rope_scaling.{original}"]
    if kind == "none":
        for neutral in ("rope_type", "factor"):
            scaling.pop(neutral, None)
    else:
        scaling["rope_type"] = kind
    if scaling:
        values["rope_scaling"] = scaling


def _widths(values: dict[str, object]) -> None:
    """Drops widths that repeat another, and turns the rotated width into Hugging Face's factor."""
    hidden, heads = _count(values, "hidden_size"), _count(values, "num_attention_heads")
    head = _count(values, "head_dim") or (hidden // heads if heads else 0)
    if head and _count(values, "v_head_dim") == head and "kv_lora_rank" not in values:
        del values["v_head_dim"]
    rotated = _count(values, "rope_dim")
    if rotated and "kv_lora_rank" in values:
        values["qk_rope_head_dim"] = values.pop("rope_dim")
    elif rotated and head:
        del values["rope_dim"]
        if rotated != head:
            values["partial_rotary_factor"] = rotated / head
    inner, n_values = _count(values, "linear_inner_size"), _count(values, "linear_num_value_heads")
    if inner and n_values and inner % n_values == 0:
        del values["linear_inner_size"]
        values["linear_value_head_dim"] = inner // n_values


def _from_tensors(values: dict[str, object], file: Gguf) -> None:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        values.setdefault("vocab_size", embedding.shape[0])
        values["tie_word_embeddings"] = "output.weight" not in file.tensors
    types = file.tensors.get("token_types.weight")
    if types is not None:
        values["type_vocab_size"] = types.shape[0] if len(types.shape) > 1 else 1


def _count(values: Mapping[str, object], key: str) -> int:
    """A whole number above zero, or 0: what is ill-typed is left to the reader of the key."""
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
