"""Fill in the middle: the tokens by which a model learned to write what stands between two texts."""

from __future__ import annotations

from collections.abc import Callable, Container

from kvasir.records import dataclass
from kvasir.text.tokenizer import Tokenizer

# Before the text that comes first, before the text that comes last, before what is written.
MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<PRE>", "<SUF>", "<MID>"),
)
SUFFIX_FIRST = ("[SUFFIX]", "[PREFIX]")  # Codestral: the last text, then the first one


@dataclass(frozen=True)
class Infill:
    """The marks of one model.  `middle` None: the last text goes first, and what is written follows the
    first one.
    """

    prefix: int
    suffix: int
    middle: int | None = None

    @classmethod
    def of(cls, token_id: Callable[[str], int | None]) -> Infill | None:
        """The marks that a vocabulary has; None if it has none."""
        for names in MARKS:
            ids = [token_id(name) for name in names]
            if None not in ids:
                return cls(*ids)  # type: ignore[arg-type]
        suffix, prefix = (token_id(name) for name in SUFFIX_FIRST)
        return None if suffix is None or prefix is None else cls(prefix, suffix)

    def tokens(self, tokenizer: Tokenizer, before: str, after: str) -> list[int]:
        """The prompt for what stands between `before` and `after`."""
        first = tokenizer.encode(before, add_special=False)
        last = tokenizer.encode(after, add_special=False)
        bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        if self.middle is None:
            return [*bos, self.suffix, *last, self.prefix, *first]
        return [*bos, self.prefix, *first, self.suffix, *last, self.middle]


def has_marks(pieces: Container[str]) -> bool:
    """Whether a vocabulary with these spellings has the marks of some family."""
    return any(all(name in pieces for name in names) for names in (*MARKS, SUFFIX_FIRST))
