"""Which adapters the program holds, at which numbers, and which sequences use them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kvasir.backends.base import Adapter, Ints, Program
from kvasir.engine.sequence import Sequence
from kvasir.errors import UsageError

NONE = np.empty(0, np.int32)


class Adapters:
    """Adapters by their keys.  Mutable; touched by the thread that steps alone.

    One that leaves stays until the last sequence that uses it has ended, but takes no new ones.
    """

    def __init__(self, program: Program):
        self._program = program
        self._numbers: dict[str, int] = {}
        self._users = Counter[str]()
        self._leaving = set[str]()

    def load(self, key: str, adapter: Adapter) -> None:
        """Sequences with this adapter may enter from now on.  `key` stands for its content."""
        if key in self._numbers:
            self._leaving.discard(key)
            return
        number = min(set(range(len(self._numbers) + 1)) - set(self._numbers.values()))
        self._program.adapt(number, adapter)
        self._numbers[key] = number

    def unload(self, key: str) -> None:
        """Frees it as soon as nobody uses it."""
        if key in self._numbers:
            self._leaving.add(key)
            self._free(key)

    def enter(self, sequence: Sequence) -> None:
        """Raises UsageError for a sequence whose adapter is not loaded."""
        key = sequence.adapter
        if not key:
            return
        if key not in self._numbers or key in self._leaving:
            raise UsageError("the adapter of the request is not loaded any more", hint="load it again")
        self._users[key] += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence that entered has ended."""
        if key := sequence.adapter:
            self._users[key] -= 1
            self._free(key)

    def of(self, sequences: list[Sequence]) -> Ints:
        """The number of each one's adapter, -1 without one; [0] where no sequence has one."""
        if not any(s.adapter for s in sequences):
            return NONE
        return np.array([self._numbers[s.adapter] if s.adapter else -1 for s in sequences], np.int32)

    def _free(self, key: str) -> None:
        if key in self._leaving and not self._users[key]:
            self._program.adapt(self._numbers.pop(key), None)
            self._leaving.discard(key)
            del self._users[key]
