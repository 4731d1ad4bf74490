"""Who owns which block of the KV cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvasir.errors import Bug


class BlockPool:
    """`n_blocks` cache blocks with a count of owners each.  Mutable.  Lowest free block first, so runs
    repeat exactly.
    """

    def __init__(self, n_blocks: int):
        self.n_blocks = n_blocks
        self._free = list(range(n_blocks - 1, -1, -1))
        self._owners = [0] * n_blocks

    @property
    def n_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks with one owner each, or None if there are not as many."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._owners[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each."""
        for block in blocks:
            if self._owners[block] < 1:
                raise Bug(f"cache block {block} is free and cannot be shared")
            self._owners[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One owner less for each; a block without owners is free again."""
        for block in blocks:
            if self._owners[block] < 1:
                raise Bug(f"cache block {block} was given back twice")
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._free.append(block)

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Raises Bug unless every block is free, or owned exactly as often as `holders` list it."""
        held = Counter(block for blocks in holders for block in blocks)
        wrong = [b for b in range(self.n_blocks) if held[b] != self._owners[b]]
        free = set(self._free)
        lost = [b for b in range(self.n_blocks) if (self._owners[b] == 0) != (b in free)]
        if wrong or lost or len(free) != len(self._free):
            raise Bug(f"cache blocks are not accounted for: owners of {wrong[:8]}, free list at {lost[:8]}")
