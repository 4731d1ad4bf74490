"""A vocabulary from the `tokenizer.ggml.*` keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import partial
from itertools import groupby
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from kvasir.errors import CheckpointError, ModelError
from kvasir.text.encoders import ByteLevelEncoder, Encoder, LibraryEncoder, StringTable, quick_bpe
from kvasir.text.pretokenizers import PRES, byte_level
from kvasir.text.vocab import MAX_TOKEN_BYTES, MAX_TOKENS, Cut, Kind, Vocab, end_ids

_KEY = "tokenizer.ggml."
_MAX_MERGE_LETTERS = (
    512  # a longer token is matched whole or not at all: its splits would cost its length squared
)
_MAX_SPLIT_LETTERS = 1 << 30


_CAPITALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class _Type(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


class _Keys:
    """The tokenizer's keys, checked for type as they are read.  Every method raises CheckpointError."""

    def __init__(self, metadata: Mapping[str, object]):
        self._metadata = metadata
        self.tokens = self._strings("tokens")
        if not self.tokens:
            raise CheckpointError(f"{_KEY}tokens is missing or empty", hint="the file has no vocabulary")
        self.types = self._numbers("token_type") or [int(_Type.NORMAL)] * len(self.tokens)
        self.scores = self._numbers("scores")
        for name, values in (("token_type", self.types), ("scores", self.scores)):
            if values and len(values) != len(self.tokens):
                raise CheckpointError(f"{_KEY}{name} has {len(values)} values for {len(self.tokens)} tokens")
        kinds = self.get("token_type")
        if not isinstance(kinds, np.ndarray) or len(kinds) != len(self.tokens):
            kinds = np.asarray(self.types, np.float64)
        self._kinds: npt.NDArray[Any] = kinds

    def get(self, name: str) -> object:
        return self._metadata.get(_KEY + name)

    def text(self, name: str, default: str) -> str:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise CheckpointError(f"{_KEY}{name} is a {type(value).__name__}, not a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, (bool, int)) or type(value).__name__ == "bool_":  # numpy's
            return bool(value)
        raise CheckpointError(f"{_KEY}{name} is a {type(value).__name__}, not a bool")

    def id(self, name: str) -> int | None:
        """A token id, None when the key is absent or stands for none (-1)."""
        value = self.get(name)
        if value is None:
            return None
        try:
            token_id = int(cast(Any, value))
        except (TypeError, ValueError):
            raise CheckpointError(f"{_KEY}{name} is a {type(value).__name__}, not a token id") from None
        if token_id in (-1, 0xFFFFFFFF):
            return None
        if not 0 <= token_id < len(self.tokens):
            raise CheckpointError(f"{_KEY}{name} is {token_id}, the vocabulary has {len(self.tokens)} tokens")
        return token_id

    def merges(self) -> list[tuple[str, str]]:
        """`merges`: two tokens with a space between; the first letter may itself be a space."""
        pairs = []
        for merge in self._strings("merges"):
            left, _, right = merge[1:].partition(" ")
            if not right:
                raise CheckpointError(f"{_KEY}merges has {merge[:40]!r}, which is not two tokens")
            pairs.append((merge[0] + left, right))
        return pairs

    def of_type(self, *types: _Type) -> list[int]:
        found: list[int] = np.flatnonzero(np.isin(self._kinds, list(map(int, types)))).tolist()
        return found

    def _strings(self, name: str) -> Sequence[str]:
        found = self.get(name)
        if isinstance(found, StringTable) and isinstance(found, Sequence):  # its reader has checked them
            return cast(Sequence[str], _few(found, _KEY + name))
        values = _listed(found, _KEY + name)
        if any(type(value) is not str for value in values):
            raise CheckpointError(f"{_KEY}{name} is not an array of strings")
        if values and len(max(values, key=len).encode("utf-8", "surrogatepass")) > MAX_TOKEN_BYTES:
            raise CheckpointError(f"{_KEY}{name} has a token of over {MAX_TOKEN_BYTES:,} bytes")
        return cast(Sequence[str], values)

    def _numbers(self, name: str) -> Sequence[float]:
        found = self.get(name)
        values = _listed(found, _KEY + name)
        if isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind in "iuf":
            return values
        if any(type(v) not in (int, float) for v in values):
            raise CheckpointError(f"{_KEY}{name} is not an array of numbers")
        return cast(Sequence[float], values)


def _listed(value: object, key: str) -> Sequence[Any]:
    if value is None:
        return ()
    tolist = getattr(value, "tolist", None)
    values = tolist() if tolist is not None else value
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise CheckpointError(f"{key} is a {type(value).__name__}, not an array")
    return list(_few(values, key))


def _few(values: Sequence[Any], key: str) -> Sequence[Any]:
    if len(values) > MAX_TOKENS:
        raise CheckpointError(f"{key} has {len(values):,} values, the limit is {MAX_TOKENS:,}")
    return values


def vocab_from_gguf(metadata: Mapping[str, object]) -> Vocab:
    """The vocabulary that the keys describe.  Raises CheckpointError, and ModelError for kinds we lack."""
    model = metadata.get(_KEY + "model")
    builders = {"gpt2": _byte_level, "llama": _pieces, "gemma4": _pieces, "t5": _unigram, "bert": _words}
    builder = builders.get(model) if isinstance(model, str) else None
    if builder is None:
        raise ModelError(f"unknown tokenizer model {model!r}", hint=f"known: {', '.join(sorted(builders))}")
    keys = _Keys(metadata)
    try:
        return builder(keys)
    except (ModelError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"the vocabulary is inconsistent: {error}") from None


def _byte_level(keys: _Keys) -> Vocab:
    name = keys.text("pre", "default")
    pre = PRES.get(name)
    if pre is None:
        raise ModelError(f"unknown pre-tokenizer {name!r}", hint=f"known: {', '.join(sorted(PRES))}")
    given = keys.get("merges")
    if given is None or (isinstance(given, Sequence) and not len(given)):
        raise CheckpointError(f"{_KEY}merges is missing or empty")
    words, normalizer = byte_level(pre), normalizers.NFC() if pre.nfc else None
    bpe = quick_bpe(keys.get("tokens"), given, pre.whole)

    def quick(special: Sequence[str], user: Sequence[str]) -> Encoder:
        return ByteLevelEncoder(bpe, words, normalizer, special, user)

    if bpe is not None:
        return _finish(quick, keys, "bytes", bos=pre.bos, cut="before")
    core = Core(models.BPE(_ids(keys), keys.merges(), ignore_merges=pre.whole, cache_capacity=10_000))
    core.pre_tokenizer = words
    if normalizer:
        core.normalizer = normalizer
    return _finish(partial(LibraryEncoder, core), keys, "bytes", bos=pre.bos, cut="before")


def _pieces(keys: _Keys) -> Vocab:
    """SentencePiece's BPE: a merge's rank is the score of what it makes; letters it lacks become bytes."""
    merges = keys.merges() or _scored_merges(keys)
    unknown = _unknown(keys)
    core = Core(
        models.BPE(
            _ids(keys), merges, unk_token=unknown, fuse_unk=True, byte_fallback=bool(keys.of_type(_Type.BYTE))
        )
    )
    gemma4 = keys.text("model", "") == "gemma4"
    prefixed = keys.flag("add_space_prefix", not gemma4)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if prefixed else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    # Where no token has a space after a letter, no merge crosses a word's start: words can go one by one.
    plain = keys.of_type(_Type.NORMAL, _Type.UNUSED)
    cut: Cut = "none"
    if not any("▁" in keys.tokens[i].lstrip("▁") for i in plain):
        core.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*|[^▁]+"), "isolated")
        cut = "at" if prefixed else "before"
    return _finish(partial(LibraryEncoder, core), keys, "pieces", bos=True, cut=cut, strips_space=prefixed)


def _unigram(keys: _Keys) -> Vocab:
    unknown_id = keys.id("unknown_token_id")
    pieces = list(zip(keys.tokens, keys.scores or [0.0] * len(keys.tokens), strict=True))
    core = Core(models.Unigram(pieces, unknown_id, bool(keys.of_type(_Type.BYTE))))
    steps: list[normalizers.Normalizer] = []
    charsmap = _listed(keys.get("precompiled_charsmap"), _KEY + "precompiled_charsmap")
    if charsmap:
        steps.append(normalizers.Precompiled(bytes(int(b) & 0xFF for b in charsmap)))
    if keys.flag("remove_extra_whitespaces", True):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    core.normalizer = normalizers.Sequence(steps)
    prefixed = keys.flag("add_space_prefix", True)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefixed else "never")
    return _finish(partial(LibraryEncoder, core), keys, "pieces", eos=True, strips_space=prefixed)


