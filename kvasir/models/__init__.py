"""The architectures Kvasir runs, and `build`: from a checkpoint to its plan and weights."""

from __future__ import annotations

from pathlib import Path

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.files import read_json
from kvasir.checkpoint.open import Checkpoint
from kvasir.checkpoint.recipes import Weights, bare, resolve
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError, ModelError
from kvasir.models.bert import BERT
from kvasir.models.blocks import Family
from kvasir.models.gemma import GEMMA2, GEMMA3
from kvasir.models.gpt_oss import GPT_OSS
from kvasir.models.llama import LLAMA
from kvasir.models.mixtral import MIXTRAL
from kvasir.models.phi3 import PHI3
from kvasir.models.qwen import QWEN2, QWEN3, QWEN3_MOE
from kvasir.models.qwen35 import QWEN35
from kvasir.models.rope import Given
from kvasir.plan import Plan
from kvasir.plan.ops import Pooling

# By `architectures` of config.json, and by `general.architecture` of a GGUF file.
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA, "MistralForCausalLM": LLAMA, "llama": LLAMA,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen2ForCausalLM": QWEN2, "qwen2": QWEN2,
    "Qwen3ForCausalLM": QWEN3, "qwen3": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE, "qwen3moe": QWEN3_MOE,
    "Qwen3_5ForCausalLM": QWEN35, "Qwen3_5ForConditionalGeneration": QWEN35, "qwen35": QWEN35,
    "Gemma2ForCausalLM": GEMMA2, "gemma2": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3, "Gemma3ForConditionalGeneration": GEMMA3, "gemma3": GEMMA3,
    "GptOssForCausalLM": GPT_OSS, "gpt-oss": GPT_OSS,
    "Phi3ForCausalLM": PHI3, "phi3": PHI3,
    "BertModel": BERT, "BertForMaskedLM": BERT, "bert": BERT,
}  # fmt: skip

GGUF_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


def build(checkpoint: Checkpoint, context: int | None = None) -> tuple[Plan, Weights]:
    """The plan of a checkpoint's model, and its weights in the plan's form (made one by one, when asked for).

    `context`: positions that will be used at most, None for as many as the model was made for.  Models whose
    rotary frequencies depend on the length (LongRoPE) choose by it, and `plan.context` never exceeds it.
    Raises ModelError for an architecture that is not known; CheckpointError when the config has keys or the
    file has tensors that nobody understood, or lacks some, or they do not fit together.
    """
    outer = checkpoint.config
    family = FAMILIES.get(outer.architecture)
    if family is None:
        raise ModelError(f"{outer.where}: the architecture {outer.architecture!r} is not known",
                         hint=f"known: {', '.join(FAMILIES)}")  # fmt: skip
    gguf = checkpoint.kind == "gguf"
    tensors = checkpoint.tensors if gguf else bare(checkpoint.tensors)
    factors = {n: divisors(tensors[f"{n}.weight"]) for n in GGUF_FACTORS if f"{n}.weight" in tensors}
    given = Given(context or 0, factors, tensors, None if gguf else pooling(checkpoint.path))
    config = inner(outer)
    plan = family.plan(config, given)
    recipes = family.gguf(config) if gguf else family.safetensors(config)
    outer.check_all_read()
    read = frozenset(f"{n}.weight" for n in factors)
    return plan, resolve(
        plan, tensors, recipes, "blk.{}." if gguf else family.layers, family.set_aside(config), read
    )


def inner(c: Config) -> Config:
    """The text model's part of a config that also describes images or sound."""
    text = c.table("text_config")
    if text is None:
        return c
    c.ignore("vision_config", "audio_config", "tie_word_embeddings", "mm_tokens_per_image", "boi_token_index",
             "eoi_token_index", "image_token_index", "video_token_index", "language_model_only")  # fmt: skip
    return text


def pooling(path: Path) -> Pooling | None:
    """How rows become one, by the folder's sentence-transformers module, or None where nothing says so.

    Raises CheckpointError for another way.
    """
    file = path / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    told = {k.removeprefix("pooling_mode_"): v for k, v in read_json(file).items() if v is True}
    ways: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}
    chosen = [k for k in told if k != "include_prompt"]
    if len(chosen) != 1 or chosen[0] not in ways:
        raise CheckpointError(f"1_Pooling: pooling by {' and '.join(chosen) or 'nothing'} is not implemented",
                              hint=f"known: {', '.join(ways)}")  # fmt: skip
    return ways[chosen[0]]


def divisors(t: Tensor) -> tuple[float, ...]:
    if len(t.shape) != 1 or t.shape[0] > 4096:
        raise CheckpointError(f"{t.name} is {list(t.shape)}, at most 4096 divisors are wanted")
    return tuple(map(float, t.floats()))
