"""Which tokens open and close the thinking part of an answer, and where a prompt leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvasir.text.tokenizer import Tokenizer

# Families whose marks are single tokens: DeepSeek, Qwen and many more; Mistral; Seed; Command; Kimi; Gemma 4.
_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>", "<channel|>"),
)


@dataclass(frozen=True)
class Thinking:
    """A family's marks.  `open` None: there is no such mark, every answer begins outside of the answer
    proper (harmony, whose last channel is the answer); `close`: the ids that end the thinking.
    """

    open: int | None
    close: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Thinking | None:
        """The marks that the vocabulary has as tokens; None for models that do not think."""
        channel, message = tokenizer.token_id("<|channel|>"), tokenizer.token_id("<|message|>")
        if channel is not None and message is not None:
            return cls(None, (channel, *tokenizer.encode("final", False, False), message))
        for opened, closed in _PAIRS:
            ids = tokenizer.token_id(opened), tokenizer.token_id(closed)
            if ids[0] is not None and ids[1] is not None:
                return cls(ids[0], (ids[1],))
        return None

    def after(self, prompt: Sequence[int], tokenizer: Tokenizer) -> Literal["open", "may", "closed"]:
        """Where a prompt leaves an answer: inside the thinking, free to begin with it, or behind it."""
        n = len(self.close)
        ends = [i for i in range(len(prompt) - n + 1) if tuple(prompt[i : i + n]) == self.close]
        after_close = ends[-1] + n if ends else 0
        if ends and not tokenizer.decode(prompt[after_close:]).strip():
            return "closed"
        if self.open is None or self.open in prompt[after_close:]:
            return "open"
        return "may"