def _words(keys: _Keys) -> Vocab:
    """WordPiece.  The converter writes ▁ before what starts a word and drops the ## of what continues one."""
    control = set(keys.of_type(_Type.CONTROL, _Type.UNKNOWN))
    marked = any(token.startswith("▁") for token in keys.tokens)

    def original(token_id: int, token: str) -> str:
        if not marked or token_id in control or (token.startswith("[") and token.endswith("]")):
            return token
        return token[1:] if token.startswith("▁") else "##" + token

    spelled = [original(i, token) for i, token in enumerate(keys.tokens)]
    capitals = any(set(t) & _CAPITALS for i, t in enumerate(spelled) if i not in control and t[:1] != "[")
    lowercase = keys.flag("normalizer.lowercase", not capitals)
    unknown = _unknown(keys) or "[UNK]"
    core = Core(models.WordPiece({t: i for i, t in enumerate(spelled) if t}, unk_token=unknown))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finish(
        partial(LibraryEncoder, core), keys, "words", spelled, bos=True, sep=True, strips_space=True
    )


def _finish(
    make: Callable[[Sequence[str], Sequence[str]], Encoder],
    keys: _Keys,
    kind: Kind,
    spelled: Sequence[str] | None = None,
    *,
    bos: bool = False,
    eos: bool = False,
    sep: bool = False,
    cut: Cut = "none",
    strips_space: bool = False,
) -> Vocab:
    """Adds what is matched whole, and what goes around a text; `bos`, `eos`, `sep`: the kind's defaults."""
    spelled = spelled if spelled is not None else keys.tokens
    control = [i for i in keys.of_type(_Type.CONTROL, _Type.UNKNOWN) if spelled[i]]
    user = [i for i in keys.of_type(_Type.USER) if spelled[i]]
    encoder = make([spelled[i] for i in control], [spelled[i] for i in user])
    bos_id = keys.id("bos_token_id")
    eos_id = keys.id("eos_token_id")
    if sep:  # BERT: CLS and SEP, under names that changed over time; the key's spelling is the format's
        bos_id = _first(bos_id, keys.id("cls_token_id"), encoder.token_id("[CLS]"))
        eos_id = _first(
            keys.id("seperator_token_id"), keys.id("sep_token_id"), eos_id, encoder.token_id("[SEP]")
        )
    named = [keys.id(f"{name}_token_id") for name in ("eos", "eot", "eom")] + ([eos_id] if sep else [])
    listed = [int(i) for i in _listed(keys.get("eos_token_ids"), _KEY + "eos_token_ids")]
    prefix = (bos_id,) if bos_id is not None and keys.flag("add_bos_token", bos) else ()
    suffix = (eos_id,) if eos_id is not None and keys.flag("add_eos_token", eos or sep) else ()
    special = {spelled[i]: i for i in control}
    return Vocab(
        encoder=encoder,
        pieces=spelled,
        kind=kind,
        added=frozenset(control) | frozenset(user),
        special=frozenset(control),
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=end_ids([i for i in [*named, *listed] if i is not None], special),
        prefix=prefix,
        suffix=suffix,
        strips_space=strips_space,
        cut=cut if not any(" " in spelled[i].strip() for i in (*control, *user)) else "none",
    )


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _ids(keys: _Keys) -> dict[str, int]:
    """Token to id; of two equal tokens the first is reached."""
    ids: dict[str, int] = {token: i for i, token in enumerate(keys.tokens)}
    if len(ids) < len(keys.tokens):
        ids = {token: i for i, token in reversed(list(enumerate(keys.tokens)))}
    ids.pop("", None)
    return ids


