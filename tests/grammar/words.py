"""A vocabulary for tests of constraints: every byte, some longer tokens, ends and the marks of thinking."""

from __future__ import annotations

from functools import cache

from kvasir.text.tokenizer import Tokenizer
from kvasir.text.vocab import byte_alphabet

WORDS = ['"}', '":', '", "', "{}", "true", "null", "the", "10", "  ", "\n\n", '{"', "ab", "é", " a", "aaaa"]
MARKS = ["<|end|>", "<think>", "</think>", "<|other|>"]


@cache
def letters() -> Tokenizer:
    """Byte-level: ids 0 to 255 are the bytes in the order of their letters; then WORDS, then MARKS."""
    letter_of = {byte: letter for letter, byte in byte_alphabet().items()}
    words = ["".join(letter_of[b] for b in word.encode()) for word in WORDS]
    tokens = [letter_of[b] for b in range(256)] + words + MARKS
    kinds = [1] * (256 + len(words)) + [3] * len(MARKS)
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": [f"{letter_of[97]} {letter_of[98]}"],
            "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        }
    )
