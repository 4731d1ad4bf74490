"""`kvasir cache ls | pin | unpin | purge`: the prefixes that are kept on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import time

from kvasir.backends.base import BLOCK
from kvasir.chat import ChatRequest, Message
from kvasir.cli.parser import Parser
from kvasir.cli.terminal import cells, human_bytes, human_time
from kvasir.engine.segments import Record, scan, segments_of
from kvasir.engine.shelf import (
    Pin,
    cache_folder,
    change_pins,
    folders,
    next_key,
    purge,
    read_about,
    read_pins,
    root_key,
)
from kvasir.errors import CapacityError, KvasirError, ModelError, UsageError
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from kvasir.settings import Settings
from kvasir.store.names import find

SHOWN = 12  # digits of a pin's name


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises UsageError, ModelError, CapacityError."""
    it = Parser("cache", "Prefixes kept on disk: what was computed of prompts and answers, by model.")
    it.add_argument("verb", choices=("ls", "list", "pin", "unpin", "purge"), help="what to do")
    it.add_argument("model", nargs="?", help="of this model alone")
    it.add_argument("text", nargs="?", help="pin: how prompts begin, or - to read it; unpin: which one")
    it.add_argument("--file", help="pin: a file with the text")
    it.add_argument(
        "--raw", action="store_true", help="pin: the text as it is, and not as a system message of a chat"
    )
    values = it.read(words)
    if values.verb in ("ls", "list"):
        print(table(values.model))
    elif values.verb == "purge":
        _purge(values.model)
    elif values.model is None:
        raise UsageError(f"which model? `kvasir cache {values.verb} MODEL`")
    elif values.verb == "pin":
        _pin(values.model, _text(values.text, values.file), values.raw, settings)
    else:
        _unpin(values.model, values.text)
    return 0


