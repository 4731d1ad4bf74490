"""Model files of real shapes and random weights, for measuring: `python bench/models.py qwen3-0.6b Q4_0`.

A file is written once, into bench/out/, in seconds: a pool of random blocks is tiled over each matrix,
since time depends on shapes and formats and not on the weights.  Answers of such a model are noise.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model.  `arch`: its name in GGUF; `tied`: the output is the embedding."""

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
    tied: bool = True


SHAPES = {
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6),
    "llama3.2-1b": Shape("llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5),
    "tiny": Shape("qwen3", 2, 256, 4, 2, 64, 512, 512, 2048, 1e4),
}


def model_file(name: str, form: str) -> Path:
    """The GGUF file of shape `name` with its matrices in format `form`; written if it is not there."""
    path = OUT / f"{name}-{form}.gguf"
    if not path.exists():
        say(f"writing {path.name} ...")
        OUT.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        write(part, name, SHAPES[name], FORMATS[form])
        os.replace(part, path)
    return path


def write(path: Path, name: str, shape: Shape, form: Format) -> None:
    """The file.  Norms are ones in F32; every matrix is in `form`."""
    writer = GGUFWriter(path, shape.arch)
    metadata(writer, name, shape)
    vocabulary(writer, shape)
    matrices = tensors(shape)
    for tensor, size in matrices.items():
        kind = form if len(size) == 2 else FORMATS["F32"]
        n_bytes = form_bytes(size, kind)
        ggml = GGMLQuantizationType(kind.ggml_type)
        raw_shape = (*size[:-1], kind.row_bytes(size[-1]))
        if kind.block > 1:  # the writer wants the shape in bytes, and gives the file the one in weights
            writer.add_tensor_info(tensor, raw_shape, np.dtype(np.uint8), n_bytes, raw_dtype=ggml)
        else:
            writer.add_tensor_info(tensor, size, np.dtype(np.float32), n_bytes, raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pool = random_blocks(form, np.random.default_rng(0))
    for size in matrices.values():
        writer.write_tensor_data(
            np.resize(pool, form_bytes(size, form)) if len(size) == 2 else np.ones(size, np.float32)
        )
    writer.close()


def form_bytes(size: tuple[int, ...], form: Format) -> int:
    """Bytes of a tensor of this shape."""
    return int(np.prod(size[:-1], dtype=np.int64)) * form.row_bytes(size[-1])


def metadata(writer: GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_name(f"{name}, random weights")
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


def vocabulary(writer: GGUFWriter, shape: Shape) -> None:
    """A byte-level vocabulary: the 256 letters, one merge, and invented tokens up to the real number."""
    letters = (
        [chr(c) for c in range(33, 127)]
        + [chr(c) for c in range(161, 173)]
        + [chr(c) for c in range(174, 256)]
    )
    letters += [chr(c) for c in range(256, 256 + 256 - len(letters))]
    tokens = [*letters, "Ġt", "<|end|>"]
    tokens += [f"Ġw{i}" for i in range(shape.vocab - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(TokenType.CONTROL if t == "<|end|>" else TokenType.NORMAL) for t in tokens])
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(tokens.index("<|end|>"))


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape [out, in] of every tensor, in the order of the file."""
    q, kv = shape.heads * shape.d, shape.kv_heads * shape.d
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, shape.width)}
    for i in range(shape.layers):
        layer = {
            "attn_norm": (shape.width,), "attn_q": (q, shape.width), "attn_k": (kv, shape.width),
            "attn_v": (kv, shape.width), "attn_output": (shape.width, q), "ffn_norm": (shape.width,),
            "ffn_gate": (shape.ffn, shape.width), "ffn_up": (shape.ffn, shape.width),
            "ffn_down": (shape.width, shape.ffn),
        }  # fmt: skip
        if shape.arch == "qwen3":
            layer |= {"attn_q_norm": (shape.d,), "attn_k_norm": (shape.d,)}
        found |= {f"blk.{i}.{name}.weight": size for name, size in layer.items()}
    found["output_norm.weight"] = (shape.width,)
    if not shape.tied:
        found["output.weight"] = (shape.vocab, shape.width)
    return found


# What the scale `d` of a block must be for weights of spread 1, by format; `m` in the same unit.
SCALES = {
    "Q4_0": (1 / 4.6, 0.0), "Q4_1": (1 / 4.6, -1.63), "Q5_0": (1 / 9.2, 0.0), "Q5_1": (1 / 9.2, -1.68),
    "Q8_0": (1 / 74, 0.0), "Q2_K": (1 / 14, 1 / 9), "Q3_K": (1 / 43, 0.0), "Q4_K": (1 / 265, 1 / 35),
    "Q5_K": (1 / 555, 1 / 34), "Q6_K": (1 / 1360, 0.0), "IQ4_NL": (1 / 70, 0.0), "IQ4_XS": (1 / 1290, 0.0),
}  # fmt: skip


def random_blocks(form: Format, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Bytes of random blocks, one after another, whose weights have about the spread of a model's."""
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
