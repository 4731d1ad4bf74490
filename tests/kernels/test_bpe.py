"""Byte-pair encoding of the extension equals the tokenizers library, on whatever vocabulary and text."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.checkpoint.gguf import MAX_TOKEN_BYTES, Strings, string_ends
from kvasir.errors import CheckpointError
from kvasir.native import extension
from kvasir.text.encoders import ByteLevelEncoder, LibraryEncoder
from kvasir.text.tokenizer import Tokenizer
from tests.pure import tokenizer_pairs as pairs
from tests.pure.tokenizer_pairs import KEY

PRES = {
    "qwen2": (False, "NFC"),
    "llama-bpe": (True, None),
    "gpt-2": (False, None),
    "deepseek-v3": (False, None),
}


def table(texts: list[str] | list[bytes]) -> Strings:
    """The strings as a file has them."""
    raw = [t.encode() if isinstance(t, str) else t for t in texts]
    data = np.frombuffer(b"".join(struct.pack("<Q", len(t)) + t for t in raw), np.uint8)
    return Strings(data, string_ends(data, len(raw)), "a test")


def mapped(keys: dict[str, object]) -> dict[str, object]:
    """The keys with their strings as tables."""
    tables = {KEY + name: table(list(keys[KEY + name])) for name in ("tokens", "merges")}  # type: ignore[call-overload]
    return {**keys, **tables}


@pytest.fixture(scope="module", params=PRES)
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    whole, _ = PRES[request.param]
    made = pairs.byte_level(pairs.split_then_bytes(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), None, whole)
    keys = pairs.as_gguf(made, request.param)
    quick, library = Tokenizer.from_gguf(mapped(keys)), Tokenizer.from_gguf(keys)
    assert isinstance(quick._vocab.encoder, ByteLevelEncoder)
    assert isinstance(library._vocab.encoder, LibraryEncoder)
    return quick, library


@pytest.mark.parametrize("special", [True, False])
def test_texts_known_to_be_odd(both: tuple[Tokenizer, Tokenizer], special: bool) -> None:
    quick, library = both
    texts = [
        pairs.TEXT,
        "",
        " ",
        "\n\n  a",
        "a" * 5000,
        "é1" * 999,
        "e\u0301 cafe\u0301",
        "\0\x7f\u00ad",
        "🦉 中文",
    ]
    texts += [
        "<|im_start|>user\n<|im_end|>",
        "<|im_start|><|im_start|> <|im_",
        "<tool_call>{}</tool_call>",
        "<|im_<|im_end|>",
    ]
    for text in texts:
        assert quick.encode(text, parse_special=special) == library.encode(text, parse_special=special), text[
            :40
        ]
    assert (
        quick.token_id("<|im_end|>") == library.token_id("<|im_end|>") and quick.token_id("no such") is None
    )


@settings(deadline=None)
@given(st.text(max_size=300), st.booleans())
def test_any_text(both: tuple[Tokenizer, Tokenizer], text: str, special: bool) -> None:
    quick, library = both
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert quick.encode(text, parse_special=special) == library.encode(text, parse_special=special)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_merges(data: st.DataObject) -> None:
    """Merges in an order that no training gives: a pair joined late may be part of one joined early."""
    letters = [chr(c) for c in range(256) if chr(c).isprintable() and c not in (32, 0xAD, 0xA0)]
    letters += [chr(0x100 + i) for i in range(256 - len(letters))]
    tokens, merges = list(letters), list[str]()
    for _ in range(data.draw(st.integers(1, 30))):
        pool = [t for t in tokens if set(t) <= set("abĠ")] or ["a", "b", "Ġ"]
        left, right = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    data.draw(st.randoms()).shuffle(merges)
    keys: dict[str, object] = {
        KEY + "model": "gpt2",
        KEY + "pre": "gpt-2",
        KEY + "tokens": tokens,
        KEY + "merges": merges,
    }
    quick, library = Tokenizer.from_gguf(mapped(keys)), Tokenizer.from_gguf(keys)
    for text in data.draw(st.lists(st.text("ab ", max_size=90), min_size=1, max_size=5)):
        assert quick.encode(text) == library.encode(text)


def test_of_tokens_that_begin_alike_the_longest_counts() -> None:
    made = pairs.byte_level(pairs.split_then_bytes(r"\p{L}+|\s+"))
    keys = pairs.as_gguf(made, "qwen2")
    tokens = [*keys[KEY + "tokens"], "<a>", "<a><b>", "a><", "<a>"]  # type: ignore[misc]
    for kinds in ([3, 3, 4, 3], [4, 3, 3, 4], [3, 4, 4, 3]):
        changed = {**keys, KEY + "tokens": tokens, KEY + "token_type": [*keys[KEY + "token_type"], *kinds]}  # type: ignore[misc]
        quick, library = Tokenizer.from_gguf(mapped(changed)), Tokenizer.from_gguf(changed)
        for text in ("<a><b>", "<a><a><b>", "x<a>< b", "<<a><", "a><b>", "<a><b"):
            for special in (True, False):
                assert quick.encode(text, parse_special=special) == library.encode(
                    text, parse_special=special
                )


@pytest.mark.parametrize(
    "change",
    [
        {"merges": [b"Z \xc4\xa0zzz"]}, {"merges": [b"ab"]}, {"merges": [b"a "]}, {"merges": [b"\xff a"]},
        {"tokens": [b"a", b"\xed\xa0\x80"]}, {"tokens": [b"\xc0\x80"]}, {"tokens": [b"\xf4\x90\x80\x80"]},
    ],
)  # fmt: skip
def test_a_vocabulary_with_a_fault_is_refused_as_before(change: dict[str, list[bytes]]) -> None:
    keys = mapped(pairs.as_gguf(pairs.byte_level(pairs.split_then_bytes(r"\p{L}+|\s+")), "qwen2"))
    keys.pop(KEY + "token_type")
    with pytest.raises(CheckpointError):
        Tokenizer.from_gguf({**keys, **{KEY + name: table(raw) for name, raw in change.items()}})


def test_an_alphabet_with_gaps_goes_the_librarys_way() -> None:
    keys = {
        KEY + "model": "gpt2",
        KEY + "pre": "gpt-2",
        KEY + "tokens": table(["a", "b", "ab"]),
        KEY + "merges": table(["a b"]),
    }
    made = Tokenizer.from_gguf(keys)
    assert isinstance(made._vocab.encoder, LibraryEncoder) and made.encode("abab") == [2, 2]


@given(st.binary(max_size=200), st.integers(0, 9))
def test_ends_of_strings_in_any_bytes(raw: bytes, n: int) -> None:
    data = np.frombuffer(b"\x02" + bytes(7) + b"ok" + raw, np.uint8)
    assert extension().string_ends(data, n, MAX_TOKEN_BYTES).tolist() == string_ends(data, n).tolist()


@given(st.binary(max_size=40))
def test_utf8_as_python_has_it(raw: bytes) -> None:
    def is_utf8() -> bool:
        try:
            raw.decode()
        except UnicodeDecodeError:
            return False
        return True

    one: Any = table([raw])
    assert (extension().first_not_utf8(one.data, one.ends) == -1) == is_utf8()


def test_tables_that_lie_are_refused() -> None:
    one = table(["abc", "d"])
    for ends in ([11, 99], [3, 20], [11, 12], [-1, 20]):
        with pytest.raises(ValueError, match="strings"):
            extension().first_not_utf8(one.data, np.array(ends, np.int64))
