"""Adapters from PEFT and GGUF files: on all families the logits of merged weights; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kvasir.backends.base import BLOCK, Batch, Memory
from kvasir.backends.reference import Reference
from kvasir.checkpoint.adapters import open_adapter
from kvasir.checkpoint.open import open_checkpoint
from kvasir.errors import CheckpointError, KvasirError, ModelError, UsageError
from kvasir.models import build
from kvasir.models.adapters import fit_adapter
from kvasir.plan.passes import adapt
from tests.adapter_files import ALPHA, matrices, merge, pairs, write_adapter_gguf, write_peft
from tests.gguf_files import write_gguf
from tests.parity.cases import CASES, GOLDEN
from tests.stepping import error, golden, program, run

CLOSE = 2e-5
FLAT = [n for n in CASES if n != "bert"]
IN_GGUF = [n for n in FLAT if CASES[n].gguf]


def with_adapter(name: str, adapter: Path, base: Path | None = None) -> np.ndarray:
    """Logits of the golden tokens with an adapter on."""
    checkpoint = open_checkpoint(base or GOLDEN / name)
    plan, weights = build(checkpoint, CASES[name].context)
    p = Reference().compile(adapt(plan), weights, Memory(32, 8, "f32"))
    p.adapt(0, fit_adapter(open_adapter(adapter), checkpoint.config, plan))
    tokens, _ = golden(name)
    n = len(tokens)
    at, blocks = np.arange(n, dtype=np.int32), np.arange(-(-n // BLOCK), dtype=np.int32)[None]
    zero, ends = np.zeros(1, np.int32), np.array([0, n], np.int32)
    return p.step(Batch(tokens, at, ends, blocks, zero, at, zero))


def merged(name: str, path: Path) -> np.ndarray:
    tokens, _ = golden(name)
    return run(program(name, path=path), [tokens], [[(0, len(tokens))]])[0]


@pytest.mark.parametrize("name", FLAT)
def test_a_peft_adapter_gives_the_logits_of_merged_weights(name: str, tmp_path: Path) -> None:
    own = pairs(name)
    want = merged(name, merge(name, tmp_path / "merged", own))
    got = with_adapter(name, write_peft(tmp_path / "peft", own))
    assert error(got, want) < CLOSE < 0.01 < error(want, golden(name)[1])


@pytest.mark.parametrize("name", IN_GGUF)
def test_a_gguf_adapter_gives_the_same(name: str, tmp_path: Path) -> None:
    own = {k: v for k, v in pairs(name, 1).items() if k != "lm_head"}
    want = merged(name, merge(name, tmp_path / "merged", own))
    got = with_adapter(name, write_adapter_gguf(name, tmp_path / "a.gguf", own))
    assert error(got, want) < CLOSE < 0.01 < error(want, golden(name)[1])


@pytest.mark.parametrize("name", IN_GGUF)
def test_adapters_of_either_kind_fit_models_of_either_kind(name: str, tmp_path: Path) -> None:
    own = {k: v for k, v in pairs(name, 2).items() if k != "lm_head"}
    base = write_gguf(name, tmp_path / "base.gguf")
    peft = write_peft(tmp_path / "peft", own)
    want = merged(name, merge(name, tmp_path / "merged", own))
    assert error(with_adapter(name, peft, base), want) < 1e-4
    same = with_adapter(name, write_adapter_gguf(name, tmp_path / "a.gguf", own), base)
    assert error(same, want) < 1e-4


def test_an_adapter_of_a_tied_output_leaves_the_embedding_alone(tmp_path: Path) -> None:
    name = "qwen2"
    table = load_file(GOLDEN / name / "model.safetensors")["model.embed_tokens.weight"]
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((4, table.shape[1])), 0.1 * rng.standard_normal((len(table), 4))
    own = {"lm_head": (a.astype(np.float32), b.astype(np.float32))}
    folder = tmp_path / "untied"
    shutil.copytree(GOLDEN / name, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = (table + ALPHA / 4 * (b @ a)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    got = with_adapter(name, write_peft(tmp_path / "peft", own))
    assert error(got, merged(name, folder)) < CLOSE < 0.01 < error(got, golden(name)[1])


# -- scales ---------------------------------------------------------------------------------------


def test_scales_follow_alpha_rank_patterns_and_rslora(tmp_path: Path) -> None:
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    v, down = "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"
    own = {m: (np.ones((r, 32), np.float32), np.ones((8, r), np.float32))
           for m, r in ((q, 4), (k, 4), (v, 2), (down, 9))}  # fmt: skip
    says: dict[str, object] = {"r": 4, "rank_pattern": {"v_proj": 2, "^model.layers.1.mlp.down_proj": 9},
                               "alpha_pattern": {r"layers\.0\..*k_proj": 3, "proj_of_none": 7}}  # fmt: skip
    plain = open_adapter(write_peft(tmp_path / "plain", own, **says)).targets
    rooted = open_adapter(write_peft(tmp_path / "rs", own, use_rslora=True, **says)).targets
    for module, alpha, rank in ((q, ALPHA, 4), (k, 3, 4), (v, ALPHA, 2), (down, ALPHA, 9)):
        assert plain[f"{module}.weight"].scale == alpha / rank
        assert rooted[f"{module}.weight"].scale == alpha / sqrt(rank)


def test_a_gguf_adapter_without_alpha_is_scaled_by_one(tmp_path: Path) -> None:
    path = write_adapter_gguf("qwen3", tmp_path / "a.gguf", pairs("qwen3"), alpha=None)
    assert {low.scale for low in open_adapter(path).targets.values()} == {1.0}


def test_quantized_pairs_are_decoded(tmp_path: Path) -> None:
    own = {k: v for k, v in pairs("qwen3", rank=32).items() if "down_proj" not in k}  # 48 wide
    exact = open_adapter(write_adapter_gguf("qwen3", tmp_path / "f.gguf", own))
    rough = open_adapter(write_adapter_gguf("qwen3", tmp_path / "q.gguf", own, quantized=True))
    assert exact.targets.keys() == rough.targets.keys() and rough.rank == 32
    for name, low in exact.targets.items():
        for one, other in ((low.a, rough.targets[name].a), (low.b, rough.targets[name].b)):
            assert 0 < np.abs(one.floats() - other.floats()).max() < 0.02 * np.abs(one.floats()).max()


def test_a_digest_tells_adapters_apart_and_not_where_they_lie(tmp_path: Path) -> None:
    own = pairs("qwen3")
    one = open_adapter(write_peft(tmp_path / "one", own)).digest()
    assert open_adapter(write_peft(tmp_path / "two", own, lora_dropout=0.0)).digest() == one
    louder = open_adapter(write_peft(tmp_path / "three", own, lora_alpha=ALPHA + 1)).digest()
    a, b = own["model.layers.0.self_attn.q_proj"]
    other = own | {"model.layers.0.self_attn.q_proj": (a, b * np.float32(1.5))}
    assert len({one, louder, open_adapter(write_peft(tmp_path / "four", other)).digest()}) == 3


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "whole trained modules"),
        ({"trainable_token_indices": [5]}, "trained embeddings"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "experts"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeated layers"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"lora_bias": True}, "biases"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"frobnicate": 3}, "not understood: frobnicate"),
        ({"lora_alpha": "16"}, "a number was expected"),
        ({"lora_alpha": True}, "a number was expected"),
        ({"use_rslora": 1}, "true or false"),
        ({"r": 5}, "has rank 5 there and 4"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 3 there and 4"),
        ({"rank_pattern": [1]}, "not a table"),
        ({"alpha_pattern": {"((a+)+)+$": 2}}, "more than a module's name"),
        ({"alpha_pattern": {".*.*.*.*x": 2}}, "more than a module's name"),
    ],
)
def test_a_config_of_more_than_lora_is_refused(says: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words.replace("(", r"\(")):
        open_adapter(write_peft(tmp_path / "a", pairs("qwen3"), **says))


def refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], name: str = "qwen3"
) -> KvasirError:
    """What an adapter is told whose tensors were changed."""
    folder = write_peft(tmp_path / "a", pairs(name))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    checkpoint = open_checkpoint(GOLDEN / name)
    with pytest.raises(KvasirError) as caught:
        fit_adapter(open_adapter(folder), checkpoint.config, build(checkpoint)[0])
    return caught.value


Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (f"{Q}.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "trained embedding"),
        ("base_model.model.lm_head.modules_to_save.weight", "whole trained module"),
        (f"{Q}.base_layer.bias", "trained bias"),
        ("base_model.model.model.norm.weight", "trained norm"),
        (f"{Q}.lora_C.weight", "no part of a low-rank pair"),
    ],
)
def test_tensors_of_more_than_lora_are_refused(extra: str, words: str, tmp_path: Path) -> None:
    error = refused(tmp_path, lambda t: t.update({extra: np.ones((4, 4), np.float32)}))
    assert isinstance(error, CheckpointError) and words in error.message and extra[:100] in error.message


def test_the_weight_that_peft_saves_beside_an_adapted_output_is_passed_over(tmp_path: Path) -> None:
    name, key = "llama", "base_model.model.lm_head.base_layer.weight"
    own = {k: v for k, v in pairs(name, 1).items() if "q_proj" in k or k == "lm_head"}
    folder = write_peft(tmp_path / "a", own)
    want = open_adapter(folder).digest()
    tensors = load_file(folder / "adapter_model.safetensors")
    table = load_file(GOLDEN / name / "model.safetensors")["lm_head.weight"]
    save_file(tensors | {key: table}, folder / "adapter_model.safetensors")
    assert "lm_head" in own and open_adapter(folder).digest() == want
    for extra in ({key: table[:-3]}, {key.replace("lm_head", "model.layers.0.mlp.up_proj"): table}):
        save_file(tensors | extra, folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match="base_layer"):
            open_adapter(folder)


def test_halves_of_pairs_and_other_shapes_are_refused(tmp_path: Path) -> None:
    def put(**parts: tuple[int, ...]) -> Callable[[dict[str, np.ndarray]], object]:
        return lambda t: t.update(
            {f"{Q}.lora_{k}.weight": np.ones(shape, np.float32) for k, shape in parts.items()}
        )

    for n, (change, words) in enumerate(
        (
            (lambda t: t.pop(f"{Q}.lora_B.weight"), "has no lora_B"),
            (put(A=(4, 32), B=(64, 3)), r"[r, D], [O, r]"),
            (put(A=(4, 16), B=(64, 4)), r"is [64, 16] there and [64, 32] in the model"),
            (put(A=(4, 32), B=(48, 4)), r"is [48, 32] there and [64, 32] in the model"),
            (put(A=(4,), B=(64, 4)), r"[r, D], [O, r]"),
        )
    ):
        (tmp_path / str(n)).mkdir()
        assert words in refused(tmp_path / str(n), change).message


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(GOLDEN / "phi3")
    plan, _ = build(checkpoint)
    with pytest.raises(CheckpointError, match=r"and [0-9]+ more are not in the model"):
        own = {k: v for k, v in pairs("qwen3").items() if "o_proj" not in k and "down_proj" not in k}
        fit_adapter(open_adapter(write_peft(tmp_path / "other", own)), checkpoint.config, plan)
    own = {k: (a[:, :16], b) for k, (a, b) in pairs("phi3").items()}
    with pytest.raises(CheckpointError, match="there and"):
        fit_adapter(open_adapter(write_peft(tmp_path / "narrow", own)), checkpoint.config, plan)
    short = {k: (a, b[:5]) for k, (a, b) in pairs("phi3").items()}
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit_adapter(open_adapter(write_peft(tmp_path / "short", short)), checkpoint.config, plan)
    wrong = write_adapter_gguf("qwen3", tmp_path / "a.gguf", pairs("qwen3"))
    with pytest.raises(CheckpointError, match="it is for 'qwen3' and the model is 'Phi3ForCausalLM'"):
        fit_adapter(open_adapter(wrong), checkpoint.config, plan)


def test_experts_and_embeddings_are_named(tmp_path: Path) -> None:
    one = (np.ones((2, 32), np.float32), np.ones((24, 2), np.float32))
    checkpoint = open_checkpoint(GOLDEN / "qwen3-moe")
    plan, _ = build(checkpoint)
    for key, words in (
        ("model.layers.0.mlp.experts.0.gate_proj", "adapters of experts"),
        ("model.embed_tokens", "trained embeddings"),
    ):
        folder = write_peft(tmp_path / key[-9:], {**pairs("qwen3-moe", rank=2), key: one})
        with pytest.raises(CheckpointError, match=words):
            fit_adapter(open_adapter(folder), checkpoint.config, plan)


def test_an_encoder_takes_no_adapter(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(GOLDEN / "bert")
    own = {k: v for k, v in pairs("bert").items() if "pooler" not in k}
    with pytest.raises(UsageError, match="embedding model"):
        fit_adapter(open_adapter(write_peft(tmp_path / "a", own)), checkpoint.config, build(checkpoint)[0])


def test_files_that_are_no_adapters_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_adapter(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors"):
        open_adapter(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="pickle"):
        open_adapter(tmp_path / "empty")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="no adapter"):
        open_adapter(tmp_path / "text")
    model = write_gguf("qwen3", tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="not an adapter"):
        open_adapter(model)
    with pytest.raises(CheckpointError, match="of type 'control_vector'"):
        open_adapter(write_adapter_gguf("qwen3", tmp_path / "c.gguf", pairs("qwen3"), form="control_vector"))
    folder = write_peft(tmp_path / "none", {})
    with pytest.raises(CheckpointError, match="no matrix in it"):
        open_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"no adapter_config.json"):
        open_adapter(folder)


def test_memory_is_what_the_pairs_take(tmp_path: Path) -> None:
    own = pairs("llama")
    file = open_adapter(write_peft(tmp_path / "a", own))
    assert file.n_bytes == 4 * sum(a.size + b.size for a, b in own.values())
    assert replace(file, targets={}).n_bytes == 0 and len(own) < len(matrices("llama"))
