"""GGUF files, versions 2 and 3, little-endian: key values and tensors, mapped.

The layout: magic, version, number of tensors, number of key values; the key values; a record a tensor (name,
dimensions, type, offset); padding to the alignment; the tensors' bytes.

No number in the file is believed.  Each is a Python integer and is compared with the bytes that are there
before anything is allocated or looped over, so the work and the memory are bounded by the size of the file.
Source: the GGUF specification.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from kvasir.checkpoint.files import map_file
from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError
from kvasir.native import extension
from kvasir.quant.formats import BY_GGML_TYPE, UNREAD_GGML_TYPES
from kvasir.records import dataclass

Bytes = npt.NDArray[np.uint8]
Ends = npt.NDArray[np.int64]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_TOKEN_BYTES = 1 << 20  # a string in an array
MAX_STRING_BYTES = 1 << 26  # a string by itself: a chat template, a whole tokenizer.json
MAX_ARRAY = 1 << 24
MAX_STRINGS = 1 << 22  # in one array
MAX_NESTED = 4096  # arrays inside an array, in all
MAX_DEPTH = 3
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
MAX_PARTS = 1024
DEFAULT_ALIGNMENT = 32

# GGUF's value types: struct code and bytes of the scalars; 8 is a string, 9 an array, 7 a bool of one byte.
SCALARS = {
    **{0: ("<B", 1), 1: ("<b", 1), 2: ("<H", 2), 3: ("<h", 2), 4: ("<I", 4), 5: ("<i", 4), 6: ("<f", 4)},
    **{7: ("<B", 1), 10: ("<Q", 8), 11: ("<q", 8), 12: ("<d", 8)},
}
BOOL, STRING, ARRAY = 7, 8, 9

PART_NAME = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")


class Strings(Sequence[str]):
    """The strings of an array, decoded one by one, or all at once when all are asked for.

    `data` has them one after another, each behind the eight bytes of its length; `ends` is where each ends.
    Mutable: remembers what it decoded.  Raises CheckpointError, on first use, for bytes that are not UTF-8.
    """

    def __init__(self, data: Bytes, ends: Ends, where: str):
        self.data, self.ends, self._where = data, ends, where
        self._texts: list[str] | None = None
        self._sizes: Ends | None = None

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if self._texts is None and isinstance(index, int) and 0 <= index < len(self):
            return self._one(index)
        return self.texts()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts())

    def __contains__(self, text: object) -> bool:
        """Whether it is one of them, without decoding any."""
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b"\xff"
        if self._sizes is None:
            self._sizes = self.ends - 8
            self._sizes[1:] -= self.ends[:-1]
        at = self.ends[self._sizes == len(raw)] - len(raw)
        for i, byte in enumerate(raw):
            at = at[self.data[at + i] == byte]
        return len(at) > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.texts() == list(other)

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self._where}>"

    def _one(self, index: int) -> str:
        begin = int(self.ends[index - 1]) + 8 if index else 8
        try:
            return self.data[begin : int(self.ends[index])].tobytes().decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._where}: string {index} is not UTF-8") from None

    def texts(self) -> list[str]:
        """All of them, as a list that belongs to this object."""
        if self._texts is None:
            raw, start, texts = self.data.tobytes(), 8, []
            try:
                for end in self.ends.tolist():
                    texts.append(raw[start:end].decode())
                    start = end + 8
            except UnicodeDecodeError:
                raise CheckpointError(f"{self._where}: string {len(texts)} is not UTF-8") from None
            self._texts = texts
        return self._texts


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file holds.

    `metadata`: scalars as int, float, bool, str; arrays of numbers as numpy arrays; arrays of strings as
    `Strings`; arrays of arrays as lists.  `tensors` by the names in the file, views of the map.
    """

    metadata: Mapping[str, object]
    tensors: Mapping[str, Tensor]


