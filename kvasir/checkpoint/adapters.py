"""LoRA adapters as they lie on disk: PEFT's folders and llama.cpp's GGUF files.

Either gives, for each matrix of the base model that it touches, two small ones: A [r, D] and B [O, r], and a
scale; the product of that matrix becomes x W^T + scale (x A^T) B^T.  What is more than that (DoRA, biases,
trained embeddings, whole modules) is refused by name: an adapter that ran without it would answer wrongly.
Sources: arXiv 2106.09685; arXiv 2312.03732 (the scale of rsLoRA); the files that PEFT and
convert_lora_to_gguf.py write.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from kvasir.checkpoint.files import inside, map_file, read_json, regular_size
from kvasir.checkpoint.gguf import MAGIC, read_gguf
from kvasir.checkpoint.safetensors import read_safetensors
from kvasir.checkpoint.tensor import LowRank, Tensor
from kvasir.errors import CheckpointError, ModelError
from kvasir.quant.formats import BF16, F16, F32
from kvasir.records import dataclass

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
WANTED = f"an adapter is a folder with {CONFIG} and {WEIGHTS}, or a GGUF file"

MAX_RANK = 1 << 14
PEFT_PREFIX = "base_model.model."
PEFT_BASE = ".base_layer.weight"  # PEFT saves an adapted lm_head's own weight too; it is the model's
PEFT_PART = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])(\.[\w-]+)?\.weight$")
GGUF_PART = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[ab])$")

# Ways to begin training that leave the base model as it is.  The others (PiSSA, OLoRA, CorDA, LoftQ, ...)
# change it, and their adapters fit only the changed one.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")

# Keys of adapter_config.json that cannot change what is computed from the tensors that are there.
HARMLESS = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "lora_dropout", "fan_in_fan_out", "runtime_config", "qalora_group_size"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core"),
        *("unsloth_fixed", "unsloth_version", "base_model_class", "parent_library"),
    }
)
READ = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"})
# What the keys stand for that mean more than A and B, as long as they are set.
REFUSED = {
    "use_dora": "DoRA (trained magnitudes)",
    "use_qalora": "QALoRA (pooled inputs)",
    "lora_bias": "biases in its matrices B",
    "modules_to_save": "whole trained modules",
    "trainable_token_indices": "trained embeddings",
    "target_parameters": "adapted parameters that are no module (experts)",
    "layer_replication": "a model with repeated layers",
    "alora_invocation_tokens": "aLoRA (on only after certain tokens)",
    "invocation_string": "aLoRA (on only after certain words)",
}
# A pattern is matched as a regular expression, so it may not be one that takes forever.
SIMPLE_PATTERN = re.compile(r"\^?(?:[\w\-|]|\\?\.|\\d|\.\*|\[[\w\-]+\])+\+?\$?")
MOST_REPEATS = 2


@dataclass(frozen=True)
class AdapterFile:
    """An adapter on disk.  `targets`: by the name of the matrix in models of the same kind, as
    "blk.0.attn_q.weight" or "model.layers.0.self_attn.q_proj.weight".  `architecture`: GGUF's name, "" for
    PEFT.
    """

    path: Path
    kind: Literal["gguf", "safetensors"]
    architecture: str
    targets: Mapping[str, LowRank]

    @property
    def n_bytes(self) -> int:
        return sum(low.n_bytes for low in self.targets.values())

    @property
    def rank(self) -> int:
        """The greatest of its matrices."""
        return max(low.a.shape[0] for low in self.targets.values())

    def digest(self) -> str:
        """SHA-256 of everything that it computes with: what tells it from any other adapter."""
        total = hashlib.sha256()
        for name, low in sorted(self.targets.items()):
            total.update(f"{name} {low.scale!r}".encode())
            for t in (low.a, low.b):
                total.update(f" {t.format.name} {t.shape}\n".encode())
                total.update(np.ascontiguousarray(t.raw).data)
        return total.hexdigest()


def open_adapter(path: Path | str) -> AdapterFile:
    """The adapter at `path`: a PEFT folder, its .safetensors file, or a GGUF file.

    Raises ModelError when none is there, CheckpointError for one that is damaged or does more than LoRA.
    """
    path = Path(path)
    if "\0" in str(path):
        raise ModelError("the path of the adapter has a NUL byte in it", hint="check the path")
    if path.is_dir():
        return _peft(path, inside(path, WEIGHTS))
    regular_size(path)
    if bytes(map_file(path)[:4]) == MAGIC:
        return _gguf(path)
    if path.suffix == ".safetensors":
        return _peft(path.parent, path)
    raise ModelError(f"{path}: no adapter", hint=WANTED)


# -- PEFT -----------------------------------------------------------------------------------------


def _peft(folder: Path, weights: Path) -> AdapterFile:
    if not weights.exists():
        if (folder / PICKLE).exists():
            raise CheckpointError(
                f"{PICKLE}: a pickle, which can run any code when it is read, and so Kvasir never reads one",
                hint=f"save the adapter as {WEIGHTS}: save_pretrained(..., safe_serialization=True)",
            )
        raise ModelError(f"{folder}: no {WEIGHTS} in this folder", hint=WANTED)
    if not (folder / CONFIG).exists():
        raise ModelError(f"{folder}: no {CONFIG} beside the weights", hint="it says how they are scaled")
    config = PeftConfig(read_json(inside(folder, CONFIG)))
    pairs: dict[str, dict[str, Tensor]] = {}
    bases = {}
    for name, t in read_safetensors(weights).items():
        if name.endswith(PEFT_BASE):
            bases[name.removeprefix(PEFT_PREFIX).removesuffix(PEFT_BASE)] = t
            continue
        match = PEFT_PART.match(name)
        if not match:
            raise _not_low_rank(name, weights.name)
        module = match["module"].removeprefix(PEFT_PREFIX)
        pairs.setdefault(module, {})[match["part"]] = t
    targets = {}
    for module, pair in pairs.items():
        a, b = _pair(module, pair, "lora_A", "lora_B", weights.name)
        targets[f"{module}.weight"] = LowRank(a, b, config.scale(module, a.shape[0]))
    for module, base in bases.items():
        low = targets.get(f"{module}.weight")
        if low is None or base.shape != (low.b.shape[0], low.a.shape[1]):
            raise _not_low_rank(f"{module}{PEFT_BASE}", weights.name)
    return AdapterFile(weights, "safetensors", "", _some(targets, weights))


class PeftConfig:
    """What adapter_config.json says of scales.  Raises CheckpointError for what is more than LoRA, and for
    what is not understood.
    """

    def __init__(self, values: Mapping[str, object]):
        kind = values.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{CONFIG}: peft_type is {kind!r}; only LORA is implemented")
        for key, meaning in REFUSED.items():
            if values.get(key):
                raise CheckpointError(f"{CONFIG}: {key} is set: {meaning} are not implemented",
                                      hint="merge the adapter into its base model and run that")  # fmt: skip
        if values.get("bias", "none") not in ("none", None):
            raise CheckpointError(f"{CONFIG}: bias is {values['bias']!r}: trained biases are not implemented",
                                  hint="merge the adapter into its base model and run that")  # fmt: skip
        if values.get("init_lora_weights") not in PLAIN_STARTS:
            raise CheckpointError(
                f"{CONFIG}: init_lora_weights is {values['init_lora_weights']!r}: it changes the base model",
                hint="convert it to plain LoRA: save_pretrained's path_initial_model_for_weight_conversion",
            )
        known = HARMLESS | READ | REFUSED.keys() | {"bias"}
        if unknown := sorted(
            k for k, v in values.items() if k not in known and v not in (None, False, [], {})
        ):
            raise CheckpointError(f"{CONFIG}: not understood: {', '.join(unknown[:12])}",
                                  hint="they could change what the adapter computes")  # fmt: skip
        self._rank = _number(values.get("r", 8), "r")
        self._alpha = _number(values.get("lora_alpha", 8), "lora_alpha")
        self._stabilized = _bool(values.get("use_rslora", False), "use_rslora")
        self._ranks = _patterns(values.get("rank_pattern"), "rank_pattern")
        self._alphas = _patterns(values.get("alpha_pattern"), "alpha_pattern")

    def scale(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r).  Raises CheckpointError unless the matrices have the rank told."""
        told = _matching(self._ranks, module, self._rank)
        if told != rank:
            raise CheckpointError(f"{CONFIG}: {module} has rank {told:g} there and {rank} in its matrices")
        alpha = _matching(self._alphas, module, self._alpha)
        return alpha / (math.sqrt(rank) if self._stabilized else rank)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{CONFIG}: {key} is {value!r}, a number was expected")
    return float(value)


