"""Fill in the middle: which models can, and the prompts they get."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvasir.chat import ChatRequest
from kvasir.errors import UsageError
from kvasir.runner.inspect import _spellings
from kvasir.runner.prompt import Prompter
from kvasir.sampling import SamplingParams
from kvasir.text.infill import MARKS, SUFFIX_FIRST, Infill, has_marks
from kvasir.text.tokenizer import Tokenizer
from tests.pure import tokenizer_pairs as pairs
from tests.pure.tokenizer_pairs import KEY


def tokenizer(*marks: str, **more: Any) -> Tokenizer:
    made = pairs.byte_level(pairs.split_then_bytes(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"))
    keys = pairs.as_gguf(made, "qwen2")
    tokens = [*keys[KEY + "tokens"], *marks]  # type: ignore[misc]
    types = [*keys[KEY + "token_type"], *(3 for _ in marks)]  # type: ignore[misc]
    return Tokenizer.from_gguf(keys | {KEY + "tokens": tokens, KEY + "token_type": types, **more})


@pytest.mark.parametrize("marks", MARKS)
def test_the_marks_of_each_family(marks: tuple[str, str, str]) -> None:
    ours = tokenizer(*marks)
    pre, suf, mid = (ours.token_id(mark) for mark in marks)
    found = Infill.of(ours.token_id)
    assert found == Infill(pre, suf, mid)
    want = [pre, *ours.encode("ab"), suf, *ours.encode(" cd"), mid]
    assert found.tokens(ours, "ab", " cd") == want
    prompter = Prompter(ours, None)
    request = ChatRequest(SamplingParams(), prompt="ab", suffix=" cd")
    assert prompter.tokens(request, 100) == (want, 0)


def test_a_family_with_the_last_text_first_and_a_bos() -> None:
    ours = tokenizer(*SUFFIX_FIRST, **{KEY + "bos_token_id": 0, KEY + "add_bos_token": True})
    suf, pre = (ours.token_id(mark) for mark in SUFFIX_FIRST)
    found = Infill.of(ours.token_id)
    assert found and found.middle is None
    a, b = (ours.encode(text, add_special=False) for text in "ab")
    assert found.tokens(ours, "a", "b") == [0, suf, *b, pre, *a]


def test_who_cannot() -> None:
    ours = tokenizer("<|fim_prefix|>", "<|fim_suffix|>")
    assert Infill.of(ours.token_id) is None and not has_marks(frozenset(("<|fim_prefix|>", "<|fim_suffix|>")))
    with pytest.raises(UsageError, match="no tokens to fill in the middle"):
        Prompter(ours, None).tokens(ChatRequest(SamplingParams(), prompt="a", suffix="b"), 100)
    whole = tokenizer(*MARKS[0])
    with pytest.raises(UsageError, match="a prompt that is text"):
        Prompter(whole, None).tokens(ChatRequest(SamplingParams(), prompt=(1, 2), suffix="b"), 100)


def test_a_file_says_whether_its_model_can(tmp_path) -> None:
    gguf = SimpleNamespace(metadata={"tokenizer.ggml.tokens": ["a", *MARKS[0]]}, folder={})
    assert has_marks(_spellings(gguf))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"added_tokens_decoder": {"1": {"content": "<fim_prefix>"}}}')
    folder = SimpleNamespace(metadata={}, folder={"tokenizer_config.json": settings})
    assert not has_marks(_spellings(folder))
    settings.write_text(" ".join(MARKS[1]))
    assert has_marks(_spellings(folder)) and not has_marks(
        _spellings(SimpleNamespace(metadata={}, folder={}))
    )
