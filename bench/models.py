"""Model files of real shapes and random weights, for measuring: `python bench/models.py qwen3-0.6b Q4_K_M`.

A file is written once, into bench/out/, in seconds: a pool of random blocks is tiled over each matrix,
since time depends on shapes and formats and not on the weights.  Answers of such a model are noise.  Formats
are those of `llama-quantize`, with its mixes, and llama.cpp loads the files too (bench/rivals.py).
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gguf import GGMLQuantizationType, GGUFWriter, TokenType

from bench.measure import say
from kvasir.quant import decode
from kvasir.quant.formats import FORMATS, Format

OUT = Path(__file__).resolve().parent / "out"
SPREAD = 0.02  # standard deviation of the weights, about that of a trained model
POOL_BLOCKS = 8191  # a prime, so that tiled rows do not repeat after a few
QUIET = 0.01  # of the usual size are weights that are to matter little
MIXES = {"Q3_K_M": "Q3_K", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}  # a mix and the format of most of its matrices
SPECIAL = 256  # tokens that are no words


@dataclass(frozen=True)
class Experts:
    """The experts of a layer: how many, how many a token uses, and their inner width."""

    n: int
    k: int
    ffn: int


@dataclass(frozen=True)
class Recurrent:
    """Gated DeltaNet layers: heads, their width, taps of the convolution; every `full`-th layer attends."""

    heads: int = 16
    d: int = 128
    taps: int = 4
    full: int = 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, published or made up.  `arch`: its name in GGUF; `pre`: how texts are cut."""

    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    d: int
    ffn: int
    vocab: int
    context: int
    theta: float
    pre: str = "qwen2"
    merges: int = 0  # 0: one for each word
    experts: Experts | None = None
    recurrent: Recurrent | None = None
    quiet_from: int | None = None  # from this layer on, layers add next to nothing

    def attends(self, layer: int) -> bool:
        return self.recurrent is None or (layer + 1) % self.recurrent.full == 0


SHAPES = {
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6),
    "llama3.2-1b": Shape(
        "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5, pre="llama-bpe", merges=280147
    ),
    # Qwen3-30B-A3B in small: 2.9 B parameters, 0.65 B of them used for a token.
    "qwen3moe-3b": Shape(
        "qwen3moe", 26, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6, experts=Experts(64, 8, 512)
    ),
    "qwen3.5-0.8b": Shape(
        "qwen35", 24, 1024, 8, 2, 256, 3584, 248320, 262144, 1e7, pre="qwen35", recurrent=Recurrent()
    ),
    # A model and its draft: the first layers of it, which say nearly all that there is to say.
    "pair": Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 32000, 40960, 1e6, quiet_from=2),
    "pair-draft": Shape("qwen3", 2, 1024, 16, 8, 128, 3072, 32000, 40960, 1e6),
    "tiny": Shape("qwen3", 2, 256, 4, 2, 64, 512, 768, 2048, 1e4),
}


def model_file(name: str, form: str) -> Path:
    """The GGUF file of shape `name` with its matrices in format `form`; written if it is not there."""
    path = OUT / f"{name}.{form}.gguf"
    if not path.exists():
        say(f"writing {path.name} ...")
        OUT.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        write(part, name, SHAPES[name], form)
        os.replace(part, path)
    return path