def _bool(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise CheckpointError(f"{CONFIG}: {key} is {value!r}, true or false was expected")
    return value


def _patterns(value: object, key: str) -> dict[str, float]:
    """Numbers by the pattern of the modules that they are for."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{CONFIG}: {key} is not a table")
    for pattern in value:
        repeats = sum(pattern.count(c) for c in "*+")
        if not SIMPLE_PATTERN.fullmatch(pattern) or repeats > MOST_REPEATS or len(pattern) > 256:
            raise CheckpointError(
                f"{CONFIG}: {key} has the pattern {pattern[:80]!r}, which is more than a module's name",
                hint="name the modules one by one",
            )
    return {pattern: _number(v, f"{key}.{pattern}") for pattern, v in value.items()}


def _matching(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The first pattern that is the end of the module's name, from a dot on, says the number."""
    for pattern, value in patterns.items():
        if re.match(rf"(?:.*\.)?(?:{pattern.removeprefix('^')})$", module):
            return value
    return otherwise


# -- GGUF -----------------------------------------------------------------------------------------


def _gguf(path: Path) -> AdapterFile:
    file = read_gguf(path)
    kind, form = file.metadata.get("general.type"), file.metadata.get("adapter.type")
    if kind != "adapter":
        raise ModelError(f"{path.name}: a {kind or 'model'} and not an adapter", hint=WANTED)
    if form != "lora":
        raise CheckpointError(f"{path.name}: an adapter of type {form!r}; only lora is implemented")
    if "adapter.alora.invocation_tokens" in file.metadata or "adapter.lora.prompt_prefix" in file.metadata:
        raise CheckpointError(f"{path.name}: aLoRA and prompt prefixes are not implemented")
    alpha, architecture = (
        file.metadata.get("adapter.lora.alpha", 0.0),
        file.metadata.get("general.architecture"),
    )
    if not isinstance(alpha, float) or not math.isfinite(alpha) or not isinstance(architecture, str):
        raise CheckpointError(f"{path.name}: general.architecture or adapter.lora.alpha makes no sense")
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, t in file.tensors.items():
        match = GGUF_PART.match(name)
        if not match:
            raise _not_low_rank(name, path.name)
        pairs.setdefault(match["module"], {})[match["part"].upper()] = t
    targets = {}
    for module, pair in pairs.items():
        a, b = _pair(module, pair, "lora_a", "lora_b", path.name)
        # llama.cpp's law: a file without an alpha is scaled by one.
        targets[module] = LowRank(a, b, alpha / a.shape[0] if alpha else 1.0)
    return AdapterFile(path, "gguf", architecture, _some(targets, path))


# -- either ---------------------------------------------------------------------------------------


def _pair(module: str, pair: Mapping[str, Tensor], a: str, b: str, where: str) -> tuple[Tensor, Tensor]:
    """A [r, D] and B [O, r] of one matrix, as floats."""
    for part, name in (("A", a), ("B", b)):
        if part not in pair:
            raise CheckpointError(f"{where}: {module} has no {name}", hint="the download may be incomplete")
    shapes = pair["A"].shape, pair["B"].shape
    if any(len(s) != 2 for s in shapes) or shapes[0][0] != shapes[1][1] or not 0 < shapes[0][0] <= MAX_RANK:
        raise CheckpointError(
            f"{where}: {module} has {a} {list(shapes[0])}, {b} {list(shapes[1])} and not [r, D], [O, r]",
            hint="only matrices are adapted, no embeddings and no convolutions",
        )
    return _floats(pair["A"], where), _floats(pair["B"], where)


def _floats(t: Tensor, where: str) -> Tensor:
    """The tensor in a format that products of floats read; a quantized one decoded."""
    if t.format in (F32, F16, BF16):
        return t
    if t.format.name.startswith(("I", "U", "B", "F")) and t.format.block == 1:
        raise CheckpointError(f"{where}: {t.name} is {t.format.name}; F32, F16 or BF16 is wanted")
    raw = np.ascontiguousarray(t.floats(), np.float32).view(np.uint8).reshape(-1, 4 * t.shape[-1])
    return Tensor(t.name, F32, t.shape, raw)


def _some(targets: Mapping[str, LowRank], path: Path) -> Mapping[str, LowRank]:
    if not targets:
        raise CheckpointError(f"{path.name}: no matrix in it", hint=WANTED)
    return targets


def _not_low_rank(name: str, where: str) -> CheckpointError:
    what = "no part of a low-rank pair"
    for mark, meaning in (
        ("lora_magnitude_vector", "a trained magnitude (DoRA)"),
        ("lora_embedding", "a trained embedding"),
        ("embed_tokens", "a trained embedding"),
        ("token_embd", "a trained embedding"),
        ("modules_to_save", "a whole trained module"),
        ("bias", "a trained bias"),
        ("norm", "a trained norm"),
    ):
        if mark in name:
            what = meaning
            break
    return CheckpointError(f"{where}: {name[:200]} is {what}, which is not implemented",
                           hint="merge the adapter into its base model and run that")  # fmt: skip
