"""The architectures Kvasir runs, and `build`: from a checkpoint to its plan and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.files import read_json
from kvasir.checkpoint.open import Checkpoint
from kvasir.checkpoint.recipes import Weights, bare, resolve
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError, ModelError
from kvasir.models.blocks import Family
from kvasir.models.rope import Given
from kvasir.plan import Plan
from kvasir.plan.ops import Pooling

# By `architectures` of config.json and `general.architecture` of a GGUF file: where the family is written.
_PLACES = {
    "LlamaForCausalLM": "llama.LLAMA", "MistralForCausalLM": "llama.LLAMA", "llama": "llama.LLAMA",
    "MixtralForCausalLM": "mixtral.MIXTRAL",
    "Qwen2ForCausalLM": "qwen.QWEN2", "qwen2": "qwen.QWEN2",
    "Qwen3ForCausalLM": "qwen.QWEN3", "qwen3": "qwen.QWEN3",
    "Qwen3MoeForCausalLM": "qwen.QWEN3_MOE", "qwen3moe": "qwen.QWEN3_MOE",
    "Qwen3_5ForCausalLM": "qwen35.QWEN35", "Qwen3_5ForConditionalGeneration": "qwen35.QWEN35",
    "qwen35": "qwen35.QWEN35",
    "Gemma2ForCausalLM": "gemma.GEMMA2", "gemma2": "gemma.GEMMA2",
    "Gemma3ForCausalLM": "gemma.GEMMA3", "Gemma3ForConditionalGeneration": "gemma.GEMMA3",
    "gemma3": "gemma.GEMMA3",
    "GptOssForCausalLM": "gpt_oss.GPT_OSS", "gpt-oss": "gpt_oss.GPT_OSS",
    "Phi3ForCausalLM": "phi3.PHI3", "phi3": "phi3.PHI3",
    "BertModel": "bert.BERT", "BertForMaskedLM": "bert.BERT", "bert": "bert.BERT",
}  # fmt: skip


class _Families(Mapping[str, Family]):
    """The families by architecture; a family's file is loaded when it is first asked for."""

    def __getitem__(self, architecture: str) -> Family:
        file, _, name = _PLACES[architecture].partition(".")
        family: Family = getattr(import_module(f"kvasir.models.{file}"), name)
        return family

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


FAMILIES = _Families()

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
