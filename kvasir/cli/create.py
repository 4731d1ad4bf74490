"""`kvasir create NAME -f Modelfile`: a model made of another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kvasir.api.create import Wish, make, read_words
from kvasir.cli.parser import Parser
from kvasir.cli.remote import forget
from kvasir.errors import UsageError
from kvasir.settings import Settings
from kvasir.store.modelfile import Modelfile, parse_modelfile

DEFAULT = "Modelfile"
WHY_NOT = {
    "DRAFT": "a draft model goes with `kvasir run --draft`",
    "RENDERER": "the model's own template, or TEMPLATE, writes its prompts",
    "PARSER": "what reads an answer is chosen by the model's template",
}


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises KvasirError, and leaves nothing then."""
    it = Parser("create", "Make a model of another, as a Modelfile says.")
    it.add_argument("name", help="its name: NAME or NAME:TAG")
    it.add_argument("-f", "--file", metavar="PATH", help="the Modelfile; - reads standard input")
    it.add_argument("-q", "--quantize", metavar="FORMAT", help="refused: weights stay as they are")
    values = it.read(words)
    if values.quantize:
        raise UsageError("--quantize is not supported: Kvasir runs weights in the format that they have")
    text, folder = read(values.file)
    for status in make(wish_of(values.name, parse_modelfile(text), folder)):
        print(status, file=sys.stderr, flush=True)
    forget(settings, values.name)
    return 0


def read(given: str | None) -> tuple[str, Path]:
    """The Modelfile's text, and the folder that its paths begin at.  Raises UsageError."""
    if given == "-":
        return sys.stdin.read(), Path.cwd()
    path = Path(given or DEFAULT).expanduser()
    try:
        return path.read_text("utf-8"), path.resolve().parent
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path} cannot be read: {why}", hint="name a Modelfile with -f") from None


def wish_of(name: str, said: Modelfile, folder: Path) -> Wish:
    """What a Modelfile wants.  A FROM that is a path begins at the Modelfile's folder.  Raises UsageError."""
    if len(said.bases) > 1:
        raise UsageError("the Modelfile has several FROM lines", hint="a model is made of one other")
    for word, value in said.others:
        if word in WHY_NOT:
            raise UsageError(f"{word} {value[:60]} is not supported: {WHY_NOT[word]}")
    adapters = [value for word, value in said.others if word == "ADAPTER"]
    if len(adapters) > 1:
        raise UsageError("the Modelfile has several ADAPTER lines", hint="a model answers with one adapter")
    base = said.bases[0]
    if base.startswith((".", "~")) or base.endswith((".gguf", ".safetensors")):
        base = str((folder / Path(base).expanduser()).resolve())
    return Wish(
        name=name,
        base=base,
        template=said.template or None,
        system=said.system or None,
        parameters=read_words(said.parameters),
        messages=said.messages or None,
        license=said.license,
        adapter=str((folder / Path(adapters[0]).expanduser()).resolve()) if adapters else "",
    )
