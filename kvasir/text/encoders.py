"""From text to token ids: by the tokenizers library, and a quick way for byte-level vocabularies of GGUF."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from kvasir.native import extension


class Encoder(Protocol):
    """Turns text into ids, adding none."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """The ids; with `parse_special` the special tokens that the text spells are themselves."""
        ...

    def token_id(self, piece: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        ...


@runtime_checkable
class StringTable(Protocol):
    """Strings as they lie in a GGUF file: each behind the eight bytes of its length.  `ends`: of each."""

    data: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]


class LibraryEncoder:
    """The library's tokenizer, with the tokens that are matched whole added to it.  Thread-safe."""

    def __init__(self, core: Core, special: Sequence[str] = (), user: Sequence[str] = ()):
        core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
        core.add_tokens([AddedToken(t, normalized=False, special=False) for t in user])
        self.core, self._lock = core, threading.Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:
            self.core.encode_special_tokens = not parse_special
            ids: list[int] = self.core.encode(text, add_special_tokens=False).ids
            return ids

    def token_id(self, piece: str) -> int | None:
        found: int | None = self.core.token_to_id(piece)
        return found


class ByteLevelEncoder:
    """The same for byte-level BPE: the library cuts the text into words, the extension joins their letters.

    The library would copy every token and merge into tables of its own, which takes most of a second for a
    vocabulary of 128,000; `bpe` reads them where the file is mapped.  Thread-safe.
    """

    def __init__(
        self,
        bpe: Any,
        words: pre_tokenizers.PreTokenizer,
        normalizer: normalizers.Normalizer | None,
        special: Sequence[str],
        user: Sequence[str],
    ):
        self._bpe, self._words, self._normalizer = bpe, words, normalizer
        self._special = frozenset(special)
        self._added: Mapping[str, int] = {t: bpe.find(t) for t in (*special, *user)}
        self._lengths = sorted({len(t) for t in self._added}, reverse=True)
        letters = "".join(sorted({t[0] for t in self._added}))
        # Where one may begin.  One pattern of them all would take longer to compile than a model to load.
        self._begins = re.compile(f"[{re.escape(letters)}]") if letters else None

    def encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        done = 0
        for begin, token in self._found(text):
            if parse_special or token not in self._special:
                ids += self._plain(text[done:begin])
                ids.append(self._added[token])
                done = begin + len(token)
        return ids + self._plain(text[done:])

    def _found(self, text: str) -> Iterator[tuple[int, str]]:
        """The added tokens in the text, from the left; of those that begin at one place the longest."""
        at = 0
        while self._begins is not None and (start := self._begins.search(text, at)):
            at = start.start()
            pieces = (text[at : at + n] for n in self._lengths)
            token = next((piece for piece in pieces if piece in self._added), None)
            if token is not None:
                yield at, token
            at += len(token or " ")

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        if self._normalizer is not None and not text.isascii():
            text = self._normalizer.normalize_str(text)
        ids: list[int] = self._bpe.encode([word for word, _ in self._words.pre_tokenize_str(text)])
        return ids

    def token_id(self, piece: str) -> int | None:
        found: int = self._bpe.find(piece)
        return None if found < 0 else found


def quick_bpe(tokens: object, merges: object, whole: bool) -> Any:
    """The extension's BPE over two string tables of a file.

    None where that is not what they are, or where the library would find fault with them: it shall say what.
    """
    kernels = extension()
    if kernels is None or not isinstance(tokens, StringTable) or not isinstance(merges, StringTable):
        return None
    if kernels.first_not_utf8(tokens.data, tokens.ends) >= 0:
        return None
    try:
        return kernels.Bpe(tokens.data, tokens.ends, merges.data, merges.ends, whole)
    except ValueError:
        return None
