"""Adapters for the tiny models of tests/golden: random ones, as PEFT and as llama.cpp's converter write them,
and models with them merged in.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.plan import ops
from kvasir.store.names import BUILT_IN
from tests.gguf_files import gemma, gpt_oss, llama, qwen35
from tests.parity.cases import CASES, GOLDEN

Array = np.ndarray
Pair = tuple[Array, Array]  # A [r, D], B [O, r]
ALPHA = 12.0


def matrices(name: str) -> dict[str, Array]:
    """The golden model's matrices that an adapter can touch, by the name of the module."""
    tensors = load_file(GOLDEN / name / "model.safetensors")
    left_alone = ("embed", "norm", "conv1d", "experts", "_blocks", "_scales")
    return {
        key.removesuffix(".weight"): x.astype(np.float32)
        for key, x in tensors.items()
        if x.ndim == 2 and key.endswith(".weight") and not any(part in key for part in left_alone)
    }


def mead(path: Path, seed: int, loud: float = 3.0) -> Path:
    """A random adapter of the built-in model, as llama.cpp writes it."""
    plan, _ = build(open_checkpoint(BUILT_IN["mead"]))
    rng, w = np.random.default_rng(seed), gguf.GGUFWriter(path, "qwen3")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", 8 * loud)
    for op in plan.ops:
        if isinstance(op, ops.Linear) and op.weight.name != "token_embd":
            o, d = op.weight.shape
            for part, x in (
                ("a", rng.standard_normal((8, d)) / d**0.5),
                ("b", rng.standard_normal((o, 8)) / 8),
            ):
                w.add_tensor(f"{op.weight.name}.weight.lora_{part}", x.astype(np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def pairs(name: str, seed: int = 0, rank: int = 4) -> dict[str, Pair]:
    """A random adapter of one rank, big enough to show, for three matrices of four."""
    made, rng = dict[str, Pair](), np.random.default_rng(zlib.crc32(f"{name} {seed}".encode()))
    for i, (module, x) in enumerate(matrices(name).items()):
        a = rng.standard_normal((rank, x.shape[1])) / x.shape[1] ** 0.5
        b = rng.standard_normal((x.shape[0], rank)) / rank**0.5
        if (i + seed) % 4:
            made[module] = a.astype(np.float32), 0.3 * b.astype(np.float32)
    return made


def merge(name: str, folder: Path, own: Mapping[str, Pair], scale: float = 0.0) -> Path:
    """The golden model with W + scale B A for W; scale: ALPHA / r if none is given."""
    shutil.copytree(GOLDEN / name, folder)
    tensors = load_file(folder / "model.safetensors")
    for module, (a, b) in own.items():
        by = scale or ALPHA / len(a)
        tensors[f"{module}.weight"] = (tensors[f"{module}.weight"] + by * (b @ a)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_peft(folder: Path, own: Mapping[str, Pair], **says: object) -> Path:
    """A folder as `save_pretrained` of PEFT leaves it."""
    folder.mkdir()
    tensors = {}
    for module, (a, b) in own.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    rank = len(next(iter(own.values()))[0]) if own else 8
    usual = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "bias": "none", "use_dora": False,
             "target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "lora_dropout": 0.05,
             "init_lora_weights": True, "task_type": "CAUSAL_LM", "use_rslora": False, "rank_pattern": {},
             "alpha_pattern": {}, "corda_config": None, "peft_version": "0.18.0"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**usual, **says}))
    return folder


def write_adapter_gguf(name: str, path: Path, own: Mapping[str, Pair], quantized: bool = False,
                       **says: object) -> Path:  # fmt: skip
    """What convert_lora_to_gguf.py makes of it: GGUF's names, rows and columns moved as the model's are."""
    case, c = CASES[name], json.loads((GOLDEN / name / "config.json").read_text())
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == case.gguf)
    names = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
    change = {"llama": llama, "gemma2": gemma, "gemma3": gemma, "gpt-oss": gpt_oss, "qwen35": qwen35}.get(
        case.gguf
    )
    w = gguf.GGUFWriter(path, str(says.get("architecture", case.gguf)))
    w.add_type(str(says.get("type", "adapter")))
    w.add_string("adapter.type", str(says.get("form", "lora")))
    if "alpha" not in says:
        w.add_float32("adapter.lora.alpha", ALPHA)
    for module, (a, b) in own.items():
        key = f"{module}.weight"
        if change and "out_proj" in key:  # whose columns are moved
            ((_, a),) = change(key, a, c)
        elif change:
            ((_, b),) = change(key, b, c)
        place = names.get_name(key, try_suffixes=(".weight",)) or key.replace(
            "block_sparse_moe", "feed_forward"
        )
        place = place if place.endswith(".weight") else f"{place}.weight"
        for part, x in (("lora_a", a), ("lora_b", b)):
            x = np.ascontiguousarray(x)
            if quantized and x.shape[-1] % 32 == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
                w.add_tensor(f"{place}.{part}", gguf.quants.quantize(x, kind), raw_dtype=kind)
            else:
                w.add_tensor(f"{place}.{part}", x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
