"""A Config gives what is asked for in the type asked for, and knows what nobody asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.files import parse_json, read_json
from kvasir.checkpoint.gguf import Gguf
from kvasir.checkpoint.gguf_names import gguf_config
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError
from kvasir.quant.formats import F32


def config(**values: object) -> Config:
    return Config(values, "config.json", "LlamaForCausalLM")


def test_typed_reads() -> None:
    c = config(
        n=3, x=0.5, flag=True, name="silu", ids=[1, 2], xs=[1, 2.5], names=["a"], flags=[True], none=None
    )
    assert c.int("n") == 3 and c.float("x") == 0.5 and c.float("n") == 3.0 and isinstance(c.float("n"), float)
    assert c.bool("flag") is True and c.str("name") == "silu" and c.strs("names") == ["a"]
    assert c.ints("ids") == [1, 2] and c.floats("xs") == [1.0, 2.5] and c.bools("flags") == [True]
    assert c.int("none", 7) == 7 and c.int("absent", 8) == 8 and c.ints("absent", []) == []
    assert c.has("n") and not c.has("none") and not c.has("absent") and c.table("none") is None
    assert c.unread() == []


@pytest.mark.parametrize("value, reader, wanted", [
    ("3", "int", "a whole number"), (True, "int", "a whole number"), (3.0, "int", "a whole number"),
    ([1, 2], "int", "a whole number"), ("x", "float", "a number"), (False, "float", "a number"),
    (1, "bool", "true or false"), ("true", "bool", "true or false"), (1, "str", "a text"),
    (1, "ints", "a list"), ("ab", "ints", "a list"), ([1, "2"], "ints", "a whole number"),
    ([True], "ints", "a whole number"), ([1], "strs", "a list of texts"),
    ([0], "bools", "a list of true and false"),
    ([], "table", "a table"), (float("inf"), "float", "out of range"), (10**400, "float", "out of range"),
    (10**400, "int", "not in"),
])  # fmt: skip
def test_ill_typed_values_name_file_key_and_value(value: object, reader: str, wanted: str) -> None:
    with pytest.raises(CheckpointError, match=wanted) as e:
        getattr(config(some_key=value), reader)("some_key")
    assert "config.json: some_key is " in str(e.value) and len(str(e.value)) < 300


def test_no_default_means_required() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_size is missing"):
        config().int("hidden_size")
    with pytest.raises(CheckpointError, match=r"rope\.theta is missing"):
        table = config(rope={}).table("rope")
        assert table is not None
        table.float("theta")


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"]
)
@pytest.mark.parametrize("value", [0, -1, 1 << 40])
def test_counts_that_would_divide_by_zero_or_never_end(key: str, value: int) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is {value}, not in 1 to"):
        config(**{key: value}).int(key)


@pytest.mark.parametrize("theta", [0, -1.0])
def test_a_rope_base_is_above_zero(theta: float) -> None:
    with pytest.raises(CheckpointError, match="rope_theta"):
        config(rope_theta=theta).float("rope_theta")


def test_must() -> None:
    c = config(hidden_act="gelu", attention_bias=1)
    c.must("hidden_act", "silu", "gelu")
    c.must("absent", "silu")
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu'; only 'silu' is implemented"):
        c.must("hidden_act", "silu")
    with pytest.raises(CheckpointError, match="attention_bias is 1; only True or False"):
        c.must("attention_bias", True, False)  # 1 == True in Python, and not here
    with pytest.raises(CheckpointError, match="absent is missing"):
        c.must("absent", "silu", required=True)


def test_what_nobody_read() -> None:
    c = config(
        hidden_size=8,
        logit_scale=2.0,
        rope_scaling={"factor": 2.0, "strange": 1, "deep": {"er": 1}},
        text_config={"hidden_size": 8, "torch_dtype": "bfloat16"},
        head_dim=None,
        quantization_config={"bits": 4},
        architectures=["X"],
        torch_dtype="bfloat16",
        eos_token_id=2,
        attention_dropout=0.1,
        initializer_range=0.02,
        is_decoder=False,
        is_encoder_decoder=True,
    )
    c.int("hidden_size")
    scaling = c.table("rope_scaling")
    assert scaling is not None and scaling.float("factor") == 2.0 and c.table("rope_scaling") is scaling
    c.table("text_config")
    left = ["is_encoder_decoder", "logit_scale", "quantization_config"]
    left += ["rope_scaling.deep", "rope_scaling.strange", "text_config.hidden_size"]
    assert c.unread() == left
    with pytest.raises(CheckpointError, match="not understood: is_encoder_decoder, logit_scale"):
        c.check_all_read()
    c.ignore("logit_scale", "quantization_config", "is_encoder_decoder", "text_config")
    scaling.ignore("deep", "strange")
    assert c.unread() == ["text_config.hidden_size"]


def test_two_names_of_one_thing() -> None:
    c = config(num_local_experts=8, experts_per_token=2, num_experts_per_tok=2)
    assert c.int("num_experts") == 8 and c.int("num_local_experts") == 8 and c.int("experts_per_token") == 2
    assert c.unread() == []
    with pytest.raises(CheckpointError, match="disagree"):
        config(num_local_experts=8, num_experts=4)


def test_keys_that_name_code() -> None:
    for key in ("auto_map", "_attn_implementation_internal", "_attn_implementation", "attn_implementation"):
        with pytest.raises(CheckpointError, match=f"{key} names code to run"):
            config(**{key: "x"})
    assert config(_attn_implementation_autoset=True).unread() == []


def test_json(tmp_path: Path) -> None:
    assert parse_json(b'{"a": 1}', "x") == {"a": 1}
    for bad in (
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b"1" * 5000,
        b"[" * 10**6,
        b"[" + b"[]," * 2**20,
    ):
        with pytest.raises(CheckpointError, match=r"^x: "):
            parse_json(bad, "x")
    (tmp_path / "big.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(CheckpointError, match="at most"):
        read_json(tmp_path / "big.json")


# ---- GGUF's names


def gguf_of(
    metadata: Mapping[str, object], *tensors: tuple[str, tuple[int, ...]], arch: str = "qwen3"
) -> Config:
    own = {k if "general." in k else f"{arch}.{k}": v for k, v in metadata.items()}
    views = {n: Tensor(n, F32, s, np.zeros((1, 4), np.uint8)) for n, s in tensors}
    return gguf_config(Gguf({"general.architecture": arch, **own}, views), "m.gguf")


def read_every(c: Config) -> dict[str, object]:
    return json.loads(json.dumps(c._values, default=str))  # type: ignore[no-any-return]


def test_gguf_widths() -> None:
    base = {"embedding_length": 64, "attention.head_count": 4}
    c = gguf_of({**base, "rope.dimension_count": 16, "attention.value_length": 16})
    assert read_every(c) == {"hidden_size": 64, "num_attention_heads": 4}
    c = gguf_of({**base, "attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 8})
    assert c.int("head_dim") == 32 and c.float("partial_rotary_factor") == 0.25 and not c.has("v_head_dim")
    c = gguf_of({**base, "attention.key_length": 32, "attention.value_length": 24})
    assert c.int("v_head_dim") == 24


def test_gguf_recurrent_layers() -> None:
    c = gguf_of({"ssm.inner_size": 256, "ssm.time_step_rank": 4, "ssm.state_size": 32, "ssm.group_count": 2})
    assert c.int("linear_value_head_dim") == 64 and c.int("linear_num_value_heads") == 4
    assert c.int("linear_key_head_dim") == 32 and c.int("linear_num_key_heads") == 2 and c.unread() == []


def test_gguf_from_tensors() -> None:
    c = gguf_of(
        {}, ("token_embd.weight", (100, 8)), ("output.weight", (100, 8)), ("token_types.weight", (2, 8))
    )
    assert c.int("vocab_size") == 100 and not c.bool("tie_word_embeddings") and c.int("type_vocab_size") == 2


@pytest.mark.parametrize("metadata, expected", [
    ({"rope.scaling.type": "none", "rope.scaling.factor": 1.0}, None),
    ({"rope.scaling.finetuned": True}, None),
    ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
      "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_beta_fast": 32.0},
     {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0}),
])  # fmt: skip
def test_gguf_rope_scaling(metadata: dict[str, object], expected: dict[str, object] | None) -> None:
    assert read_every(gguf_of(metadata)).get("rope_scaling") == expected


def test_gguf_long_rope() -> None:
    made = {"rope.scaling.attn_factor": 1.19, "rope.scaling.original_context_length": 4096}
    c = gguf_of(made, ("rope_factors_long.weight", (48,)), arch="phi3")
    assert c.int("original_max_position_embeddings") == 4096
    table = c.table("rope_scaling")
    assert table and table.str("rope_type") == "longrope" and table.float("attention_factor") == 1.19


def test_gguf_arrays_and_unknown_keys() -> None:
    made = {
        "attention.head_count_kv": np.array([2, 0, 2], np.uint32),
        "feed_forward_length": np.array([8, 8], np.int32),
        "attention.sliding_window_pattern": np.array([True, False]),
        "strange.key": 1,
        "vision.block_count": 3,
        "tensor_data_layout": "x",
    }
    c = gguf_of(made)
    assert c.ints("num_key_value_heads") == [2, 0, 2] and c.int("intermediate_size") == 8
    with pytest.raises(CheckpointError, match=r"head_count_kv is a list of 3, not a whole number"):
        c.int("num_key_value_heads")
    assert c.bools("sliding_window_pattern") == [True, False]
    assert c.unread() == ["qwen3.strange.key", "vision_config"]


def test_gguf_that_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="mmproj"):
        gguf_of({"general.type": "mmproj"})
    with pytest.raises(CheckpointError, match="at most 65536"):
        gguf_of({"x": np.zeros(70000, np.uint8)})
