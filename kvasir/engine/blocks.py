"""Who owns which block of the KV cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvasir.errors import Bug


class BlockPool:
    """`n_blocks` cache blocks with a count of owners each.  Mutable.  Lowest free block first, so runs
    repeat exactly.

    The prefix cache is one owner of the blocks that it keeps; those that it alone owns are `n_idle`.
    """

    def __init__(self, n_blocks: int):
        self.n_blocks = n_blocks
        self.n_idle = 0
        self._free = list(range(n_blocks - 1, -1, -1))
        self._owners = [0] * n_blocks
        self._kept = [False] * n_blocks

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
            self.n_idle -= self._is_idle(block)
            self._owners[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One owner less for each; a block without owners is free again."""
        for block in blocks:
            if self._owners[block] < 1:
                raise Bug(f"cache block {block} was given back twice")
            self._owners[block] -= 1
            self.n_idle += self._is_idle(block)
            if self._owners[block] == 0:
                self._free.append(block)

    def keep(self, block: int) -> None:
        """The prefix cache becomes an owner too."""
        self.share([block])
        self._kept[block] = True

    def drop(self, block: int) -> None:
        """The prefix cache owns it no longer."""
        if not self._kept[block]:
            raise Bug(f"cache block {block} is not in the prefix cache")
        self.n_idle -= self._is_idle(block)
        self._kept[block] = False
        self.give_back([block])

    def is_idle(self, block: int) -> bool:
        """Whether the prefix cache alone owns it."""
        return bool(self._is_idle(block))

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Raises Bug unless every block is free, or owned exactly as often as `holders` list it."""
        held = Counter(block for blocks in holders for block in blocks)
        wrong = [b for b in range(self.n_blocks) if held[b] != self._owners[b]]
        free = set(self._free)
        lost = [b for b in range(self.n_blocks) if (self._owners[b] == 0) != (b in free)]
        if wrong or lost or len(free) != len(self._free):
            raise Bug(f"cache blocks are not accounted for: owners of {wrong[:8]}, free list at {lost[:8]}")
        if self.n_idle != sum(self._is_idle(b) for b in range(self.n_blocks)):
            raise Bug(f"{self.n_idle} idle blocks were counted, and there are others")

    def _is_idle(self, block: int) -> int:
        return int(self._kept[block] and self._owners[block] == 1)
