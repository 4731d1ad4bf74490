"""Repacked weights of the models of this user, kept on disk: a second start maps them and packs nothing.

The files (`packed_file`) lie in $XDG_CACHE_HOME/kvasir/packed, ~/.cache by default; KVASIR_PACKED_GB bounds
them, and 0 switches them off.  A file is found by three names: where the model lies; what it is (size,
times of change and inode of each of its files, the table of its tensors); the kernels it is for (what they
make of a known matrix in each format).  Whatever is not as it should be only means that weights are packed
anew.  No weight is read for it: a file that was read from end to end once need not be in memory any more.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from kvasir import __version__
from kvasir.backends import packed_file
from kvasir.backends.packed_file import SUFFIX, PackedFile, Stack, Unusable
from kvasir.checkpoint.open import Checkpoint
from kvasir.quant.formats import FORMATS
from kvasir.records import dataclass

LEAST_BYTES = 100 << 20  # of packed weights: below, packing takes no time that anyone notices
END_WAIT_S = 5.0  # how long a program that ends waits for its file to be complete
PART = re.compile(r"^(?P<stem>.*)-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class Source:
    """The model that was packed.  `identity`: 64 hex digits that change when any of its files does."""

    path: Path
    identity: str

    @property
    def prefix(self) -> str:
        """What the names of all files made from this path begin with."""
        return hashlib.sha256(str(self.path).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass
class Packed:
    """The packed weights of one model while it is loaded.  Mutable; used by the thread that loads.

    `quota`: bytes that all files together may have.  `verify`: hold every byte against its checksum first.
    `say` is told once why there is no file, where there is none.
    """

    folder: Path
    source: Source
    quota: int
    verify: bool = False
    least: int = LEAST_BYTES
    say: Callable[[str], None] = lambda line: None
    path: Path | None = None
    file: PackedFile | None = None
    asked: dict[str, tuple[Stack, list[Any]]] = field(default_factory=dict)
    stale: bool = False
    writer: threading.Thread | None = None

    def open(self, kernels: Any) -> None:
        """Looks for the file that these kernels can read."""
        self.path = (
            self.folder
            / f"{self.source.prefix}-{self.source.identity[:16]}-{kernels.isa}-{layout_id(kernels)}{SUFFIX}"
        )
        try:
            file = packed_file.read(self.path, self.source.identity)
            for s in file.stacks.values():
                if s.bytes != kernels.stack_bytes(s.format, s.rows, s.width, s.count):
                    raise Unusable("a stack has not the bytes of its shape")
            wrong = file.verify() if self.verify else ""
            if wrong:
                raise Unusable(f"{wrong} is damaged")
        except FileNotFoundError:
            return
        except (Unusable, OSError, ValueError) as error:
            self.say(f"{self.path.name} is not used: {error}")
            return
        self.file = file
        threading.Thread(target=_populate, args=(kernels, file.data), daemon=True, name="pages").start()

    def matrices(
        self, kernels: Any, name: str, shape: Sequence[int], count: int,
        make: Callable[[], tuple[str, list[Any]]],
    ) -> list[Any]:  # fmt: skip
        """`count` native matrices of the weight `name`: views of the file, or what `make` gives.

        `make` packs anew, and gives the format with the matrices.
        """
        rows = int(np.prod(shape[:-1])) // count
        s = self.file.stacks.get(name) if self.file else None
        if self.file and s and (s.rows, s.width, s.count) == (rows, shape[-1], count):
            matrices = list(kernels.view_stack(s.format, self.file.panels(name), rows, shape[-1], count))
        else:
            form, matrices = make()
            s = Stack(form, rows, shape[-1], count, 0, sum(m.n_bytes for m in matrices), 0)
            self.stale = True
        self.asked[name] = s, matrices
        return matrices

    def keep(self) -> None:
        """Once all weights are asked for: where some were packed, a thread writes the file anew."""
        asked, self.asked = self.asked, {}
        total = sum(s.bytes for s, _ in asked.values())
        if not self.stale or self.path is None or total < self.least:
            return
        ends = _Ending(total // packed_file.PIECE + len(asked))

        def run() -> None:
            try:
                self._write(asked, total, ends)
            finally:
                atexit.unregister(ends.wait)

        ends.thread = self.writer = threading.Thread(target=run, name="packed weights", daemon=True)
        atexit.register(ends.wait)
        self.writer.start()

    def _write(self, made: dict[str, tuple[Stack, list[Any]]], total: int, ends: _Ending) -> None:
        assert self.path is not None
        _yield_to_others()
        isa, own = self.path.name.split("-")[2], self.path.name
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            packed_file.make_room(self.folder, total, self.quota, lambda name: superseded(name, own, isa))
            packed_file.write(self.path, self.source.identity, str(self.source.path), made, ends.come)
            self.say(f"{total:,} bytes of repacked weights are in {self.path}")
        except (Unusable, OSError, MemoryError) as error:
            self.say(f"repacked weights are not kept: {error}")


@dataclass
class _Ending:
    """Whether the program ends.  Mutable; set by its main thread, read by the one that writes."""

    n_pieces: int  # that are to be written
    thread: threading.Thread | None = None
    deadline: float | None = None

    def wait(self) -> None:
        """Waits a second, and until END_WAIT_S where at the pace of that second it will be done by then."""
        assert self.thread is not None
        before = self.n_pieces
        self.thread.join(1.0)
        hopeful = self.n_pieces <= (before - self.n_pieces) * (END_WAIT_S - 1.0)
        self.deadline = monotonic() + (END_WAIT_S - 1.0 if hopeful else 0.0)
        self.thread.join(END_WAIT_S)

    def come(self) -> bool:
        """Asked before each piece."""
        self.n_pieces -= 1
        return self.deadline is not None and monotonic() > self.deadline


def superseded(name: str, own: str, isa: str) -> bool:
    """Whether the file `name` was made from the same path as `own` and nobody will use it again."""
    parts, new = name.removesuffix(SUFFIX).split("-"), own.removesuffix(SUFFIX).split("-")
    if parts[0] != new[0] or name == own or len(parts) != len(new):
        return False
    return parts[1] != new[1] or parts[2] == isa


def _populate(kernels: Any, data: Any) -> None:
    if len(data) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4:
        kernels.populate(data)


def _yield_to_others() -> None:
    """The lowest priority for this thread: it works while nobody computes."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    except (AttributeError, OSError):
        return