def _unknown(keys: _Keys) -> str | None:
    unknown_id = _first(keys.id("unknown_token_id"), *keys.of_type(_Type.UNKNOWN)[:1])
    return None if unknown_id is None else keys.tokens[unknown_id] or None


def _scored_merges(keys: _Keys) -> list[tuple[str, str]]:
    """The merges a SentencePiece vocabulary implies: every split of a token into two tokens.

    Ranked as the usual conversion to tokenizer.json ranks them: by the score of what a merge makes, then the
    longer left part, then the longer right part, first.
    """
    if not keys.scores:
        raise CheckpointError(f"{_KEY}scores is missing: this vocabulary has neither merges nor scores")
    mergeable = [keys.tokens[i] for i in keys.of_type(_Type.NORMAL, _Type.USER, _Type.UNUSED)]
    known = frozenset(mergeable)
    if sum(min(len(token), _MAX_MERGE_LETTERS) ** 2 for token in known) > _MAX_SPLIT_LETTERS:
        raise CheckpointError("the vocabulary has too many long tokens")
    score_of = dict(zip(keys.tokens, keys.scores, strict=True))
    merges: list[tuple[str, str]] = []
    for _, tied in groupby(sorted(known, key=score_of.__getitem__, reverse=True), key=score_of.__getitem__):
        tokens = list(tied)
        splits = [split for token in tokens for split in _splits(token, known)]
        merges += splits if len(tokens) == 1 else sorted(splits, key=_longest_first)
    return merges


def _splits(token: str, known: frozenset[str]) -> list[tuple[str, str]]:
    """The splits of a token into two known ones, the longest left part first."""
    if len(token) > _MAX_MERGE_LETTERS:
        return []
    cuts = range(len(token) - 1, 0, -1)
    return [(token[:at], token[at:]) for at in cuts if token[:at] in known and token[at:] in known]


def _longest_first(split: tuple[str, str]) -> tuple[int, int, tuple[str, str]]:
    return -len(split[0]), -len(split[1]), split