def write(path: Path, name: str, shape: Shape, form: str) -> None:
    """The file."""
    writer = GGUFWriter(path, shape.arch)
    metadata(writer, name, shape)
    vocabulary(writer, shape)
    found = {t: (size, format_of(t, size, shape, form)) for t, size in tensors(shape)}
    for tensor, (size, kind) in found.items():
        ggml = GGMLQuantizationType(kind.ggml_type)
        # The writer wants a quantized tensor's shape in bytes, and gives the file the one in weights.
        raw_shape = (*size[:-1], kind.row_bytes(size[-1])) if kind.block > 1 else size
        dtype = np.dtype(np.uint8 if kind.block > 1 else np.float32)
        writer.add_tensor_info(tensor, raw_shape, dtype, form_bytes(size, kind), raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, (size, kind) in found.items():
        writer.write_tensor_data(content(tensor, size, kind, is_quiet(tensor, shape)))
    writer.close()


def is_quiet(tensor: str, shape: Shape) -> bool:
    """Whether it is what a layer adds with, in a layer that is to add next to nothing."""
    match = re.fullmatch(r"blk\.(\d+)\.(attn_output|ffn_down)\.weight", tensor)
    return bool(match and shape.quiet_from is not None and int(match[1]) >= shape.quiet_from)


def content(tensor: str, size: tuple[int, ...], kind: Format, quiet: bool = False) -> npt.NDArray[Any]:
    """Random weights; ones for what only scales; a decay that is negative, as it has to be."""
    if tensor.endswith("ssm_a"):
        return np.full(size, -1, np.float32)
    if len(size) == 1:
        return np.ones(size, np.float32)
    raw = random_blocks(kind)
    if quiet:
        blocks = raw.copy().view(getattr(decode, kind.name))
        for scale in {"d", "m"} & set(blocks.dtype.names or ()):
            blocks[scale] *= QUIET
        raw = blocks.view(np.uint8)
    return np.resize(raw, form_bytes(size, kind))


def format_of(tensor: str, size: tuple[int, ...], shape: Shape, form: str) -> Format:
    """What `llama-quantize` makes of a tensor when asked for `form`."""
    if len(size) == 1 or re.search(r"ffn_gate_inp|ssm_conv1d", tensor):
        return FORMATS["F32"]
    base = MIXES.get(form, form)
    if tensor == "token_embd.weight" and base not in ("F32", "F16", "BF16", "Q8_0"):
        base = "Q6_K"  # because it is the output too
    elif form == "Q3_K_M" and re.search(r"attn_v|attn_qkv|attn_output|ffn_down", tensor):
        base = "Q4_K"
    elif form in ("Q4_K_M", "Q5_K_M") and re.search(r"attn_v\.|attn_qkv|ffn_down", tensor):
        layer, n = int(tensor.split(".")[1]), shape.layers
        base = "Q6_K" if layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2 else base
    return FORMATS[base]


def form_bytes(size: tuple[int, ...], form: Format) -> int:
    """Bytes of a tensor of this shape."""
    return int(np.prod(size[:-1], dtype=np.int64)) * form.row_bytes(size[-1])


def metadata(writer: GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_name(f"{name}, random weights")
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.d)
    writer.add_value_length(shape.d)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(shape.theta)
    if e := shape.experts:
        writer.add_expert_count(e.n)
        writer.add_expert_used_count(e.k)
        writer.add_expert_feed_forward_length(e.ffn)
    if r := shape.recurrent:
        writer.add_rope_dimension_count(shape.d // 4)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        writer.add_ssm_conv_kernel(r.taps)
        writer.add_ssm_state_size(r.d)
        writer.add_ssm_group_count(r.heads)
        writer.add_ssm_time_step_rank(r.heads)
        writer.add_ssm_inner_size(r.heads * r.d)
        writer.add_full_attention_interval(r.full)


def vocabulary(writer: GGUFWriter, shape: Shape) -> None:
    """A byte-level vocabulary of the real size: 256 letters, invented words with merges, specials."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(c) for c in plain + list(range(256, 512 - len(plain)))]
    n_words = shape.vocab - len(letters) - SPECIAL
    words, merges = invented(n_words, shape.merges or n_words)
    tokens = [*letters, *words, *(f"<|special {i}|>" for i in range(SPECIAL))]
    kinds = [TokenType.NORMAL] * (len(tokens) - SPECIAL) + [TokenType.CONTROL] * SPECIAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)


@cache
def invented(n_words: int, n_merges: int) -> tuple[list[str], list[str]]:
    """Words in the order of their merges, and at most `n_merges`: a way to each word, then second ways."""
    rng = random.Random(0)
    parts = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    n_letters, known, merges = len(parts), set(parts), dict[str, None]()
    while len(merges) < n_words:
        left, right = (parts[int(len(parts) * rng.random() ** 3)] for _ in "lr")
        word = left + right
        if word not in known and len(word) <= 12 and "Ġ" not in word[1:]:
            known.add(word)
            parts.append(word)
            merges[f"{left} {right}"] = None
    words = parts[n_letters:]
    for word in words:
        for cut in range(1, len(word)):
            if len(merges) < n_merges and word[:cut] in known and word[cut:] in known:
                merges[f"{word[:cut]} {word[cut:]}"] = None
    return words, list(merges)


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape [out, in] of every tensor, in the order of the file."""
    yield "token_embd.weight", (shape.vocab, shape.width)
    yield "output_norm.weight", (shape.width,)
    if shape.arch == "llama":
        yield "rope_freqs.weight", (shape.d // 2,)
    for i in range(shape.layers):
        layer = attention(shape) if shape.attends(i) else delta_net(shape)
        for name, size in {**layer, **feed_forward(shape)}.items():
            bare = name == "ssm_a" or name.endswith(".bias")
            yield f"blk.{i}.{name}" if bare else f"blk.{i}.{name}.weight", size


Sizes = dict[str, tuple[int, ...]]


def attention(shape: Shape) -> Sizes:
    q, kv = shape.heads * shape.d, shape.kv_heads * shape.d
    gated = 2 if shape.recurrent else 1  # the gate's rows lie among those of q
    found: Sizes = {
        "attn_norm": (shape.width,), "attn_q": (gated * q, shape.width), "attn_k": (kv, shape.width),
        "attn_v": (kv, shape.width), "attn_output": (shape.width, q),
    }  # fmt: skip
    if shape.arch != "llama":
        found |= {"attn_q_norm": (shape.d,), "attn_k_norm": (shape.d,)}
    return found


def delta_net(shape: Shape) -> Sizes:
    r = shape.recurrent
    assert r
    inner = r.heads * r.d
    return {
        "attn_norm": (shape.width,), "attn_qkv": (3 * inner, shape.width), "attn_gate": (inner, shape.width),
        "ssm_conv1d": (3 * inner, r.taps), "ssm_dt.bias": (r.heads,), "ssm_a": (r.heads,),
        "ssm_beta": (r.heads, shape.width), "ssm_alpha": (r.heads, shape.width), "ssm_norm": (r.d,),
        "ssm_out": (shape.width, inner),
    }  # fmt: skip


def feed_forward(shape: Shape) -> Sizes:
    before = "post_attention_norm" if shape.recurrent else "ffn_norm"
    if e := shape.experts:
        return {
            before: (shape.width,), "ffn_gate_inp": (e.n, shape.width),
            "ffn_gate_exps": (e.n, e.ffn, shape.width), "ffn_up_exps": (e.n, e.ffn, shape.width),
            "ffn_down_exps": (e.n, shape.width, e.ffn),
        }  # fmt: skip
    return {
        before: (shape.width,), "ffn_gate": (shape.ffn, shape.width), "ffn_up": (shape.ffn, shape.width),
        "ffn_down": (shape.width, shape.ffn),
    }  # fmt: skip


# What the scale `d` of a block must be for weights of spread 1, by format; `m` in the same unit.
SCALES = {
    "Q4_0": (1 / 4.6, 0.0), "Q4_1": (1 / 4.6, -1.63), "Q5_0": (1 / 9.2, 0.0), "Q5_1": (1 / 9.2, -1.68),
    "Q8_0": (1 / 74, 0.0), "Q2_K": (1 / 14, 1 / 9), "Q3_K": (1 / 43, 0.0), "Q4_K": (1 / 265, 1 / 35),
    "Q5_K": (1 / 555, 1 / 34), "Q6_K": (1 / 1360, 0.0), "IQ4_NL": (1 / 70, 0.0), "IQ4_XS": (1 / 1290, 0.0),
}  # fmt: skip


@cache
def random_blocks(form: Format) -> npt.NDArray[np.uint8]:
    """Bytes of random blocks, one after another, whose weights have about the spread of a model's."""
    rng = np.random.default_rng(0)
    if form.block == 1:
        values = rng.standard_normal(POOL_BLOCKS * 16, np.float32) * SPREAD
        dtypes: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
        if form.name == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(dtypes[form.name]).view(np.uint8)
    raw = rng.integers(0, 256, POOL_BLOCKS * form.block_bytes, dtype=np.uint8)
    blocks = raw.view(getattr(decode, form.name))
    if form.name == "MXFP4":
        blocks["e"] = rng.integers(119, 121, POOL_BLOCKS)
        return raw
    d, m = SCALES[form.name]
    blocks["d"] = rng.uniform(0.7, 1.3, POOL_BLOCKS) * d * SPREAD
    if "m" in (blocks.dtype.names or ()):
        blocks["m"] = m * SPREAD
    return raw


if __name__ == "__main__":
    names, forms = sys.argv[1:2] or list(SHAPES)[:1], sys.argv[2:] or ["Q4_0"]
    for wanted in names:
        for each in forms:
            print(model_file(wanted, each))