@cache
def layout_id(kernels: Any) -> str:
    """16 hex digits over what these kernels make of a known matrix in each format they know."""
    state = hashlib.sha256(f"{packed_file.VERSION} {__version__} {kernels.isa} {kernels.layout}".encode())
    # Numbers that repeat nowhere; numpy's generator would have to be imported first.
    drawn = (np.arange(27 * 2048, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(13)).astype(np.uint8)
    for form in FORMATS.values():
        width = 512
        row = form.row_bytes(width)
        try:
            matrix = kernels.pack(form.name, np.resize(drawn, (27, row)), width)
        except ValueError:
            continue  # no kernel reads this format
        state.update(form.name.encode() + matrix.packed.tobytes())
    return state.hexdigest()[:16]


def cache_folder() -> Path:
    """Where the files lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kvasir" / "packed"


def source_of(checkpoint: Checkpoint) -> Source:
    """The model as `Packed` knows it.  Raises OSError for files that are gone by now."""
    path = Path(os.path.realpath(checkpoint.path))
    state = hashlib.sha256(f"{path}\n".encode("utf-8", "surrogateescape"))
    for file in _files(path):
        i = file.stat()
        told = f"{file.name} {i.st_size} {i.st_mtime_ns} {i.st_ctime_ns} {i.st_ino}\n"
        state.update(told.encode("utf-8", "surrogateescape"))
    for name, t in sorted(checkpoint.tensors.items()):
        state.update(f"{name} {t.format.name} {t.shape}\n".encode("utf-8", "surrogateescape"))
    return Source(path, state.hexdigest())


def _files(path: Path) -> list[Path]:
    """The model's own files: one, the parts of a split one, or a folder's."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".gguf"))
    part = PART.match(path.name)
    if part:
        return sorted(
            p for p in path.parent.iterdir() if p.name.startswith(part["stem"]) and PART.match(p.name)
        )
    return [path]


def kept_bytes(path: Path) -> int:
    """Bytes of the files that were made from the model at `path`."""
    prefix = Source(Path(os.path.realpath(path)), "").prefix
    try:
        with os.scandir(cache_folder()) as entries:
            return sum(
                e.stat().st_size for e in entries if e.name.startswith(prefix) and e.name.endswith(SUFFIX)
            )
    except OSError:
        return 0
