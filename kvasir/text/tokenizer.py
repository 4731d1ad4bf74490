"""Text to token ids and back, exactly, for vocabularies of either format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kvasir.errors import ModelError, UsageError
from kvasir.text.folder_vocab import vocab_from_folder
from kvasir.text.gguf_vocab import vocab_from_gguf
from kvasir.text.vocab import Vocab, byte_alphabet

MAX_TEXT_BYTES = 64 << 20
MAX_UNBROKEN = 1 << 20
_PART = 1 << 18
_BETWEEN_WORDS = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")
_BYTE_OF = byte_alphabet()
# From the letters of the alphabet to their bytes, as Latin-1; other letters become what that cannot hold.
_TO_BYTES = {ord(letter): byte for letter, byte in _BYTE_OF.items()} | {
    code: 0xFFFF for code in range(256) if chr(code) not in _BYTE_OF
}


class Tokenizer:
    """A model's vocabulary at work.  Safe to share between threads.

    `decode` of all ids equals what `TextStream` gives for them one by one: both are the tokens' bytes, joined
    and read as UTF-8, with U+FFFD for what is not.
    """

    def __init__(self, vocab: Vocab):
        self._vocab = vocab
        self._bytes: dict[int, bytes] = {}
        self.n_vocab = len(vocab.pieces)
        self.bos_id = vocab.bos_id
        self.eos_id = vocab.eos_id
        self.eos_ids = vocab.eos_ids
        self.strips_space = vocab.strips_space
        self.adds_bos = vocab.bos_id in vocab.prefix
        self.n_suffix = len(vocab.suffix)  # tokens that stand behind every text: SEP, or none

    @classmethod
    def from_folder(
        cls,
        tokenizer_json: Path,
        tokenizer_config: Path | None = None,
        generation_config: Path | None = None,
        special_tokens_map: Path | None = None,
    ) -> Tokenizer:
        """From a Hugging Face folder's files.  Raises CheckpointError, ModelError."""
        return cls(vocab_from_folder(tokenizer_json, tokenizer_config, generation_config, special_tokens_map))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """From a GGUF file's `tokenizer.ggml.*` keys.  Raises CheckpointError, ModelError."""
        return cls(vocab_from_gguf(metadata))

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`, in time linear in its length.

        `add_special` puts what the model wants around a text (BOS; CLS and SEP); a chat template writes its
        own, so its output is encoded without.  `parse_special=False` reads "<|im_end|>" in the text as those
        letters and not as the token.  Raises UsageError for text that is not Unicode or is over 64 MB, and
        for a stretch of over a million characters that has no place to cut it.
        """
        try:
            n_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise UsageError(f"text has a lone surrogate at character {error.start}") from None
        if n_bytes > MAX_TEXT_BYTES:
            raise UsageError(f"text of {n_bytes:,} bytes, the limit is {MAX_TEXT_BYTES:,}")
        ids: list[int] = []
        for part in self._parts(text):
            ids += self._encode(part, parse_special)
        return [*self._vocab.prefix, *ids, *self._vocab.suffix] if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True, begin: bool = True) -> str:
        """The text of `ids`.  `begin=False`: it continues a text, so SentencePiece's first space stays."""
        raw = b"".join(b"" if skip_special and i in self._vocab.special else self.token_bytes(i) for i in ids)
        if begin and self.strips_space and raw.startswith(b" "):
            raw = raw[1:]
        return raw.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token; none for an id that the vocabulary lacks."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def spellings(self) -> list[bytes]:
        """The bytes of every token."""
        return [self.token_bytes(i) for i, _ in enumerate(self._vocab.pieces)]

    def special(self, token_id: int) -> bool:
        """True for a control token: a marker for the model, not text."""
        return token_id in self._vocab.special

    def piece(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty for an id that it lacks."""
        known = self._vocab.pieces[token_id] if 0 <= token_id < self.n_vocab else None
        return known or ""

    def token_id(self, piece: str) -> int | None:
        """The id of a token by its spelling in the vocabulary, such as "<|im_end|>"."""
        return self._vocab.encoder.token_id(piece)

    def _parts(self, text: str) -> Iterator[str]:
        """The text in parts whose ids, joined, are its ids.

        The library holds some 300 bytes a token while it encodes, so a long text goes in parts.
        """
        start, cut = 0, self._vocab.cut
        while (left := len(text) - start) > 2 * _PART:
            gap = _BETWEEN_WORDS.search(text, start + _PART, start + MAX_UNBROKEN) if cut != "none" else None
            if gap is None and left <= MAX_UNBROKEN:
                break
            if gap is None:
                raise UsageError(
                    f"a text of {left:,} characters without a place to cut it, the limit is {MAX_UNBROKEN:,}",
                    hint="it needs spaces between words" if cut != "none" else "",
                )
            yield text[start : gap.start()]
            start = gap.start() if cut == "before" else gap.end()
        yield text[start:]

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        try:
            return self._vocab.encoder.encode(text, parse_special)
        except BaseException as error:  # a panic of the library is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise ModelError(f"the model's tokenizer cannot read this text: {error}") from None

    def _spell(self, token_id: int) -> bytes:
        piece = self.piece(token_id)
        if token_id in self._vocab.added:
            return piece.encode()
        if self._vocab.kind == "bytes":
            try:
                return piece.translate(_TO_BYTES).encode("latin-1")
            except UnicodeEncodeError:
                return piece.encode()
        if self._vocab.kind == "words":
            return piece[2:].encode() if piece.startswith("##") else b" " + piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes((int(piece[3:5], 16),))
            except ValueError:
                return piece.encode()
        return piece.replace("▁", " ").encode()
