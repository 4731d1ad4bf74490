"""A vocabulary as plain data: what each token id is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from kvasir.records import dataclass
from kvasir.text.encoders import Encoder

Kind = Literal["bytes", "pieces", "words"]
Cut = Literal["none", "before", "at"]

MAX_TOKEN_BYTES = 1 << 20
MAX_TOKENS = 4_000_000

# Tokens that end a turn or a text in the families that we know.  A model's files often name only one of them.
END_NAMES = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<turn|>"}
    | {"<|end|>", "<|return|>", "<|call|>", "<|eot|>", "<|eom|>", "<EOT>", "<|EOT|>", "<|END_OF_TURN_TOKEN|>"}
    | {"<｜end▁of▁sentence｜>", "[EOT]", "<eot>"}
)


@dataclass(frozen=True)
class Vocab:
    """What a file says about its tokens.

    `encoder` turns text into ids without adding any; `pieces[id]` is the token as the file spells it, None
    where there is none.  `kind` says how a spelling becomes bytes: `bytes` GPT-2's alphabet of 256 letters,
    `pieces` SentencePiece (▁ is a space, <0x0A> a byte), `words` WordPiece.
    `strips_space`: the first space of a text is not the text's: the vocabulary adds it.  `cut` says where
    a long text may be cut between two words without changing its ids: before the space, or at it (the space
    goes, the next part gets it back as its prefix).
    `added` are spelled as they are, whatever the kind; `special` are those that are not text.
    """

    encoder: Encoder
    pieces: Sequence[str | None]
    kind: Kind
    added: frozenset[int]
    special: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    strips_space: bool = False
    cut: Cut = "none"


def byte_alphabet() -> dict[str, int]:
    """The letter for each byte in byte-level BPE: itself if printable Latin-1, else one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(shown))
    return {chr(b): b for b in shown} | {chr(0x100 + n): b for n, b in enumerate(hidden)}


def end_ids(named: Iterable[int], special_ids: dict[str, int]) -> frozenset[int]:
    """Every token that ends an answer: those the files name, and special tokens known to.

    In the harmony format (it has <|return|>) <|end|> closes a message inside an answer and ends nothing.
    """
    harmony = "<|return|>" in special_ids
    names = END_NAMES - {"<|end|>"} if harmony else END_NAMES - {"<|call|>"}
    known = {i for name, i in special_ids.items() if name in names}
    return frozenset(named) | known
