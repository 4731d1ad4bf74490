"""A tokenizer built from GGUF equals the one built from tokenizer.json, and SentencePiece itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from kvasir.text.tokenizer import Tokenizer
from tests.pure import tokenizer_pairs as pairs

# The pre-tokenizers as the models' tokenizer.json files have them, often in other words than ours.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
KINDS: dict[str, tuple[Any, Any, bool]] = {
    "gpt-2": (GPT2, None, False),
    "phi-2": (GPT2, None, False),
    "olmo": (GPT2, normalizers.NFC(), False),
    "starcoder": (DIGITS, None, False),
    "smollm": (DIGITS, None, False),
    "command-r": (DIGITS, normalizers.NFC(), False),
    "llama-bpe": (pairs.split_then_bytes(LLAMA3), None, True),
    "qwen2": (pairs.split_then_bytes(LLAMA3.replace("{1,3}", "")), normalizers.NFC(), False),
    "deepseek-r1-qwen": (pairs.split_then_bytes(LLAMA3.replace("{1,3}", "")), None, False),
    "qwen35": (pairs.split_then_bytes(QWEN35), normalizers.NFC(), False),
    "tekken": (pairs.split_then_bytes(TEKKEN), None, True),
    "gpt-4o": (pairs.split_then_bytes(O200K), None, False),
    "deepseek-v3": (pairs.split_then_bytes(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3), None, False),
    "deepseek-coder": (
        pairs.split_then_bytes("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
        None,
        False,
    ),
}
ODD = st.text(
    st.sampled_from(" \n\t\r'aAsStTlL19.,;é\u0301中あ가🙂\u200d\u3000-_<|>/\\▁")
    | st.characters(codec="utf-8"),
    max_size=60,
)


def both(tmp_path: Path, made: Any, metadata: dict[str, object]) -> tuple[Tokenizer, Tokenizer]:
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return Tokenizer.from_folder(path), Tokenizer.from_gguf(metadata)


def assert_same(ours: Tokenizer, theirs: Tokenizer) -> None:
    for text in (
        pairs.TEXT,
        *pairs.PARTS,
        "",
        " ",
        "\n",
        "<|im_start|>user\nhi<|im_end|><tool_call> x</tool_call>",
    ):
        for parse in (True, False):
            got = ours.encode(text, add_special=False, parse_special=parse)
            assert got == theirs.encode(text, add_special=False, parse_special=parse), text[:40]
    assert all(ours.token_bytes(i) == theirs.token_bytes(i) for i in range(ours.n_vocab))
    assert [ours.special(i) for i in range(ours.n_vocab)] == [theirs.special(i) for i in range(ours.n_vocab)]
    assert ours.n_vocab == theirs.n_vocab


@pytest.mark.parametrize("name", KINDS)
def test_byte_level(name: str, tmp_path: Path) -> None:
    pre, normalizer, whole = KINDS[name]
    made = pairs.byte_level(pre, normalizer, whole)
    folder, gguf = both(tmp_path, made, pairs.as_gguf(made, name, add_bos_token=False))
    assert_same(gguf, folder)
    assert gguf.encode(pairs.TEXT) == made.encode(pairs.TEXT).ids
    if normalizer is None:
        assert gguf.decode(gguf.encode(pairs.TEXT)) == pairs.TEXT

    @settings(max_examples=60, deadline=None)
    @given(ODD)
    def same(text: str) -> None:
        assert gguf.encode(text) == made.encode(text, add_special_tokens=False).ids
        assert gguf.decode(gguf.encode(text)) == made.decode(gguf.encode(text))

    same()


@pytest.mark.parametrize("prefixed", [True, False])
def test_sentencepiece(prefixed: bool, tmp_path: Path) -> None:
    made = pairs.sentencepiece_model(add_dummy_prefix=prefixed)
    gguf = Tokenizer.from_gguf(
        pairs.sentencepiece_as_gguf(made, add_bos_token=False, add_space_prefix=prefixed)
    )
    for text in (pairs.TEXT, *pairs.PARTS):
        assert gguf.encode(text) == made.encode(text), text[:40]
        assert gguf.decode(gguf.encode(text)) == text

    @settings(max_examples=150, deadline=None)
    @given(ODD.filter(lambda text: "▁" not in text and "\0" not in text))
    def same(text: str) -> None:
        assert gguf.encode(text) == made.encode(text)
        assert gguf.decode(gguf.encode(text)) == text

    same()
    if prefixed:
        folder = both(tmp_path, pairs.sentencepiece_as_json(made), pairs.sentencepiece_as_gguf(made))[0]
        assert_same(gguf, folder)
        assert folder.strips_space and gguf.strips_space


def test_sentencepiece_user_defined_tokens_are_matched_first() -> None:
    made = pairs.sentencepiece_model(user=("<tool>", "▁▁▁▁", "\n\n"), add_dummy_prefix=False)
    keys = pairs.sentencepiece_as_gguf(made, add_bos_token=False, add_space_prefix=False)
    tokens, types = list(keys[pairs.KEY + "tokens"]), list(keys[pairs.KEY + "token_type"])  # type: ignore[call-overload]
    for i in range(3, 6):  # as the converter writes them
        tokens[i], types[i] = tokens[i].replace("▁", " "), 4
    gguf = Tokenizer.from_gguf(keys | {pairs.KEY + "tokens": tokens, pairs.KEY + "token_type": types})
    for text in (pairs.TEXT, "a<tool>b    c\n\nd", "<tool><tool>", "         x\n\n\n"):
        assert gguf.encode(text) == made.encode(text), text[:40]


def test_unigram() -> None:
    made = pairs.sentencepiece_model(model_type="unigram", remove_extra_whitespaces=True, vocab_size=500)
    keys = pairs.sentencepiece_as_gguf(made, model="t5", add_eos_token=False)
    gguf = Tokenizer.from_gguf({k: v for k, v in keys.items() if k != pairs.KEY + "bos_token_id"})
    for text in ("The quick brown fox jumps over the lazy dog.", "  two   three   four ", "Hello 你好 x"):
        assert gguf.decode(gguf.encode(text)) == made.decode(made.encode(text))
        assert gguf.encode(text) == made.encode(text)


def test_word_piece(tmp_path: Path) -> None:
    made = pairs.word_piece()
    folder, gguf = both(tmp_path, made, pairs.word_piece_as_gguf(made))
    assert_same(gguf, folder)
    cls, sep = made.token_to_id("[CLS]"), made.token_to_id("[SEP]")
    assert gguf.encode("the dog") == [cls, *folder.encode("the dog"), sep]
    assert gguf.decode(gguf.encode("The brown fox")) == "the brown fox"
