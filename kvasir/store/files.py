"""The files that a model consists of."""

from __future__ import annotations

import re
from pathlib import Path

PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
WEIGHTS = (".safetensors", ".gguf")


def parts(path: Path) -> list[Path]:
    """The files with the weights of the model at `path`."""
    if path.is_dir():
        return [p for p in path.iterdir() if p.suffix in WEIGHTS]
    if match := PART.search(path.name):
        return sorted(path.parent.glob(f"{_escaped(path.name[: match.start()])}-?????-of-{match[1]}.gguf"))
    return [path]


def _escaped(name: str) -> str:
    """`name` as a pattern of glob that only it matches."""
    return re.sub(r"([*?[])", r"[\1]", name)
