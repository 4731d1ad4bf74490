"""safetensors files: a JSON header with each tensor's type, shape and place, then the bytes; mapped.

The header is checked whole before a view is made: types known, shape x type = bytes, extents inside the file,
side by side without overlap or gap, no key twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvasir.checkpoint.files import inside, map_file, parse_json, read_json
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError
from kvasir.quant.formats import FORMATS, Format

HEADER_LIMIT_BYTES = 100_000_000
MAX_DIMS = 8
MAX_NAME = 512
MAX_SHARDS = 4096
# Formats that both safetensors and the table name alike; blocks never occur here.
READ = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name: views of the map.  One without dimensions gets the shape (1,)."""
    data = map_file(path)
    size = len(data)
    if size < 8:
        raise CheckpointError(f"{path.name}: not a safetensors file: {size} bytes")
    n = int.from_bytes(data[:8].tobytes(), "little")
    if n > HEADER_LIMIT_BYTES:
        raise CheckpointError(
            f"{path.name}: not a safetensors file: a header of {n} bytes, over {HEADER_LIMIT_BYTES}"
        )
    if 8 + n > size:
        raise CheckpointError(
            f"{path.name}: cut short in the header: {8 + n - size} bytes are missing (the file has {size})",
            hint="the download is incomplete",
        )
    if n < 2 or data[8] != ord("{"):
        raise CheckpointError(f"{path.name}: not a safetensors file: no header")
    header = parse_json(data[8 : 8 + n].tobytes(), f"{path.name}: header")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise CheckpointError(f"{path.name}: __metadata__ is not a table of texts")
    return _views(data[8 + n :], header, path.name)


def _views(data: npt.NDArray[np.uint8], header: Mapping[str, object], where: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    extents: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise CheckpointError(f"{where}: a tensor has the name {name[:80]!r}")
        format, shape, begin, end = _entry(entry, f"{where}: {name}")
        if end > len(data):
            raise CheckpointError(
                f"{where}: cut short: {name} ends at byte {end} of the data, which has {len(data)}: "
                f"{end - len(data)} bytes are missing",
                hint="the download is incomplete, or the header lies",
            )
        row = format.row_bytes(shape[-1])
        tensors[name] = Tensor(name, format, shape, data[begin:end].reshape(math.prod(shape[:-1]), row))
        extents.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(extents):
        if begin != at:
            what = (
                "overlaps another tensor" if begin < at else f"leaves a gap of {begin - at} bytes before it"
            )
            raise CheckpointError(f"{where}: {name} {what}", hint="the header is damaged")
        at = end
    if at != len(data):
        raise CheckpointError(f"{where}: {len(data) - at} bytes after the last tensor belong to none")
    return tensors


def _entry(entry: object, what: str) -> tuple[Format, tuple[int, ...], int, int]:
    """Format, shape, begin and end of a tensor, checked against each other."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{what}: not a description of a tensor (dtype, shape, data_offsets)")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in READ:
        raise CheckpointError(
            f"{what}: has the type {dtype!r:.40}, which Kvasir does not read",
            hint=f"it reads {', '.join(READ)}",
        )
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(_size(d) and d > 0 for d in shape):
        raise CheckpointError(f"{what}: has the shape {shape!r:.80}, not up to {MAX_DIMS} sizes above 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_size(o) for o in offsets):
        raise CheckpointError(f"{what}: has the data_offsets {offsets!r:.80}")
    format, dims = FORMATS[dtype], tuple(shape) or (1,)
    begin, end = offsets
    wanted = math.prod(dims) * format.block_bytes
    if end - begin != wanted:
        raise CheckpointError(
            f"{what}: {dtype} {list(dims)} is {wanted} bytes, data_offsets give {end - begin}"
        )
    return format, dims, begin, end


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def read_index(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a sharded model.  The index must name exactly the tensors that its shards hold."""
    index = read_json(inside(folder, name))
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{name}: has no weight_map")
    by_shard: dict[str, set[str]] = {}
    for tensor, shard in places.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{name}: {tensor[:80]!r} is in {shard!r:.80}, not a .safetensors file")
        by_shard.setdefault(shard, set()).add(tensor)
    if len(by_shard) > MAX_SHARDS:
        raise CheckpointError(f"{name}: names {len(by_shard)} shards, at most {MAX_SHARDS} are opened")
    files = {shard: inside(folder, shard) for shard in sorted(by_shard)}
    tensors: dict[str, Tensor] = {}
    for shard, file in files.items():
        held, announced = read_safetensors(file), by_shard[shard]
        for t in sorted(announced ^ held.keys()):
            says = (
                "the index has it there, the file does not"
                if t in announced
                else "the index does not have it"
            )
            raise CheckpointError(
                f"{shard}: {t[:80]}: {says}", hint="index and shards are of different downloads"
            )
        tensors |= held
    return tensors
