"""Which blocks of a model are on disk, and where; and whether this process is the one that writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic

from kvasir.engine.radix import Tokens
from kvasir.engine.segments import Record, Writer, scan, segments_of
from kvasir.engine.shelf import Pin, Shelf, change_pins, read_about, read_pins, write_about

RETRY_S = 10.0  # between two tries to become the process that writes


class Index:
    """Records by key.  Mutable: one thread looks at the folder and adds, any may ask and drop."""

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._records: dict[bytes, Record] = {}
        self._ends: dict[Path, tuple[int, int]] = {}  # size of a segment when looked at, end of its records
        self._lock_fd: int | None = None
        self._tried_at = float("-inf")
        self._to_pin: list[Pin] = []
        self.pins: Mapping[str, Pin] = {}
        self.ready = threading.Event()
        self.wants_look = False
        self.n_damaged = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._records

    @property
    def n_blocks(self) -> int:
        return len(self._records)

    @property
    def is_mine(self) -> bool:
        """Whether this process writes the folder."""
        return self._lock_fd is not None

    @property
    def may_become_mine(self) -> bool:
        """False for a while after another process was found to write it."""
        return self.is_mine or monotonic() - self._tried_at > RETRY_S

    def get(self, key: bytes, parent: bytes, tokens: Tokens) -> Record | None:
        """The record of that key, if it is of these tokens after that parent too."""
        record = self._records.get(key)
        same = record is not None and record.parent == parent and record.tokens == tokens
        return record if same else None

    def parents(self) -> set[bytes]:
        """Keys of the blocks that another one comes after."""
        return {record.parent for record in list(self._records.values())}

    def add(self, record: Record) -> None:
        """One that was written now."""
        self._records[record.key] = record
        self._ends[record.path] = (record.end, record.end)

    def drop(self, record: Record) -> None:
        """One that was found damaged or gone."""
        if self._records.get(record.key) is record:
            self._records.pop(record.key, None)

    def pin(self, pin: Pin) -> None:
        """To be written at the next look."""
        self._to_pin.append(pin)

    def look(self) -> None:
        """Reads what is new in the folder, and forgets what is gone.  Never raises."""
        try:
            paths = list(segments_of(self._shelf.folder))
            gone = self._ends.keys() - set(paths)
            for key in [key for key, record in list(self._records.items()) if record.path in gone]:
                self._records.pop(key, None)
            for path in gone:
                del self._ends[path]
            for path in paths:
                self._scan(path)
            with suppress(OSError):
                self._pin()
            pins = read_pins(self._shelf.folder)
            if pins != self.pins:
                self.pins = pins
        except Exception:  # a folder that nobody can make sense of has nothing in it
            self.n_damaged += 1
        finally:
            self.ready.set()

    def may_write(self, writer: Writer, about: Mapping[str, object]) -> bool:
        """Whether this process writes the folder, from now on perhaps.  Raises OSError."""
        if self._lock_fd is not None:
            return True
        if not self.may_become_mine:
            return False
        self._shelf.prepare()
        self._lock_fd = self._shelf.lock()
        if self._lock_fd is None:
            self._tried_at = monotonic()
            return False
        self.look()
        if not read_about(self._shelf.folder):
            write_about(self._shelf.folder, about)
        if self._ends:
            last = max(self._ends)
            writer.resume(last, self._ends[last][1])
        return True

    def close(self) -> None:
        """Lets another process write."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _scan(self, path: Path) -> None:
        size, end = self._ends.get(path, (0, 0))
        with suppress(OSError):
            now = path.stat().st_size
            if now == size:
                return
            records, end, n_damaged = scan(path, self._shelf.model, end if now > size else 0)
            self._records.update((record.key, record) for record in records)
            self._ends[path] = now, end
            self.n_damaged += n_damaged

    def _pin(self) -> None:
        """Writes the pins that were asked for.  Raises OSError."""
        if not self._to_pin:
            return
        self._shelf.prepare()
        added, self._to_pin = self._to_pin, []

        def change(pins: dict[str, Pin]) -> None:
            for pin in added:
                old = pins.get(pin.name)
                until = None if old and old.until is None else pin.until
                text = pin.text or (old.text if old else "")
                pins[pin.name] = Pin(pin.keys, pin.n_tokens, until, text)

        change_pins(self._shelf.folder, change)
