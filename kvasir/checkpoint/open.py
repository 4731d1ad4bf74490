"""Opens a model from disk: a GGUF file or a folder with safetensors, behind one face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.files import WANTED, inside, map_file, read_json, regular_size
from kvasir.checkpoint.gguf import MAGIC, read_gguf
from kvasir.checkpoint.gguf_names import gguf_config
from kvasir.checkpoint.safetensors import read_index, read_safetensors
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError, ModelError
from kvasir.records import dataclass

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What else a folder may bring that Kvasir reads.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.  Nothing of its weights is read before it is used.

    `tensors` go by the file's own names.  `metadata`: GGUF's key values (see `Gguf`), empty for a folder.
    `folder`: the files beside the weights by name ("tokenizer.json", ...) where present; empty for GGUF.
    """

    path: Path
    kind: Literal["gguf", "safetensors"]
    config: Config
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)
    folder: Mapping[str, Path] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.n_bytes for t in self.tensors.values())


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The model at `path`: a GGUF file (of a split one the first part), a folder, or a .safetensors file.

    Raises ModelError when no model is there, CheckpointError when one is and it cannot be read.
    """
    path = Path(path)
    if "\0" in str(path):
        raise ModelError("the path of the model has a NUL byte in it", hint="check the path")
    if path.is_dir():
        return _open_folder(path)
    regular_size(path)
    if path.suffix.lower() in PICKLES:
        raise _pickle(path)
    head = bytes(map_file(path)[:9])
    if head[:4] == MAGIC or path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    if head[8:9] == b"{" or path.suffix.lower() == ".safetensors":
        return _open_safetensors(path.parent, path, {path.name: path})
    if head[:2] == b"\x80\x02" or head[:4] == b"PK\x03\x04":
        raise _pickle(path)
    raise ModelError(f"{path.name}: neither GGUF nor safetensors ({regular_size(path)} bytes)", hint=WANTED)


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    return Checkpoint(path, "gguf", gguf_config(file, path.name), file.tensors, file.metadata)


def _open_folder(folder: Path) -> Checkpoint:
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError as e:
        raise ModelError(f"{folder}: cannot be listed: {e.strerror}", hint="check the permissions") from None
    weights = [n for n in names if n.endswith(".safetensors")]
    if SINGLE in names:
        return _open_safetensors(folder, folder, {SINGLE: inside(folder, SINGLE)})
    if INDEX in names:
        return _open_safetensors(folder, folder, None)
    if len(weights) == 1:
        return _open_safetensors(folder, folder, {weights[0]: inside(folder, weights[0])})
    if weights:
        raise ModelError(
            f"{folder}: {len(weights)} .safetensors files and no {INDEX}",
            hint="give the one file that is meant, or download the index too",
        )
    ggufs = [n for n in names if n.endswith(".gguf")]
    if len(ggufs) == 1 or (ggufs and "-00001-of-" in ggufs[0]):
        return _open_gguf(folder / ggufs[0])
    if ggufs:
        raise ModelError(f"{folder}: has {len(ggufs)} GGUF files", hint=f"name one, as {folder / ggufs[0]}")
    pickled = [n for n in names if n.endswith(PICKLES)]
    if pickled:
        raise _pickle(folder / pickled[0])
    raise ModelError(f"{folder}: no model in this folder", hint=WANTED)


def _open_safetensors(folder: Path, path: Path, files: Mapping[str, Path] | None) -> Checkpoint:
    """`files`: the weights by name; None where the folder's index says which."""
    if not (folder / CONFIG).exists():
        raise ModelError(
            f"{path}: no {CONFIG} beside the weights", hint="it says what the weights mean; download it"
        )
    values = read_json(inside(folder, CONFIG))
    config = Config(values, CONFIG, _architecture(values))
    tensors: dict[str, Tensor] = {}
    if files is None:
        tensors = read_index(folder, INDEX)
    else:
        for file in files.values():
            tensors |= read_safetensors(file)
    beside = {n: inside(folder, n) for n in BESIDE if (folder / n).exists()}
    return Checkpoint(path, "safetensors", config, tensors, {}, beside)


def _architecture(values: Mapping[str, object]) -> str:
    """`architectures[0]`, or else `model_type`."""
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and names else values.get("model_type")
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise CheckpointError(f"{CONFIG}: says neither architectures nor model_type", hint="is it a model's?")
    return name


def _pickle(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: a pickle, which can run any code when it is read, and so Kvasir never reads one",
        hint="use the model's .safetensors or GGUF files",
    )
