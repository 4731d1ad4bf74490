"""The tiny models that are compared with Transformers: one or more a family, so that every feature matters.

Each runs past its original context, past its window, with norms that are not 1 and biases that are not 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"
N_TOKENS = 24

SMALL = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


@dataclass(frozen=True)
class Case:
    """A tiny model: Transformers' classes and what its config says beside `SMALL`.

    `gguf`: the architecture's name there, "" where GGUF lacks it.  `context`: what `build` is asked for.
    """

    model: str
    config: str
    gguf: str
    says: dict[str, object] = field(default_factory=dict)
    context: int | None = None
    mxfp4: bool = False


AT16 = {"original_max_position_embeddings": 16}
LONG = [1.0 + 0.3 * i for i in range(4)]
SHORT = [1.0 + 0.1 * i for i in range(4)]
PHI = {"long_factor": LONG, "short_factor": SHORT, "partial_rotary_factor": 0.5}
SPARSE = {"num_local_experts": 4, "num_experts_per_tok": 2}
OSS = {
    "num_local_experts": 5, "num_experts_per_tok": 2, "vocab_size": 80, "head_dim": 16,
    "intermediate_size": 32, "sliding_window": 6,
    **rope("yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False, **AT16),
}  # fmt: skip

CASES: dict[str, Case] = {
    "llama": Case("LlamaForCausalLM", "LlamaConfig", "llama", {
        "attention_bias": True, "mlp_bias": True,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **AT16)}),
    "llama-yarn": Case("LlamaForCausalLM", "LlamaConfig", "llama", {
        "tie_word_embeddings": True, **rope("yarn", factor=4.0, **AT16)}),
    "llama-linear": Case("LlamaForCausalLM", "LlamaConfig", "llama", rope("linear", factor=2.5)),
    "mistral": Case("MistralForCausalLM", "MistralConfig", "", {"sliding_window": 7, "head_dim": 16}),
    "mixtral": Case("MixtralForCausalLM", "MixtralConfig", "llama", SPARSE),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config", "qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": Case("Qwen2ForCausalLM", "Qwen2Config", "", {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", "qwen3", {
        "head_dim": 16, **rope("yarn", factor=4.0, **AT16)}),
    "qwen3-moe": Case("Qwen3MoeForCausalLM", "Qwen3MoeConfig", "qwen3moe", {
        "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
        "norm_topk_prob": True}),
    "qwen3-moe-mixed": Case("Qwen3MoeForCausalLM", "Qwen3MoeConfig", "", {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "num_hidden_layers": 4, "mlp_only_layers": [1],
        "decoder_sparse_step": 2, "norm_topk_prob": False}),
    "qwen35": Case("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", "qwen35", {
        "head_dim": 16, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
        "linear_key_head_dim": 8, "linear_value_head_dim": 4}),
    "gemma2": Case("Gemma2ForCausalLM", "Gemma2Config", "gemma2", {
        "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0}),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", "gemma3", {
        "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16, "num_hidden_layers": 6,
        "intermediate_size": 32,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "gpt-oss": Case("GptOssForCausalLM", "GptOssConfig", "gpt-oss", OSS),
    "gpt-oss-mxfp4": Case("GptOssForCausalLM", "GptOssConfig", "gpt-oss", OSS, mxfp4=True),
    "phi3": Case("Phi3ForCausalLM", "Phi3Config", "phi3", {
        "hidden_size": 64, "original_max_position_embeddings": 16, **rope("longrope", **PHI)}),
    "phi3-short": Case("Phi3ForCausalLM", "Phi3Config", "phi3", {
        "hidden_size": 64, "original_max_position_embeddings": 32, "sliding_window": 9,
        **rope("longrope", **PHI)}, context=32),
    "bert": Case("BertModel", "BertConfig", "bert", {"type_vocab_size": 2}),
}  # fmt: skip
