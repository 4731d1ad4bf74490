"""Configs as published models have them: every key is understood, and the plan has the published size."""

from __future__ import annotations

from math import prod

import pytest

from kvasir.checkpoint.config import Config
from kvasir.errors import CheckpointError
from kvasir.models import FAMILIES, inner
from kvasir.models.rope import Given
from kvasir.plan import Plan, ops

GENERAL = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0",
    "attention_dropout": 0.0,
}


def sizes(
    width: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, n: int
) -> dict[str, object]:
    return {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": n,
    }


SILU = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
GELU = {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "head_dim": 256}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
OSS_ROPE = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
MXFP4 = {"modules_to_not_convert": ["model.layers.*.self_attn"], "quant_method": "mxfp4"}
SLIDE = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28}
LONG = {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48}

# model: architecture, its config beside GENERAL, parameters in millions
PUBLISHED: dict[str, tuple[str, dict[str, object], float]] = {
    "Llama-3.1-8B": (
        "LlamaForCausalLM",
        {
            **sizes(4096, 14336, 32, 32, 8, 128256, 131072),
            **SILU,
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3,
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
        },
        8030,
    ),
    "Mistral-7B-v0.1": (
        "MistralForCausalLM",
        {
            **sizes(4096, 14336, 32, 32, 8, 32000, 32768),
            **SILU,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
        7242,
    ),
    "Mixtral-8x7B": (
        "MixtralForCausalLM",
        {
            **sizes(4096, 14336, 32, 32, 8, 32000, 32768),
            **SILU,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "output_router_logits": False,
            "rope_theta": 1e6,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
        },
        46703,
    ),
    "Qwen2.5-7B": (
        "Qwen2ForCausalLM",
        {**sizes(3584, 18944, 28, 28, 4, 152064, 32768), **SILU, **SLIDE, "rope_theta": 1e6},
        7616,
    ),
    "Qwen3-4B": (
        "Qwen3ForCausalLM",
        {
            **sizes(2560, 9728, 36, 32, 8, 151936, 40960),
            **SILU,
            **SLIDE,
            "head_dim": 128,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_scaling": None,
            "rope_theta": 1000000,
        },
        4022,
    ),
    "Qwen3-30B-A3B": (
        "Qwen3MoeForCausalLM",
        {
            **sizes(2048, 6144, 48, 32, 4, 151936, 40960),
            **SILU,
            **SLIDE,
            "head_dim": 128,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "output_router_logits": False,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001,
        },
        30532,
    ),
    "gemma-2-9b": (
        "Gemma2ForCausalLM",
        {
            **sizes(3584, 14336, 42, 16, 8, 256000, 8192),
            **GELU,
            "hidden_act": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "cache_implementation": "hybrid",
            "query_pre_attn_scalar": 256,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "sliding_window_size": 4096,
            "attention_bias": False,
        },
        9242,
    ),
    "gemma-3-4b": (
        "Gemma3ForConditionalGeneration",
        {
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "image_token_index": 262144,
            "mm_tokens_per_image": 256,
            "model_type": "gemma3",
            "vision_config": {"hidden_size": 1152},
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        },
        3880,
    ),
    "gemma-3-1b": (
        "Gemma3ForCausalLM",
        {
            **sizes(1152, 6912, 26, 4, 1, 262144, 32768),
            **GELU,
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 256,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
        1000,
    ),
    "gpt-oss-20b": (
        "GptOssForCausalLM",
        {
            **sizes(2880, 2880, 24, 64, 8, 201088, 131072),
            **SILU,
            "attention_bias": True,
            "experts_per_token": 4,
            "head_dim": 64,
            "initial_context_length": 4096,
            "num_experts_per_tok": 4,
            "num_local_experts": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "output_router_logits": False,
            "quantization_config": MXFP4,
            "rope_scaling": OSS_ROPE,
            "rope_theta": 150000,
            "router_aux_loss_coef": 0.9,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
        },
        20915,
    ),
    "Phi-4-mini": (
        "Phi3ForCausalLM",
        {
            **sizes(3072, 8192, 32, 24, 8, 200064, 131072),
            **SILU,
            "attention_bias": False,
            "embd_pdrop": 0.0,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "mlp_bias": False,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "resid_pdrop": 0.0,
            "rope_scaling": LONG,
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
        },
        3836,
    ),
    "Qwen3.6-27B": (
        "Qwen3_5ForConditionalGeneration",
        {
            "image_token_id": 248056,
            "vision_config": {"depth": 27},
            "tie_word_embeddings": False,
            "text_config": {
                **sizes(5120, 17408, 64, 24, 4, 248320, 262144),
                **SILU,
                "attention_bias": False,
                "head_dim": 256,
                "attn_output_gate": True,
                "full_attention_interval": 4,
                "mamba_ssm_dtype": "float32",
                "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
                "mlp_only_layers": [],
                "linear_conv_kernel_dim": 4,
                "linear_key_head_dim": 128,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 48,
                "linear_value_head_dim": 128,
                "mtp_num_hidden_layers": 1,
                "mtp_use_dedicated_embeddings": False,
                "rope_parameters": {
                    "mrope_interleaved": True,
                    "mrope_section": [11, 11, 10],
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 10000000,
                    "rope_type": "default",
                },
            },
        },
        26896,
    ),
    "all-MiniLM-L6": (
        "BertModel",
        {
            **sizes(384, 1536, 6, 12, 12, 30522, 512),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "type_vocab_size": 2,
            "position_embedding_type": "absolute",
            "gradient_checkpointing": False,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "classifier_dropout": None,
        },
        22.6,
    ),
}


def planned(name: str, **more: object) -> Plan:
    architecture, own, _ = PUBLISHED[name]
    config = Config({**GENERAL, "architectures": [architecture], **own, **more}, "config.json", architecture)
    plan = FAMILIES[architecture].plan(inner(config), Given(tensors=["lm_head.weight"]))
    config.check_all_read()
    return plan


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_understood(name: str) -> None:
    millions = sum(prod(w.shape) for w in planned(name).weights.values()) / 1e6
    assert millions == pytest.approx(PUBLISHED[name][2], rel=0.01)


def test_gemma_3_27b_and_gemma_2_27b_scale_by_their_width() -> None:
    # Their configs say so; GGUF files leave it to the number of layers.
    own = {"num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}
    config = Config({**own, "intermediate_size": 21504, "sliding_window": 1024}, "m.gguf", "gemma3")
    plan = FAMILIES["gemma3"].plan(config, Given())
    assert {op.scale for op in plan.ops if isinstance(op, ops.Attend)} == {168**-0.5}


def test_gpt_oss_alternates_window_and_full_and_qwen35_has_16_full_layers() -> None:
    assert [s.window for s in planned("gpt-oss-20b").states.values()] == [128, 0] * 12
    assert sum(s.kind == "paged" for s in planned("Qwen3.6-27B").states.values()) == 16


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Llama-3.1-8B", {"quantization_config": {"quant_method": "gptq"}}),
        ("gpt-oss-20b", {"swiglu_alpha": 1.5}),
        ("gpt-oss-20b", {"quantization_config": {"quant_method": "fp8"}}),
        ("Qwen2.5-7B", {"use_mrope": True}),
        ("Phi-4-mini", {"lm_head_bias": True}),
        ("all-MiniLM-L6", {"hidden_act": "relu"}),
        ("gemma-2-9b", {"sliding_window_size": 1024}),
    ],
)
def test_variants_that_are_not_implemented_are_refused(name: str, more: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        planned(name, **more)
