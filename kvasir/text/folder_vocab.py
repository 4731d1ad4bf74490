"""A vocabulary from the files of a Hugging Face folder: tokenizer.json and what stands beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core

from kvasir.errors import CheckpointError, ModelError
from kvasir.text.encoders import LibraryEncoder
from kvasir.text.pretokenizers import KNOWN_PATTERNS
from kvasir.text.vocab import MAX_TOKEN_BYTES, MAX_TOKENS, Cut, Kind, Vocab, end_ids

MAX_FILE_BYTES = 256 << 20
_MAX_PATTERN = 20_000
# A repeated group that holds a repetition: (a+)+ takes time exponential in the text's length.
_QUANTIFIER = re.compile(r"[*+]|\{\d*,\d*\}|\{\d{3,}\}")


def vocab_from_folder(
    tokenizer_json: Path,
    tokenizer_config: Path | None,
    generation_config: Path | None,
    special_tokens_map: Path | None,
) -> Vocab:
    """The vocabulary of the files; only the first must be there.  Raises CheckpointError, ModelError."""
    core = _load(tokenizer_json)
    config = {**_read_json(special_tokens_map), **_read_json(tokenizer_config)}
    parts = {name: _state(getattr(core, name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
    for pattern in _patterns(parts):
        check_pattern(pattern, tokenizer_json.name)
    kind, strips = _spelling(parts["decoder"])
    pieces = _pieces(core, tokenizer_json.name)
    added = core.get_added_tokens_decoder()
    special = {token.content: i for i, token in added.items() if token.special}
    bos_id = _named(core, config.get("bos_token"))
    eos_id = _named(core, config.get("eos_token"))
    prefix, suffix = _around(core)
    if config.get("add_bos_token") is True and bos_id is not None and bos_id not in prefix:
        prefix = (bos_id, *prefix)
    if config.get("add_bos_token") is False:
        prefix = tuple(i for i in prefix if i != bos_id)
    if config.get("add_eos_token") is True and eos_id is not None and eos_id not in suffix:
        suffix = (*suffix, eos_id)
    if config.get("add_eos_token") is False:
        suffix = tuple(i for i in suffix if i != eos_id)
    generation = _read_json(generation_config)
    listed = generation.get("eos_token_id")
    ends = [i for i in (listed if isinstance(listed, list) else [listed]) if isinstance(i, int)]
    if bos_id is None and isinstance(generation.get("bos_token_id"), int):
        bos_id = generation["bos_token_id"]
    return Vocab(
        encoder=LibraryEncoder(core),
        pieces=pieces,
        kind=kind,
        added=frozenset(added),
        special=frozenset(special.values()),
        bos_id=bos_id,
        eos_id=eos_id if eos_id is not None else next(iter(ends), None),
        eos_ids=end_ids([i for i in [*ends, eos_id] if i is not None and 0 <= i < len(pieces)], special),
        prefix=prefix,
        suffix=suffix,
        strips_space=strips,
        cut=_cut(kind, parts, [token.content for token in added.values()]),
    )


def check_pattern(pattern: str, where: str) -> None:
    """Refuses, with ModelError, a pattern that could take time exponential in the length of a text."""
    if pattern in KNOWN_PATTERNS:
        return
    hint = "a text could keep it busy for ever; the pattern is: " + pattern[:80]
    if len(pattern) > _MAX_PATTERN:
        raise ModelError(f"{where}: a pattern of {len(pattern):,} letters", hint=hint)
    bare = re.sub(r"\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]", "c", re.sub(r"\\[pP]\{[^}]*\}", "c", pattern))
    if re.search(r"\\(?:[1-9]|k<|g<)", bare):
        raise ModelError(f"{where}: a pattern with back-references", hint=hint)
    bare = re.sub(r"\\.", "c", bare)
    opened: list[bool] = []  # for each open group: does it hold a repetition so far?
    at = 0
    while at < len(bare):
        if bare[at] == "(":
            opened.append(False)
        elif bare[at] == ")" and opened:
            repeats = opened.pop()
            if _QUANTIFIER.match(bare, at + 1) and repeats:
                raise ModelError(f"{where}: a pattern repeats a repetition", hint=hint)
            if opened:
                opened[-1] = opened[-1] or repeats or bool(_QUANTIFIER.match(bare, at + 1))
        elif _QUANTIFIER.match(bare, at) and opened and bare[at - 1] != "(":
            opened[-1] = True
        at += 1


def _load(path: Path) -> Core:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path.name} has {size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
        core = Core.from_str(path.read_text("utf-8"))
    except CheckpointError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from None
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise CheckpointError(f"{path.name} is not a tokenizer we can read: {error}") from None
    core.no_truncation()
    core.no_padding()
    return core


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path.name} is over {MAX_FILE_BYTES:,} bytes")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is not a JSON object")
    return value


def _state(part: Any) -> Any:
    """A part of the tokenizer as the JSON it came from."""
    return None if part is None else json.loads(part.__getstate__())


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "Regex" and isinstance(inner, str):
                yield inner
            else:
                yield from _patterns(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _patterns(inner)


def _spelling(decoder: Any) -> tuple[Kind, bool]:
    """How pieces become bytes, and whether a text's first space goes: what the decoder says."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        return "bytes", False
    if "WordPiece" in kinds:
        return "words", True
    if "Metaspace" in kinds:
        scheme = kinds["Metaspace"].get("prepend_scheme")
        return "pieces", scheme != "never" and kinds["Metaspace"].get("add_prefix_space", True)
    if "ByteFallback" in kinds or "Replace" in kinds:
        return "pieces", kinds.get("Strip", {}).get("start", 0) > 0
    raise ModelError(f"the tokenizer's decoder is of an unknown kind: {sorted(kinds) or None}")


def _pieces(core: Core, name: str) -> list[str | None]:
    ids = core.get_vocab(with_added_tokens=True)
    n_vocab = max(ids.values(), default=-1) + 1
    if not 0 < n_vocab <= MAX_TOKENS:
        raise CheckpointError(f"{name} has token ids up to {n_vocab - 1:,}")
    if len(max(ids, key=len).encode()) > MAX_TOKEN_BYTES:
        raise CheckpointError(f"{name} has a token of over {MAX_TOKEN_BYTES:,} bytes")
    pieces: list[str | None] = [None] * n_vocab
    for piece, token_id in ids.items():
        pieces[token_id] = piece
    return pieces


def _named(core: Core, value: Any) -> int | None:
    """The id of a token that a config names, as text or as an object with `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    found: int | None = core.token_to_id(content) if isinstance(content, str) else None
    return found


def _around(core: Core) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text."""
    bare = core.encode("a", add_special_tokens=False).ids
    full = core.encode("a", add_special_tokens=True).ids
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return tuple(full[:at]), tuple(full[at + len(bare) :])
    return (), ()


def _cut(kind: Kind, parts: Mapping[str, Any], added: list[str]) -> Cut:
    """Whether a text may be cut before a space between letters: known patterns, and no such added token."""
    pre = parts["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    patterns = set(_patterns(pre))
    built_in = any(step.get("use_regex") and not step.get("add_prefix_space") for step in steps)
    known = (bool(patterns) or built_in) and patterns <= KNOWN_PATTERNS
    return (
        "before" if kind == "bytes" and known and not any(" " in text.strip() for text in added) else "none"
    )
