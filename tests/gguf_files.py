"""Writes the tiny models of tests/golden as GGUF, with what llama.cpp's converter does to each family.

Names come from the `gguf` package's own table, so nothing here shares code with what it tests.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from kvasir.checkpoint.open import open_checkpoint
from tests.parity.cases import CASES, GOLDEN

Array = np.ndarray
Named = Iterator[tuple[str, Array]]
LAYER = re.compile(r"layers?\.(\d+)\.")


def write_gguf(
    name: str, path: Path, kind: gguf.GGMLQuantizationType | None = None, decoded: bool = False
) -> Path:
    """The golden model `name` at `path`; matrices in the format `kind` if given and if their width allows.

    `decoded`: the same values written as F32.
    """
    case, c = CASES[name], json.loads((GOLDEN / name / "config.json").read_text())
    writer = gguf.GGUFWriter(path, case.gguf)
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == case.gguf)
    names = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
    parameters(writer, case.gguf, c)
    for key, x in converted(name, case.gguf, c):
        own = names.get_name(key, try_suffixes=(".weight", ".bias")) or key
        if x.dtype == np.uint8:
            writer.add_tensor(own, x, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        elif kind and x.ndim > 1 and x.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            x = gguf.quants.quantize(x, kind)
            if decoded:
                writer.add_tensor(own, gguf.quants.dequantize(x, kind))
            else:
                writer.add_tensor(own, x, raw_dtype=kind)
        else:
            writer.add_tensor(own, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def parameters(w: gguf.GGUFWriter, arch: str, c: dict[str, Any]) -> None:
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_file_type(0)
    if arch == "bert":
        w.add_layer_norm_eps(c["layer_norm_eps"])
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.MEAN)
        w.add_token_type_count(c["type_vocab_size"])
        return
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    d = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    if "head_dim" in c:
        w.add_key_length(d)
        w.add_value_length(d)
    rotary(w, arch, c, d)
    experts = c.get("num_local_experts") or c.get("num_experts")
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(c["num_experts_per_tok"])
        if arch != "llama":
            w.add_expert_feed_forward_length(c.get("moe_intermediate_size") or c["intermediate_size"])
    if arch in ("gemma2", "gemma3", "gpt-oss", "phi3"):
        w.add_sliding_window(c.get("sliding_window") or 0)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        w.add_final_logit_softcapping(c["final_logit_softcapping"])
    if arch == "qwen35":
        w.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
        w.add_ssm_state_size(c["linear_key_head_dim"])
        w.add_ssm_group_count(c["linear_num_key_heads"])
        w.add_ssm_time_step_rank(c["linear_num_value_heads"])
        w.add_ssm_inner_size(c["linear_value_head_dim"] * c["linear_num_value_heads"])
        w.add_full_attention_interval(4)
        w.add_rope_dimension_sections([11, 11, 10, 0])


def rotary(w: gguf.GGUFWriter, arch: str, c: dict[str, Any], d: int) -> None:
    t = c["rope_parameters"]
    t = t.get("full_attention", t)
    w.add_rope_freq_base(t["rope_theta"])
    part = t.get("partial_rotary_factor", 1.0)
    if arch in ("llama", "phi3", "qwen35"):
        w.add_rope_dimension_count(int(d * part))
    original = t.get("original_max_position_embeddings")
    if arch == "phi3":
        w.add_rope_scaling_orig_ctx_len(original)
        stretch = c["max_position_embeddings"] / original
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
    elif t["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(t["factor"])
        w.add_rope_scaling_orig_ctx_len(original)
    elif t["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(t["factor"])


# -- tensors --------------------------------------------------------------------------------------


def converted(name: str, arch: str, c: dict[str, Any]) -> Named:
    """Hugging Face's tensors under its names, with what the converter does to their values."""
    checkpoint = open_checkpoint(GOLDEN / name)
    tensors = {k: t.floats() for k, t in checkpoint.tensors.items()}
    tensors = dict(merged(tensors))
    changes = {"llama": llama, "gemma2": gemma, "gemma3": gemma, "gpt-oss": gpt_oss, "qwen35": qwen35}
    change = changes.get(arch)
    for key, x in tensors.items():
        if key.startswith("pooler"):
            continue
        yield from change(key, x, c) if change else [(key, x)]
    if arch == "gpt-oss":
        yield from mxfp4(tensors)
    yield from factors(arch, c)


def merged(tensors: dict[str, Array]) -> Named:
    """Experts that are a tensor each, under one name."""
    groups: dict[str, list[Array]] = {}
    for key, x in tensors.items():
        one = re.sub(r"experts\.\d+\.", "experts.", key)
        if one == key:
            yield key, x
        else:
            groups.setdefault(one, []).append(x)
    for key, xs in groups.items():
        old = re.sub(r"model\.layers\.(\d+)\.block_sparse_moe\.", r"layers.\1.feed_forward.", key)
        yield old, np.stack(xs)


