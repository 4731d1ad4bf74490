"""Every family against Transformers' logits, from safetensors and from GGUF; what a wrong file is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from kvasir.checkpoint.open import Checkpoint, open_checkpoint
from kvasir.checkpoint.recipes import Part, half_split, mxfp4, one_more, pick, stack, transposed
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError, ModelError
from kvasir.models import FAMILIES, build
from kvasir.plan import ops
from kvasir.quant.formats import BF16, F32, Q8_0, U8
from tests.gguf_files import write_gguf
from tests.golden_plans import PLANS, text
from tests.parity.cases import CASES, GOLDEN
from tests.stepping import chopped, compare, error, golden, program, run

CLOSE = 1e-4
IN_GGUF = [n for n, c in CASES.items() if c.gguf]
FLAT = [n for n in CASES if n != "bert"]


@pytest.mark.parametrize("name", CASES)
def test_prefill_gives_the_logits_of_transformers(name: str) -> None:
    assert compare(name) < CLOSE


@pytest.mark.parametrize("name", FLAT)
def test_decode_and_mixed_steps_give_the_logits_of_transformers(name: str) -> None:
    tokens, want = golden(name)
    p, rng = program(name), np.random.default_rng(3)
    one_by_one = run(p, [tokens], [[(0, 1)]] * len(tokens))[0]
    others = [rng.integers(3, 80, n).astype(np.int32) for n in (5, 17)]
    mixed = run(p, [tokens, *others], chopped(rng, [len(tokens), 5, 17]), seed=1)[0]
    assert error(one_by_one, want) < CLOSE
    assert error(mixed, want) < CLOSE


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    assert compare(name, path=write_gguf(name, tmp_path / "m.gguf")) < CLOSE


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen35", "phi3", "gpt-oss"])
def test_quantized_weights_stay_quantized_and_go_to_the_same_places(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(name, tmp_path / "q.gguf", kind)
    _, weights = build(open_checkpoint(path))
    last = max(n for n in weights if n.endswith("attn_q"))
    assert weights[last].format == weights["output"].format == Q8_0
    floats = write_gguf(name, tmp_path / "f.gguf", kind, decoded=True)
    tokens, _ = golden(name)
    got, want = (run(program(name, path=p), [tokens], [[(0, len(tokens))]])[0] for p in (path, floats))
    assert error(got, want) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_plan_is_the_golden_one(name: str) -> None:
    want = (PLANS / f"{name}.txt").read_text()
    assert text(name) == want, "run `make golden` if the change is meant"


def test_every_family_has_a_golden_model() -> None:
    built = {open_checkpoint(GOLDEN / n).config.architecture for n in CASES}
    assert {id(FAMILIES[a]) for a in built} == {id(f) for f in FAMILIES.values()}


# -- what models decide ---------------------------------------------------------------------------


def changed(tmp_path: Path, name: str, **values: object) -> Checkpoint:
    """A golden model with other config values."""
    shutil.copytree(GOLDEN / name, tmp_path / name)
    path = tmp_path / name / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return open_checkpoint(tmp_path / name)


def test_longrope_chooses_its_factors_by_the_planned_context() -> None:
    def first(context: int | None) -> float:
        plan, _ = build(open_checkpoint(GOLDEN / "phi3"), context)
        return next(op for op in plan.ops if isinstance(op, ops.Rope)).inverse_frequencies[1]

    assert first(16) == pytest.approx(0.1 / 1.1)
    assert first(17) == first(None) == pytest.approx(0.1 / 1.3)


def test_context_is_the_smaller_of_wanted_and_made_for() -> None:
    checkpoint = open_checkpoint(GOLDEN / "llama")
    assert [build(checkpoint, n)[0].context for n in (None, 20, 1000)] == [64, 20, 64]


def test_gemma_scales_scores_by_query_pre_attn_scalar(tmp_path: Path) -> None:
    plan, _ = build(changed(tmp_path, "gemma3", query_pre_attn_scalar=64))
    assert {op.scale for op in plan.ops if isinstance(op, ops.Attend)} == {0.125}


@pytest.mark.parametrize(
    ("kind", "want"), [("float32", 32**0.5), ("bfloat16", 5.65625), ("float16", 5.65625)]
)
def test_gemma_rounds_its_embedding_scale_to_the_number_format(
    tmp_path: Path, kind: str, want: float
) -> None:
    plan, _ = build(changed(tmp_path, "gemma2", dtype=kind))
    scale = next(op for op in plan.ops if isinstance(op, ops.Scale))
    assert scale.by == pytest.approx(want, abs=1e-7)


def test_windows_are_said_in_the_states() -> None:
    plan, _ = build(open_checkpoint(GOLDEN / "gemma3"))
    assert [s.window for s in plan.states.values()] == [6, 6, 6, 6, 6, 0]


def test_old_and_new_names_of_rope_scaling_mean_the_same(tmp_path: Path) -> None:
    table = json.loads((GOLDEN / "llama" / "config.json").read_text())["rope_parameters"]
    old = {"rope_parameters": None, "rope_theta": table.pop("rope_theta"), "rope_scaling": table}
    plan, _ = build(changed(tmp_path, "llama", **old))
    assert str(plan) + "\n" == (PLANS / "llama.txt").read_text()


def test_bert_pools_as_the_folder_says(tmp_path: Path) -> None:
    checkpoint = changed(tmp_path, "bert")
    folder = tmp_path / "bert" / "1_Pooling"
    folder.mkdir()

    def how(**told: bool) -> str:
        (folder / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **told}))
        op = build(checkpoint)[0].ops[-1]
        assert isinstance(op, ops.Pool)
        return op.how

    assert how(pooling_mode_mean_tokens=True, pooling_mode_cls_token=False) == "mean"
    assert how(pooling_mode_cls_token=True, include_prompt=True) == "first"
    with pytest.raises(CheckpointError, match="max_tokens"):
        how(pooling_mode_max_tokens=True)


# -- wrong files ----------------------------------------------------------------------------------


def test_unknown_architecture_lists_the_known() -> None:
    c = open_checkpoint(GOLDEN / "llama")
    c.config.architecture = "GPT9ForCausalLM"
    with pytest.raises(ModelError, match=r"GPT9ForCausalLM.*LlamaForCausalLM"):
        build(c)


def test_unread_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="logit_scale"):
        build(changed(tmp_path, "llama", logit_scale=0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"num_hidden_layers": 3}, r"layers\.2\."),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 7}, "even"),
        ({"vocab_size": 101}, r"\[100, 32\].*\[101, 32\]"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.0}}, "makes no sense"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_slow": -1.0}}, "makes no sense"),
        (
            {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 1}},
            "makes no sense",
        ),
    ],
)
def test_config_that_does_not_fit_is_an_error(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises((CheckpointError, ModelError), match=message):
        build(changed(tmp_path, "llama", **values))


def test_missing_tensor_is_named_with_near_misses() -> None:
    c = open_checkpoint(GOLDEN / "llama")
    tensors = dict(c.tensors)
    tensors["model.layers.1.self_attn.q_projx.weight"] = tensors.pop("model.layers.1.self_attn.q_proj.weight")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight is not.*q_projx"):
        build(replace(c, tensors=tensors))


def test_unused_tensor_is_an_error_and_leftovers_are_not() -> None:
    c = open_checkpoint(GOLDEN / "llama")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": c.tensors["model.norm.weight"]}
    build(replace(c, tensors={**c.tensors, **extra}))
    c = open_checkpoint(GOLDEN / "llama")
    extra = {"model.layers.0.self_attn.q_norm.weight": c.tensors["model.norm.weight"]}
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_norm\.weight"):
        build(replace(c, tensors={**c.tensors, **extra}))


def test_copy_of_a_tied_output_is_not_an_error() -> None:
    c = open_checkpoint(GOLDEN / "qwen2")
    build(replace(c, tensors={**c.tensors, "lm_head.weight": c.tensors["model.embed_tokens.weight"]}))


def test_vision_and_draft_parts_are_set_aside_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    c = open_checkpoint(GOLDEN / "qwen35")
    norm = c.tensors["model.norm.weight"]
    build(replace(c, tensors={**c.tensors, "model.visual.x": norm, "mtp.norm.weight": norm}))
    assert "2 tensors are not run" in caplog.text


def test_a_text_model_inside_a_model_of_images_is_found(tmp_path: Path) -> None:
    text_config = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text_config,
        "vision_config": {"hidden_size": 8},
        "mm_tokens_per_image": 4,
    }
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "gemma3", folder)
    (folder / "config.json").write_text(json.dumps(outer))
    c = open_checkpoint(folder)
    renamed = {n.replace("model.", "language_model.model.", 1): t for n, t in c.tensors.items()}
    plan, weights = build(replace(c, tensors=renamed))
    assert str(plan) + "\n" == (PLANS / "gemma3.txt").read_text()
    assert set(weights) == set(plan.weights)


# -- recipes --------------------------------------------------------------------------------------


def part(x: np.ndarray) -> Part:
    raw = np.ascontiguousarray(x).view(np.uint8)
    form = {np.dtype(np.float32): F32, np.dtype(np.uint8): U8, np.dtype(np.uint16): BF16}[x.dtype]
    return Part.of(Tensor("t", form, x.shape, raw.reshape(-1, x.shape[-1] * x.itemsize)))


def test_recipes_move_what_numpy_moves() -> None:
    x = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)
    assert (pick(part(x), slice(1, None, 2), axis=1).floats() == x[:, 1::2]).all()
    assert (pick(part(x), np.array([3, 0]), axis=2).floats() == x[..., [3, 0]]).all()
    assert (pick(part(x[0, :, 0].copy()), slice(2, 5)).floats() == x[0, 2:5, 0]).all()
    assert (stack([part(x[0].copy()), part(x[1].copy())]).floats() == x).all()
    assert (transposed(part(x)).floats() == x.swapaxes(1, 2)).all()
    assert (one_more(part(x)).floats() == x + 1).all()
    pairs = np.arange(8, dtype=np.float32)[:, None]
    assert half_split(part(pairs), 2).floats().ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_mxfp4_repacked_holds_the_same_floats() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (3, 2, 32)).astype(np.uint8)
    scales = rng.integers(120, 130, (3, 2)).astype(np.uint8)
    got = mxfp4(part(codes[..., ::2] | codes[..., 1::2] << 4), part(scales)).floats()
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    assert (got == (table[codes] * 2.0 ** (scales[..., None] - 127.0)).reshape(3, 64)).all()


def test_columns_of_a_quantized_matrix_are_refused() -> None:
    t = Part("w", Q8_0, (2, 32), lambda: np.zeros((2, 34), np.uint8))
    with pytest.raises(CheckpointError, match="Q8_0"):
        pick(t, slice(0, 16), axis=1)
    with pytest.raises(CheckpointError, match="Q8_0"):
        one_more(t)


def test_experts_of_different_shapes_are_refused() -> None:
    one, two = (part(np.zeros((2, n), np.float32)) for n in (3, 4))
    with pytest.raises(CheckpointError, match="cannot be one tensor"):
        stack([one, two])
