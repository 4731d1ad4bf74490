"""Writes a trained model as a Hugging Face folder and as GGUF: `python -m training.export --model mead`.

training/out/mead-hf          F32, with tokenizer and chat template
training/out/mead-f32.gguf    F32
kvasir/data/mead.gguf         matrices Q8_0, norms F32; the one that ships
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from training.chat import CONTROL_TOKENS, END, END_OF_TEXT, MARKUP_TOKENS
from training.corpus import HERE
from training.model import SHAPES, Shape
from training.tokenizer import OUT, load

DATA = HERE.parent / "kvasir" / "data"
TEMPLATE = HERE / "chat_template.jinja"
Weights = dict[str, np.ndarray]
NAMES = {"mead": "mead", "draft": "mead-draft"}
ABOUT = {
    "mead": "The built-in model of Kvasir: networks, computing and language models in short answers.",
    "draft": "The draft model for mead, for speculative decoding.",
}

GGUF_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GGUF_OUTER = {"embed_tokens": "token_embd", "norm": "output_norm"}


def read_checkpoint(path: Path) -> tuple[Shape, Weights]:
    """The shape and the float32 weights of a checkpoint of training.train."""
    saved = torch.load(path, weights_only=True)
    return Shape(**saved["shape"]), {name: weight.numpy() for name, weight in saved["model"].items()}


def gguf_name(name: str) -> str:
    """The GGUF name of a weight: layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    stem, _, end = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{GGUF_OUTER[stem]}.{end}"
    _, index, piece = stem.split(".", 2)
    return f"blk.{index}.{GGUF_LAYER[piece]}.{end}"


def hf_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of a Qwen3ForCausalLM."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32",
        "vocab_size": shape.n_vocab, "hidden_size": shape.width, "intermediate_size": shape.ffn_width,
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads, "head_dim": shape.head_width, "hidden_act": "silu",
        "rms_norm_eps": shape.eps, "rope_theta": shape.rope_theta, "rope_scaling": None,
        "max_position_embeddings": shape.n_context, "tie_word_embeddings": True, "attention_bias": False,
        "attention_dropout": 0.0, "use_sliding_window": False, "use_cache": True,
        "bos_token_id": None, "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
    }  # fmt: skip


def tokenizer_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with the special tokens and the chat template."""
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in CONTROL_TOKENS,
        }
        for text in (*CONTROL_TOKENS, *MARKUP_TOKENS)
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, "add_bos_token": False,
        "bos_token": None, "eos_token": END, "pad_token": END_OF_TEXT, "unk_token": None,
        "model_max_length": shape.n_context, "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE.read_text(encoding="utf-8"),
    }  # fmt: skip


def write_hf(folder: Path, shape: Shape, weights: Weights, tokenizer: Tokenizer) -> None:
    """The Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"model.{name}": np.ascontiguousarray(weight) for name, weight in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    config = hf_config(shape, tokenizer)
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    files = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config(shape, tokenizer),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    print(f"{folder}: {sum(w.size for w in named.values())} parameters")


def add_metadata(writer: gguf.GGUFWriter, model: str, shape: Shape) -> None:
    """Name, licence and sizes."""
    writer.add_type("model")
    writer.add_name(NAMES[model])
    writer.add_description(ABOUT[model])
    writer.add_license("Apache-2.0")
    writer.add_context_length(shape.n_context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_theta)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Tokens, their types, merges and special ids, as Qwen's GGUF files have them."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = dict.fromkeys(CONTROL_TOKENS, gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(MARKUP_TOKENS, gguf.TokenType.USER_DEFINED)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kinds.get(token, gguf.TokenType.NORMAL)) for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(ids[END_OF_TEXT])
    writer.add_eos_token_id(ids[END])
    writer.add_pad_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))


def write_gguf(
    path: Path, model: str, shape: Shape, weights: Weights, tokenizer: Tokenizer, *, q8_0: bool
) -> None:
    """One GGUF file; with `q8_0` its matrices are in Q8_0, else all is F32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen3")
    add_metadata(writer, model, shape)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if q8_0 else gguf.LlamaFileType.ALL_F32)
    if q8_0:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        if q8_0 and weight.ndim == 2:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{path}: {path.stat().st_size} bytes")


def export(model: str, checkpoint: Path, out: Path, data: Path) -> None:
    """All files of one model."""
    shape, weights = read_checkpoint(checkpoint)
    tokenizer = load()
    name = NAMES[model]
    write_hf(out / f"{name}-hf", shape, weights, tokenizer)
    write_gguf(out / f"{name}-f32.gguf", model, shape, weights, tokenizer, q8_0=False)
    write_gguf(data / f"{name}.gguf", model, shape, weights, tokenizer, q8_0=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="mead")
    parser.add_argument("--checkpoint", type=Path, help="default training/out/MODEL.pt")
    parser.add_argument("--out", type=Path, default=OUT, help="where the F32 files go")
    parser.add_argument("--data", type=Path, default=DATA, help="where the Q8_0 file goes")
    args = parser.parse_args()
    export(args.model, args.checkpoint or OUT / f"{args.model}.pt", args.out, args.data)


if __name__ == "__main__":
    main()