def llama(key: str, x: Array, c: dict[str, Any]) -> Named:
    """Rows of q and k from halves to interleaved pairs."""
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    for part, n in heads.items():
        if part in key:
            x = x.reshape(n, 2, x.shape[0] // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    yield key, x


def gemma(key: str, x: Array, c: dict[str, Any]) -> Named:
    yield key, x + np.float32(1) if key.endswith("norm.weight") else x


def gpt_oss(key: str, x: Array, c: dict[str, Any]) -> Named:
    if "_blocks" in key or "_scales" in key:
        return
    if key.endswith("down_proj"):
        yield f"{key}.weight", x.swapaxes(1, 2)
    elif key.endswith("down_proj_bias"):
        yield key.replace("_bias", ".bias"), x
    elif "gate_up_proj" in key:
        x = x if "bias" in key else x.swapaxes(1, 2)
        for i, half in enumerate(("gate_proj", "up_proj")):
            suffix = ".bias" if "bias" in key else ".weight"
            yield key.removesuffix("_bias").replace("gate_up_proj", half) + suffix, x[:, i::2]
    else:
        yield (f"{key}.weight" if key.endswith("sinks") else key), x


def mxfp4(tensors: dict[str, Array]) -> Named:
    """Blocks and scales as rows of (scale, 16 bytes): byte i with weights i and i + 16."""
    for key, blocks in tensors.items():
        if not key.endswith("_blocks"):
            continue
        blocks, scales = blocks.astype(np.uint8), tensors[key.replace("_blocks", "_scales")].astype(np.uint8)
        codes = np.empty((*blocks.shape[:-1], 32), np.uint8)
        codes[..., ::2], codes[..., 1::2] = blocks & 15, blocks >> 4
        rows = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << 4], -1)
        rows = rows.reshape(*rows.shape[:2], -1)
        own = key.removesuffix("_blocks")
        if own.endswith("down_proj"):
            yield f"{own}.weight", rows
        else:
            yield own.replace("gate_up_proj", "gate_proj.weight"), np.ascontiguousarray(rows[:, ::2])
            yield own.replace("gate_up_proj", "up_proj.weight"), np.ascontiguousarray(rows[:, 1::2])


def qwen35(key: str, x: Array, c: dict[str, Any]) -> Named:
    """Norms with one added, -exp(A_log), and value heads from grouped by key head to tiled."""
    k_heads, v_heads = c["linear_num_key_heads"], c["linear_num_value_heads"]
    keys, d = 2 * k_heads * c["linear_key_head_dim"], c["linear_value_head_dim"]

    def tile(t: Array, d: int) -> Array:
        return t.reshape(k_heads, v_heads // k_heads, d, *t.shape[1:]).swapaxes(0, 1).reshape(t.shape)

    if key.endswith("norm.weight") and "linear_attn" not in key:
        x = x + np.float32(1)
    elif "A_log" in key:
        x = tile(-np.exp(x), 1)
    elif "dt_bias" in key:
        key, x = key.replace(".dt_bias", ".dt_proj.bias"), tile(x, 1)
    elif "in_proj_a" in key or "in_proj_b" in key:
        x = tile(x, 1)
    elif "in_proj_z" in key:
        x = tile(x, d)
    elif "in_proj_qkv" in key or "conv1d" in key:
        x = x.reshape(x.shape[0], x.shape[-1])
        x = np.concatenate([x[:keys], tile(x[keys:], d)])
    elif "out_proj" in key:
        x = tile(x.T, d).T
    yield key, x


def factors(arch: str, c: dict[str, Any]) -> Named:
    """Divisors of rotary frequencies that GGUF keeps as tensors."""
    t = c.get("rope_parameters", {})
    if arch == "phi3":
        yield "rope_factors_long.weight", np.array(t["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(t["short_factor"], np.float32)
    if t.get("rope_type") == "llama3":
        d = c["head_dim"]
        waves = 2 * np.pi * t["rope_theta"] ** (np.arange(0, d, 2) / d)
        old, low, high = t["original_max_position_embeddings"], t["low_freq_factor"], t["high_freq_factor"]
        smooth = (old / waves - low) / (high - low)
        between = 1 / ((1 - smooth) / t["factor"] + smooth)
        by = np.where(waves < old / high, 1, np.where(waves > old / low, t["factor"], between))
        yield "rope_freqs.weight", by.astype(np.float32)