class _Reader:
    """A place in the mapped file.  Mutable: every read moves `at`; every read is checked against the end."""

    def __init__(self, data: Bytes, name: str):
        self.data, self.name = data, name
        self.view = memoryview(data.data)
        self.at, self.size = 0, len(data)
        self.nested = 0

    def bad(self, what: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.name}: {what}", hint=hint or "the file is damaged")

    def need(self, n_bytes: int, what: str) -> None:
        missing = self.at + n_bytes - self.size
        if missing > 0:
            raise self.bad(
                f"cut short in {what}: at least {missing} bytes are missing (the file has {self.size})",
                "the download is incomplete, or a length in the file is wrong",
            )

    def scalar(self, kind: int, what: str) -> int | float | bool:
        code, n_bytes = SCALARS[kind]
        self.need(n_bytes, what)
        value: int | float = struct.unpack_from(code, self.view, self.at)[0]
        self.at += n_bytes
        if kind == BOOL:
            if value not in (0, 1):
                raise self.bad(f"{what} is a bool of value {value}")
            return bool(value)
        return value

    def count(self, what: str) -> int:
        return int(self.scalar(10, what))

    def u32(self, what: str) -> int:
        return int(self.scalar(4, what))

    def string(self, limit: int, what: str) -> str:
        n = self.count(what)
        if n > limit:
            raise self.bad(f"{what} is {n} bytes long, at most {limit} are allowed")
        self.need(n, what)
        raw = bytes(self.view[self.at : self.at + n])
        self.at += n
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not UTF-8") from None

    def value(self, kind: int, what: str, depth: int = 0) -> object:
        if kind in SCALARS:
            return self.scalar(kind, what)
        if kind == STRING:
            return self.string(MAX_STRING_BYTES, what)
        if kind == ARRAY:
            return self.array(what, depth)
        raise self.bad(f"{what} has the unknown value type {kind}")

    def array(self, what: str, depth: int) -> object:
        kind, n = self.u32(what), self.count(what)
        if kind not in SCALARS and kind not in (STRING, ARRAY):
            raise self.bad(f"{what} is an array of the unknown value type {kind}")
        least = SCALARS[kind][1] if kind in SCALARS else 8 if kind == STRING else 12
        most = MAX_STRINGS if kind == STRING else MAX_ARRAY
        if n > most:
            raise self.bad(f"{what} claims {n} entries, at most {most} are allowed")
        self.need(n * least, f"{what}, which claims {n} entries")
        if kind == STRING:
            return self.strings(n, what)
        if kind == ARRAY:
            return self.arrays(n, what, depth + 1)
        values = np.frombuffer(self.view, SCALARS[kind][0], n, self.at)
        self.at += n * least
        if kind == BOOL:
            if n and int(values.max()) > 1:
                raise self.bad(f"{what} has a bool of value {int(values.max())}")
            return values.astype(np.bool_)
        return values

    def arrays(self, n: int, what: str, depth: int) -> list[object]:
        self.nested += n
        if depth > MAX_DEPTH or self.nested > MAX_NESTED:
            raise self.bad(f"{what} nests arrays deeper than {MAX_DEPTH}, or over {MAX_NESTED} of them")
        return [self.array(what, depth) for _ in range(n)]

    def strings(self, n: int, what: str) -> Strings:
        """Steps over `n` strings, noting where each ends; they are decoded when used."""
        start, kernels = self.at, extension()
        rest = self.data[start:]
        ends: Ends = kernels.string_ends(rest, n, MAX_TOKEN_BYTES) if kernels else string_ends(rest, n)
        if len(ends) < n:
            where = f"{what}, string {len(ends)} of {n}"
            self.at = start + (int(ends[-1]) if len(ends) else 0)
            bytes_here = self.count(where)
            if bytes_here > MAX_TOKEN_BYTES:
                raise self.bad(f"{where} is {bytes_here} bytes long, at most {MAX_TOKEN_BYTES} are allowed")
            self.need(bytes_here, where)
        self.at = at = start + (int(ends[-1]) if n else 0)
        return Strings(self.data[start:at], ends, f"{self.name}: {what}")


def string_ends(data: Bytes, n: int) -> Ends:
    """Where each of `n` strings ends, as far as they lie in `data` and are not too long."""
    at, size, view, length, ends = 0, len(data), memoryview(data.data), struct.Struct("<Q").unpack_from, []
    for _ in range(n):
        if at + 8 > size:
            break
        (bytes_here,) = length(view, at)
        at += 8 + bytes_here
        if bytes_here > MAX_TOKEN_BYTES or at > size:
            break
        ends.append(at)
    return np.array(ends, np.int64)


