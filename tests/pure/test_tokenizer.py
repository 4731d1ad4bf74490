"""Tokenizers under odd files, odd texts and large ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.errors import CheckpointError, KvasirError, ModelError, UsageError
from kvasir.text.folder_vocab import check_pattern
from kvasir.text.pretokenizers import KNOWN_PATTERNS, PRES
from kvasir.text.tokenizer import MAX_TEXT_BYTES, Tokenizer
from tests.pure import tokenizer_pairs as pairs
from tests.pure.tokenizer_pairs import KEY


@pytest.fixture(scope="module")
def made() -> Any:
    return pairs.byte_level(pairs.split_then_bytes(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"))


@pytest.fixture(scope="module")
def keys(made: Any) -> dict[str, object]:
    return pairs.as_gguf(made, "qwen2")


def test_ends_and_begins(keys: dict[str, object], made: Any) -> None:
    end, text_end, start = (made.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>", "<|im_start|>"))
    plain = Tokenizer.from_gguf(keys)
    assert plain.eos_id == end and plain.eos_ids == {end, text_end} and plain.bos_id is None
    assert plain.special(end) and not plain.special(made.token_to_id("<tool_call>"))
    bos = Tokenizer.from_gguf(keys | {KEY + "bos_token_id": start, KEY + "add_bos_token": True})
    assert bos.encode("a") == [start, *plain.encode("a")] and bos.encode(
        "a", add_special=False
    ) == plain.encode("a")
    assert (
        bos.decode(bos.encode("a b")) == "a b"
        and bos.decode(bos.encode("a b"), skip_special=False)[:3] == "<|i"
    )
    default = Tokenizer.from_gguf(keys | {KEY + "bos_token_id": start, KEY + "pre": "llama-bpe"})
    assert default.encode("a")[0] == start


def test_harmony_messages_do_not_end_an_answer(keys: dict[str, object]) -> None:
    tokens = [*keys[KEY + "tokens"], "<|end|>", "<|return|>", "<|call|>"]  # type: ignore[misc]
    types = [*keys[KEY + "token_type"], 3, 3, 3]  # type: ignore[misc]
    made = Tokenizer.from_gguf(keys | {KEY + "tokens": tokens, KEY + "token_type": types})
    n = len(tokens)
    assert {n - 1, n - 2} <= made.eos_ids and n - 3 not in made.eos_ids


def test_special_tokens_can_be_read_as_letters(keys: dict[str, object], made: Any) -> None:
    ours = Tokenizer.from_gguf(keys)
    end = made.token_to_id("<|im_end|>")
    assert end in ours.encode("a<|im_end|>b")
    as_text = ours.encode("a<|im_end|>b", parse_special=False)
    assert end not in as_text and ours.decode(as_text) == "a<|im_end|>b"
    assert end in ours.encode("a<|im_end|>b")


def test_folder_files(tmp_path: Path, made: Any) -> None:
    made.save(str(tmp_path / "tokenizer.json"))
    config, generation = tmp_path / "tokenizer_config.json", tmp_path / "generation_config.json"
    config.write_text(
        json.dumps(
            {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "add_bos_token": True}
        )
    )
    generation.write_text(json.dumps({"eos_token_id": [5, 7, 10**9]}))
    ours = Tokenizer.from_folder(tmp_path / "tokenizer.json", config, generation, tmp_path / "absent.json")
    ids = {made.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert ours.eos_ids == {5, 7} | ids and ours.bos_id == made.token_to_id("<|im_start|>")
    assert ours.encode("a")[0] == ours.bos_id


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_round_trip(text: str) -> None:
    tokenizer = Tokenizer.from_gguf(_ROUND | {KEY + "pre": "llama-bpe"})
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


_LETTERS = sorted(pairs.pre_tokenizers.ByteLevel.alphabet())
_ROUND: dict[str, object] = {
    KEY + "model": "gpt2",
    KEY + "tokens": [*_LETTERS, "ab", "<|x|>"],
    KEY + "token_type": [1] * 257 + [3],
    KEY + "merges": ["a b"],
}


@pytest.mark.parametrize("name", sorted(PRES))
def test_every_pre_tokenizer_loses_nothing(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(_ROUND | {KEY + "pre": name})
    text = pairs.TEXT if not PRES[name].nfc else "a b 12\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_kinds_are_named(keys: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="qwen2"):
        Tokenizer.from_gguf(keys | {KEY + "pre": "no-such"})
    with pytest.raises(ModelError, match="gpt2"):
        Tokenizer.from_gguf(keys | {KEY + "model": "rwkv"})
    with pytest.raises(ModelError):
        Tokenizer.from_gguf({})


BAD: dict[str, dict[str, object]] = {
    "no tokens": {"tokens": []},
    "tokens of numbers": {"tokens": [1, 2, 3]},
    "tokens a string": {"tokens": "abc"},
    "types too few": {"token_type": [1]},
    "types of strings": {"token_type": ["x"] * 905},
    "no merges": {"merges": []},
    "merge of one": {"merges": ["abc"]},
    "merge empty": {"merges": [""]},
    "merge unknown": {"merges": ["qqqq zzzz"]},
    "eos beyond": {"eos_token_id": 10**6},
    "eos negative": {"eos_token_id": -5},
    "eos a string": {"eos_token_id": "x"},
    "bos a list": {"bos_token_id": [1]},
    "flag a string": {"bos_token_id": 1, "add_bos_token": "yes"},
    "pre a number": {"pre": 3},
    "token of 10 MB": {"tokens": ["x" * 10_000_000], "token_type": [1]},
    "surrogate": {"tokens": ["\ud800"], "token_type": [1]},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_keys(name: str, keys: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Tokenizer.from_gguf(keys | {KEY + key: value for key, value in BAD[name].items()})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_keys_give_a_tokenizer_or_an_error(data: st.DataObject) -> None:
    values = st.none() | st.integers(-3, 9) | st.text(max_size=3) | st.booleans() | st.floats()
    tokens = st.lists(st.text("ab▁<>|Ġ 0x", max_size=4), max_size=8)
    drawn: dict[str, object] = {
        KEY + "model": data.draw(st.sampled_from(["gpt2", "llama", "bert", "t5", "gemma4"])),
        KEY + "tokens": data.draw(tokens | st.lists(values, max_size=3)),
        KEY + "token_type": data.draw(st.lists(st.integers(-1, 7), max_size=8) | values),
        KEY + "scores": data.draw(st.lists(st.floats(), max_size=8) | values),
        KEY + "merges": data.draw(st.lists(st.text("ab ▁", max_size=5), max_size=4) | values),
    }
    drawn |= {
        KEY + n: data.draw(values) for n in ("bos_token_id", "unknown_token_id", "add_bos_token", "pre")
    }
    try:
        tokenizer = Tokenizer.from_gguf({key: value for key, value in drawn.items() if value is not None})
        tokenizer.decode(tokenizer.encode("ab a <b>"))
    except KvasirError:
        return


HOSTILE_JSON = [
    "",
    "{}",
    "[]",
    "nul",
    '{"model": {"type": "BPE"}}',
    "\ud83d",
    "{" * 100_000,
    '{"version": "9"}',
]


@pytest.mark.parametrize("text", HOSTILE_JSON)
def test_bad_tokenizer_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(KvasirError):
        Tokenizer.from_folder(path)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(?:a*)*b", r"((\w+)\s?)*x", r"(.*a){25,}", r"(a)\1", "(?:x|(y+z)*)+"]
)
def test_patterns_that_explode_are_refused(pattern: str, tmp_path: Path) -> None:
    made = pairs.byte_level(pairs.split_then_bytes(pattern))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="pattern"):
        Tokenizer.from_folder(tmp_path / "tokenizer.json")


def test_the_families_patterns_pass() -> None:
    for pattern in KNOWN_PATTERNS:
        check_pattern(pattern, "")
    for pattern in (
        r"(?=(\d{3})+(?!\d))",
        "<sentinel:[0-9]+>",
        r"(IMGIMG)((A|B|C){1,4})Z",
        r"[^(\s|.,!?)]+",
        r"\(+",
    ):
        check_pattern(pattern, "")


@pytest.mark.parametrize("letter", ["a", " ", "\n", "=", "1", "中", "A", "a b", "é1"])
def test_a_million_of_one_letter(letter: str, keys: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_gguf(keys)
    start = time.perf_counter()
    text = letter * (300_000 // len(letter))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.perf_counter() - start < 10


def test_long_texts_go_in_parts(keys: dict[str, object], made: Any) -> None:
    text = (pairs.TEXT + "\nplain words here\n") * 1300
    tokenizer = Tokenizer.from_gguf(keys | {KEY + "pre": "deepseek-r1-qwen"})
    whole = tokenizer._vocab.encoder.encode(text, True)
    assert len(text) > 1 << 20 and tokenizer.encode(text) == whole


def test_long_texts_go_in_parts_sentencepiece() -> None:
    made = pairs.sentencepiece_model()
    tokenizer = Tokenizer.from_gguf(pairs.sentencepiece_as_gguf(made, add_bos_token=False))
    assert tokenizer._vocab.cut == "at"
    text = "plain words here, and  more\nof them; " * 20_000
    assert tokenizer.encode(text) == made.encode(text)


def test_texts_that_are_refused(keys: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_gguf(keys)
    for text in ("a\ud800b", "x" * 5_000_000, "x" * (MAX_TEXT_BYTES + 1)):
        with pytest.raises(UsageError):
            tokenizer.encode(text)


def test_a_large_vocabulary_loads_fast() -> None:
    words = [
        a + b + c + d
        for a in "abcdefghijklmnopqrst"
        for b in "abcdefghijklmnopqrst"
        for c in "abcdefghijklmnopqrst"
        for d in "abcdefghijklmnopqrs"
    ]
    pairs2 = [a + b for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst"]
    tokens = [*_LETTERS, *pairs2, *words]
    merges = [f"{p[0]} {p[1]}" for p in pairs2] + [f"{w[:2]} {w[2:]}" for w in words]
    keys = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "merges": merges,
        "token_type": [1] * len(tokens),
    }
    start = time.perf_counter()
    tokenizer = Tokenizer.from_gguf({KEY + name: value for name, value in keys.items()})
    took = time.perf_counter() - start
    assert tokenizer.n_vocab > 150_000
    assert took < 3, took  # 0.4 s on a quiet machine