def table(model: str | None = None) -> str:
    """Model, prefixes, tokens, size, pins and last use of each folder, with its pins below."""
    rows = [("MODEL", "PREFIXES", "TOKENS", "SIZE", "PINNED", "LAST USED")]
    pins = list[tuple[int, Pin]]()
    for folder in _folders_of(model):
        paths = list(segments_of(folder))
        records = _blocks(record for path in paths for record in scan(path, None)[0])
        parents = {record.parent for record in records}
        found = read_pins(folder)
        used = max((path.stat().st_mtime for path in paths), default=folder.stat().st_mtime)
        rows.append(
            (
                str(read_about(folder).get("name", folder.name[:SHOWN])),
                str(sum(record.key not in parents for record in records)),
                f"{sum(len(record.tokens) for record in records):,}",
                human_bytes(sum(path.stat().st_size for path in paths)),
                str(len(found)),
                human_time(max(0.0, time() - used)),
            )
        )
        pins += [(len(rows) - 1, pin) for pin in found.values()]
    widths = [max(cells(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for n, row in enumerate(rows):
        lines.append("    ".join(c + " " * (w - cells(c)) for c, w in zip(row, widths, strict=True)).rstrip())
        lines += [_line(pin) for at, pin in pins if at == n]
    return "\n".join(lines)


def _line(pin: Pin) -> str:
    left_s = None if pin.until is None else pin.until - time()
    until = "until unpinned" if left_s is None else f"{max(1, round(left_s / 60))} minutes more"
    return f"  pinned {pin.name[:SHOWN]}  {pin.n_tokens:,} tokens, {until}  {pin.text}".rstrip()


def _blocks(records: Iterable[Record]) -> list[Record]:
    """Each block once, and recurrent states left out."""
    found = {record.key: record for record in records}
    return [record for record in found.values() if record.key == next_key(record.parent, record.tokens)]


def _folders_of(model: str | None) -> list[Path]:
    """The folders of a model, of all its versions; of every one for None.  Raises ModelError."""
    every = folders(cache_folder())
    if model is None:
        return every
    try:
        path = os.path.realpath(find(model).path)
    except ModelError:  # its file may be gone
        own = [f for f in every if read_about(f).get("name") in (model, f"{model}:latest")]
        if not own:
            raise
        return own
    return [folder for folder in every if read_about(folder).get("path") == path]


def _purge(model: str | None) -> None:
    found = _folders_of(model)
    try:
        freed = sum(purge(folder) for folder in found)
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be removed: {error.strerror}") from None
    print(f"freed {human_bytes(freed)} of {len(found)} model{'s' if len(found) != 1 else ''}")


def _text(given: str | None, file: str | None) -> str:
    if (given is None) == (file is None):
        raise UsageError("give the text to pin, or --file", hint="`kvasir cache pin MODEL TEXT`")
    try:
        text = Path(file).read_text() if file else sys.stdin.read() if given == "-" else given
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    return text or ""


def _pin(name: str, text: str, raw: bool, settings: Settings) -> None:
    """Computes the beginning that all prompts with this text share, and keeps it."""
    if not settings.cache_disk_gb:
        raise UsageError("nothing is kept on disk: KVASIR_CACHE_DISK_GB is 0", hint="set it, or leave it out")
    model = Model.load(name, threads=settings.threads, kv_format=settings.kv)
    try:
        disk = model.disk
        if disk is None:
            raise ModelError(f"nothing is kept of {model.info.name} on disk", hint="it has no past to keep")
        tokens = _shared(model, text, raw)
        whole = tokens[: len(tokens) // BLOCK * BLOCK]
        if not whole:
            raise UsageError(f"the text has {len(tokens)} tokens, and whole blocks of {BLOCK} are kept")
        params = SamplingParams(temperature=0, max_tokens=1)
        for _ in model.submit(ChatRequest(params, prompt=tuple(whole), add_special_tokens=False, pin=True)):
            pass
    finally:
        model.close()
    keys, key = list[str](), root_key(disk.shelf.model, settings.kv, "", "")
    for at in range(0, len(whole), BLOCK):
        key = next_key(key, tuple(whole[at : at + BLOCK]))
        keys.append(key.hex())
    there = {r.key.hex() for path in segments_of(disk.shelf.folder) for r in scan(path, disk.shelf.model)[0]}
    if not there.issuperset(keys):
        raise CapacityError(
            f"{len(set(keys) - there)} of {len(keys)} blocks could not be written",
            hint="another process may run the model (`pin` in a request to it does the same), or the disk or "
            "the quota may be full (KVASIR_CACHE_DISK_GB)",
        )
    pin = Pin(tuple(keys), len(whole), None, " ".join(text.split())[:60])
    change_pins(disk.shelf.folder, lambda pins: pins.update({pin.name: pin}))
    print(f"pinned {pin.name[:SHOWN]}: {len(whole):,} tokens of {model.info.name}")


def _shared(model: Model, text: str, raw: bool) -> list[int]:
    """Token ids that all prompts have in common whose system message is `text`; of the text itself with
    `raw`, or where the model has no template.
    """

    def tokens(request: ChatRequest) -> list[int]:
        return model.prompter.tokens(request, sys.maxsize)[0]

    params = SamplingParams()
    if raw or not model.has_template:
        return tokens(ChatRequest(params, prompt=text))
    one, other = (
        tokens(ChatRequest(params, messages=(Message("system", text), Message("user", question))))
        for question in ("Why?", "0 times")
    )
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _unpin(model: str, name: str | None) -> None:
    """Ends the pins of a model whose names begin with `name`, or all.  Raises UsageError where none do."""
    ended = 0
    for folder in _folders_of(model):
        before = len(read_pins(folder))
        try:
            left = change_pins(folder, lambda pins: _forget(pins, name or ""))
        except OSError as error:
            raise KvasirError(f"{folder} cannot be written: {error.strerror}") from None
        ended += before - len(left)
    if not ended:
        raise UsageError(
            f"{model} has no such pin" if name else f"{model} has no pins",
            hint="`kvasir cache ls` shows them",
        )
    print(f"ended {ended} pin{'s' if ended > 1 else ''}")


def _forget(pins: dict[str, Pin], name: str) -> None:
    for known in [known for known in pins if known.startswith(name)]:
        del pins[known]