@dataclass(frozen=True)
class _Record:
    """A tensor as announced: `start` bytes after the beginning of the data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    start: int


def read_gguf(path: Path) -> Gguf:
    """The GGUF file `path`; of a model in parts the first must be given, and the others must lie beside it.

    Raises CheckpointError for a file that is cut short or inconsistent, or of a kind Kvasir does not read.
    """
    first = read_part(path)
    parts = _whole(first, "split.count", 1)
    if not 0 <= parts <= MAX_PARTS:
        raise CheckpointError(f"{path.name}: split.count is not a number up to {MAX_PARTS}")
    if parts <= 1:
        return first
    named = PART_NAME.match(path.name)
    numbers = (int(named["part"]), int(named["parts"])) if named else (0, 0)
    if not named or numbers != (1, parts) or _whole(first, "split.no", 0) != 0:
        raise CheckpointError(
            f"{path.name}: one of {parts} parts, and not named as the first",
            hint=f"give the part whose name ends in -00001-of-{parts:05}.gguf",
        )
    tensors = dict(first.tensors)
    for i in range(1, parts):
        other = path.with_name(f"{named['stem']}-{i + 1:05}-of-{parts:05}.gguf")
        if not other.exists():
            raise CheckpointError(
                f"{other.name} is missing: part {i + 1} of {parts}", hint="keep them together"
            )
        part = read_part(other)
        if _whole(part, "split.no", -1) != i or _whole(part, "split.count", -1) != parts:
            raise CheckpointError(f"{other.name}: does not say that it is part {i + 1} of {parts}")
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise CheckpointError(f"{other.name}: tensor {min(twice)} is in an earlier part too")
        tensors |= part.tensors
    total = _whole(first, "split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(f"{path.name}: announces {total} tensors, its parts have {len(tensors)}")
    return Gguf(first.metadata, tensors)


def _whole(file: Gguf, key: str, default: int) -> int:
    """A whole number of the metadata; -1 when it is something else."""
    value = file.metadata.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def read_part(path: Path) -> Gguf:
    """One GGUF file by itself."""
    data = map_file(path)
    r = _Reader(data, path.name)
    _magic(r)
    n_tensors, n_keys = r.count("the header"), r.count("the header")
    _limit(r, "tensors", n_tensors, MAX_TENSORS, 8 + 1 + 4 + 8 + 4 + 8)
    _limit(r, "key values", n_keys, MAX_KEYS, 8 + 1 + 4 + 1)
    metadata: dict[str, object] = {}
    for i in range(n_keys):
        key = r.string(MAX_KEY_BYTES, f"the name of key value {i} of {n_keys}")
        if not key or not key.isprintable():
            raise r.bad(f"key value {i} has the name {key[:80]!r}")
        if key in metadata:
            raise r.bad(f"the key {key} is given twice")
        metadata[key] = r.value(r.u32(key), key)
    records = [_record(r, i, n_tensors) for i in range(n_tensors)]
    alignment = _whole(Gguf(metadata, {}), "general.alignment", DEFAULT_ALIGNMENT)
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise r.bad(f"general.alignment is not a power of two up to {MAX_ALIGNMENT}")
    start = -(-r.at // alignment) * alignment
    return Gguf(metadata, _tensors(r, records, start, alignment))


def _magic(r: _Reader) -> None:
    found = bytes(r.view[:4])
    if found != MAGIC or r.size < 24:
        begins = f"it begins with {found!r}, and has " if found != MAGIC[: len(found)] else ""
        raise r.bad(f"not a GGUF: {begins}{r.size} bytes (the header alone is 24)")
    r.at = 4
    version = r.u32("the header")
    if version & 0xFFFF == 0:
        raise r.bad("a big-endian GGUF; Kvasir reads little-endian ones", "convert the file, or find another")
    if version not in VERSIONS:
        raise r.bad(f"GGUF version {version}; Kvasir reads 2 and 3", "convert the model anew")


def _limit(r: _Reader, what: str, n: int, most: int, least_bytes: int) -> None:
    if n > most:
        raise r.bad(f"claims {n} {what}, at most {most} are allowed")
    r.need(n * least_bytes, f"the header, which claims {n} {what}")


def _record(r: _Reader, i: int, n: int) -> _Record:
    name = r.string(MAX_NAME_BYTES, f"the name of tensor {i} of {n}")
    if not name or not name.isprintable():
        raise r.bad(f"tensor {i} has the name {name[:80]!r}")
    n_dims = r.u32(name)
    if n_dims > MAX_DIMS:
        raise r.bad(f"{name} has {n_dims} dimensions, at most {MAX_DIMS} are allowed")
    dims = [r.count(name) for _ in range(n_dims)]
    if any(not 0 < d < 1 << 63 for d in dims):
        raise r.bad(f"{name} has the dimensions {dims}")
    # GGUF names the fastest dimension first; a tensor without dimensions is one number.
    return _Record(name, tuple(reversed(dims)) or (1,), r.u32(name), r.count(name))


def _tensors(r: _Reader, records: list[_Record], start: int, alignment: int) -> dict[str, Tensor]:
    """The tensors' views.  Every extent must lie in the file, on the alignment, and apart from the others."""
    tensors: dict[str, Tensor] = {}
    extents: list[tuple[int, int, str]] = []
    for t in records:
        if t.name in tensors:
            raise r.bad(f"the tensor {t.name} is given twice")
        format = BY_GGML_TYPE.get(t.ggml_type)
        if format is None:
            known = UNREAD_GGML_TYPES.get(t.ggml_type)
            what = (
                f"format {known}, which Kvasir does not read" if known else f"the unknown type {t.ggml_type}"
            )
            raise r.bad(f"{t.name} has {what}", "choose another quantization, as Q4_K_M or Q8_0")
        if t.shape[-1] % format.block:
            raise r.bad(f"{t.name} is {t.shape[-1]} wide, {format.name} needs a multiple of {format.block}")
        row = format.row_bytes(t.shape[-1])
        n_rows = math.prod(t.shape[:-1])
        begin, end = start + t.start, start + t.start + n_rows * row
        if end > r.size:
            raise r.bad(
                f"cut short: {t.name} {list(t.shape)} {format.name} ends at byte {end}, "
                f"the file at {r.size}: {end - r.size} bytes are missing",
                "the download is incomplete, or the file is damaged",
            )
        if t.start % alignment:
            raise r.bad(f"{t.name} begins at {t.start}, not a multiple of the alignment {alignment}")
        extents.append((begin, end, t.name))
        tensors[t.name] = Tensor(t.name, format, t.shape, r.data[begin:end].reshape(n_rows, row))
    extents.sort()
    for (_, end, name), (begin, _, later) in pairwise(extents):
        if begin < end:
            raise r.bad(f"the tensors {name} and {later} overlap")
    return tensors
