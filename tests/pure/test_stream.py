"""The law of streams: whatever the tokens and stops, what is shown is the decoded text up to the stop."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.errors import UsageError
from kvasir.text.stream import TextStream
from kvasir.text.tokenizer import Tokenizer
from kvasir.text.vocab import byte_alphabet
from tests.pure.tokenizer_pairs import KEY

LETTERS = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
MERGES = ["a b", "Ġ a", "Ġa b", "a a", "aa aa", "Ã ©", "ð Ł", "b a"]


def byte_level() -> Tokenizer:
    tokens = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), "<|end|>", "<tool>"]
    types = [1] * (len(tokens) - 2) + [3, 4]
    keys = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "token_type": types, "merges": MERGES}
    return Tokenizer.from_gguf({KEY + name: value for name, value in keys.items()})


def pieces() -> Tokenizer:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
        "▁▁",
        "é",
    ]
    types = [2, 3, 3] + [6] * 256 + [1] * 7
    scores = [0.0] * 259 + [-float(n) for n in range(7)]
    keys = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    return Tokenizer.from_gguf({KEY + name: value for name, value in keys.items()})


TOKENIZERS = {"bytes": byte_level(), "pieces": pieces()}
STOPS = st.lists(st.text("ab é\ufffd<🙂", min_size=1, max_size=4), max_size=3)


def reference(text: str, stops: list[str], include_stop: bool) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include_stop else end - len(stop)], stop
    return text, None


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    tokenizer = TOKENIZERS[draw(st.sampled_from(sorted(TOKENIZERS)))]
    text = draw(st.text("ab é🙂<", max_size=20))
    ids = tokenizer.encode(text, add_special=False)
    noise = draw(st.lists(st.integers(0, tokenizer.n_vocab + 2), max_size=12))
    at = draw(st.integers(0, len(ids)))
    return tokenizer, ids[:at] + noise + ids[at:]


@settings(max_examples=500, deadline=None)
@given(answers(), STOPS, st.booleans(), st.booleans(), st.booleans())
def test_stream_is_decode(
    answer: tuple[Tokenizer, list[int]], stops: list[str], include_stop: bool, skip_special: bool, begin: bool
) -> None:
    tokenizer, ids = answer
    stream = TextStream(tokenizer, stops, include_stop, skip_special, begin)
    shown = [stream.push(i) for i in ids]
    shown.append(stream.finish())
    whole = tokenizer.decode(ids, skip_special=skip_special, begin=begin)
    assert ("".join(shown), stream.stopped) == reference(whole, stops, include_stop)
    assert stream.finish() == ""


@settings(max_examples=200, deadline=None)
@given(answers(), STOPS)
def test_what_is_shown_is_never_taken_back_and_not_held_without_need(
    answer: tuple[Tokenizer, list[int]], stops: list[str]
) -> None:
    tokenizer, ids = answer
    stream, shown = TextStream(tokenizer, stops), ""
    for n, token_id in enumerate(ids, 1):
        shown += stream.push(token_id)
        sure = tokenizer.decode(ids[:n]).rstrip("\ufffd")
        if stream.stopped is None:
            held = sure[len(shown) :]
            assert sure.startswith(shown.rstrip("\ufffd"))
            assert not held or any(stop.startswith(held[at:]) for at in range(len(held)) for stop in stops)


def test_a_character_is_shown_once_it_is_whole() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = list("né🙂".encode())
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in ids] == ["n", "", "é", "", "", "", "🙂"]
    cut = TextStream(tokenizer)
    assert [cut.push(i) for i in ids[:5]] == ["n", "", "é", "", ""]
    assert cut.finish() == "\ufffd"


def test_a_stop_across_tokens_is_not_shown() -> None:
    tokenizer = TOKENIZERS["bytes"]
    stream = TextStream(tokenizer, ("\nUser:",))
    shown = [stream.push(i) for i in b"Hi\nUse\nUser: x"]
    assert "".join(shown) == "Hi\nUse" and stream.stopped == "\nUser:"
    assert shown[2:6] == ["", "", "", ""] and stream.push(ord("y")) == "" and stream.finish() == ""


def test_empty_stop_is_refused() -> None:
    for stops in (("",), "ab"):
        with pytest.raises(UsageError):
            TextStream(TOKENIZERS["bytes"], stops)


def test_cost_of_a_push_does_not_grow() -> None:
    stream = TextStream(TOKENIZERS["bytes"], ("a" * 1000 + "b", "aab" * 300))
    start = time.perf_counter()
    for _ in range(20_000):
        stream.push(ord("a"))
    assert time.perf_counter() - start < 2.0
