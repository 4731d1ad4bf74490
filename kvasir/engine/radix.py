"""What is computed is kept: a tree of cache blocks by the tokens that they hold.

A node is one full block: its 16 tokens, after those of its ancestors.  A root stands for everything else
that the numbers depend on, and for who may see them (tenant, adapter).  Children are found by their token ids
themselves, so that no hash can collide.  Rows are the same bits however they were computed, so that a block
is as good as its own recomputation, and two blocks with the same path are the same block.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from kvasir.backends.base import BLOCK
from kvasir.engine.blocks import BlockPool

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """One block of the tree.  Mutable; changed in this file only.  `slot`: the recurrent state after it, or
    -1.
    """

    tokens: Tokens
    block: int
    parent: Node | None
    children: dict[Tokens, Node] = field(default_factory=dict)
    used: int = 0
    slot: int = -1

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, up to and without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent


class Radix:
    """The tree, and the order in which its leaves are given up: least recently used first.  Mutable.

    `n_slots`: places for recurrent states.  Running sequences take them, snapshots live in what is left.
    """

    def __init__(self, pool: BlockPool, n_slots: int = 0):
        self.pool = pool
        self.n_nodes = 0
        self.n_evicted = 0
        self._roots: dict[str, Node] = {}
        self._clock = count(1)
        self._leaves: list[tuple[int, int, Node]] = []  # a heap; entries out of date are passed over
        self._order = count()
        self._free_slots = list(range(n_slots - 1, -1, -1))
        self._snapshots: set[Node] = set()

    def root(self, key: str) -> Node:
        """The beginning of every path under `key`."""
        if key not in self._roots:
            self._roots[key] = Node((), -1, None)
        return self._roots[key]

    def match(self, key: str, tokens: Sequence[int]) -> list[Node]:
        """The longest path that holds the beginning of `tokens`, whole blocks only, and not all of them: the
        last token's row must be computed for its logits.
        """
        node, found = self._roots.get(key), list[Node]()
        if node is None:
            return found
        for start in range(0, (len(tokens) - 1) // BLOCK * BLOCK, BLOCK):
            node = node.children.get(tuple(tokens[start : start + BLOCK]))
            if node is None:
                break
            found.append(node)
        return found

    def touch(self, node: Node) -> None:
        """Marks the path to `node` as used now."""
        now = next(self._clock)
        for each in node.path():
            each.used = now
        self._offer(node)

    def extend(self, parent: Node, tokens: Tokens, block: int) -> Node:
        """The node of these tokens after `parent`; made with `block` if there is none."""
        node = parent.children.get(tokens)
        if node is None:
            node = parent.children[tokens] = Node(tokens, block, parent, used=next(self._clock))
            self.pool.keep(block)
            self.n_nodes += 1
        return node

    def evict(self, wanted: int) -> int:
        """Gives up leaves that no sequence uses until `wanted` blocks came free; how many did."""
        freed, busy = 0, list[tuple[int, int, Node]]()
        while freed < wanted and self._leaves:
            entry = heapq.heappop(self._leaves)
            used, _, node = entry
            if node.used != used or node.children or node.parent is None:
                continue
            if not self.pool.is_idle(node.block):
                busy.append(entry)
                continue
            self._remove(node)
            freed += 1
        for entry in busy:
            heapq.heappush(self._leaves, entry)
        return freed

    def take_slot(self) -> int | None:
        """A place for a recurrent state: a free one, else that of the snapshot used longest ago."""
        if not self._free_slots and self._snapshots:
            self.forget(min(self._snapshots, key=lambda node: node.used))
        return self._free_slots.pop() if self._free_slots else None

    def give_slot(self, slot: int) -> None:
        """A place that is free again."""
        self._free_slots.append(slot)

    def remember(self, node: Node, slot: int) -> None:
        """The state after `node` lies in `slot` from now on."""
        assert node.slot < 0, "a node has one snapshot"
        node.slot = slot
        self._snapshots.add(node)

    def forget(self, node: Node) -> None:
        """The snapshot after `node`, if there is one, goes."""
        if node.slot >= 0:
            self._snapshots.remove(node)
            self._free_slots.append(node.slot)
            node.slot = -1

    @property
    def n_slots_free(self) -> int:
        """Slots that a sequence could have now."""
        return len(self._free_slots) + len(self._snapshots)

    def clear(self) -> None:
        """Gives up everything that no sequence uses."""
        for node in list(self.nodes()):
            self._offer(node)
        self.evict(self.pool.n_blocks)

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            pending.extend(node.children.values())
            if node.parent is not None:
                yield node

    def blocks(self) -> list[int]:
        """The blocks it owns."""
        return [node.block for node in self.nodes()]

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        parent = node.parent
        del parent.children[node.tokens]
        self.forget(node)
        self.pool.drop(node.block)
        node.parent = None
        self.n_nodes -= 1
        self.n_evicted += 1
        self._offer(parent)

    def _offer(self, node: Node) -> None:
        """Puts a leaf among those that may be given up."""
        if not node.children and node.parent is not None:
            heapq.heappush(self._leaves, (node.used, next(self._order), node))
        if len(self._leaves) > 4 * self.n_nodes + 64:  # most of them out of date
            self._leaves = [e for e in self._leaves if e[2].used == e[0] and e[2].parent is not None]
            heapq.heapify(self._leaves)
