"""What is computed is kept: a tree of cache blocks by the tokens that they hold.

A node is one full block: its 16 tokens, after those of its ancestors.  A root stands for everything else
that the numbers depend on, and for who may see them (tenant, adapter).  Children are found by their token ids
themselves, so that no hash can collide.  Rows are the same bits however they were computed, so that a block
is as good as its own recomputation, and two blocks with the same path are the same block.

Tenants share the room: when a block is wanted, the tenant that has most of them gives it, its leaf used
longest ago.  So a flood takes from itself what exceeds its share.  A tenant that was not heard of for
SHARE_S has no share any more.  Pinned paths stay.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from itertools import count
from time import monotonic

from kvasir.backends.base import BLOCK
from kvasir.engine.blocks import BlockPool
from kvasir.errors import Bug
from kvasir.records import dataclass

Tokens = tuple[int, ...]
SHARE_S = 600.0
PIN_S = 3600.0  # a prefix stays pinned so long after its last use
PIN_SHARE = 0.25  # of all blocks may be pinned


@dataclass(eq=False)
class Node:
    """One block of the tree.  Mutable; changed in this file only, but for `key`, its name on disk.

    `slot`: the recurrent state after it, or -1.  `n_pins`: of it and what comes after it.
    """

    tokens: Tokens
    block: int
    parent: Node | None
    realm: str
    children: dict[Tokens, Node] = field(default_factory=dict)
    used: int = 0
    slot: int = -1
    n_pins: int = 0
    key: bytes = b""

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, up to and without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    @property
    def depth(self) -> int:
        """Blocks from the root to here, this one included."""
        return sum(1 for _ in self.path())


@dataclass(eq=False)
class _Tenant:
    """What one tenant has.  Mutable.  `leaves` is a heap; entries out of date are passed over."""

    n_nodes: int = 0
    leaves: list[tuple[int, int, Node]] = field(default_factory=list)
    snapshots: set[Node] = field(default_factory=set)
    seen_at: float = 0.0


class Radix:
    """The tree, and the order in which its leaves are given up.  Mutable.

    `n_slots`: places for recurrent states.  Running sequences take them, snapshots live in what is left.
    `leaving` is called with each node before it goes; `now` gives seconds.
    """

    def __init__(self, pool: BlockPool, n_slots: int = 0, now: Callable[[], float] = monotonic):
        self.pool = pool
        self.n_nodes = 0
        self.n_evicted = 0
        self.leaving: Callable[[Node], None] = lambda node: None
        self.pins: dict[Node, float] = {}  # the end of each pinned path, and when that is over
        self.held: set[Node] = set()  # pins that give way to others
        self._now = now
        self._roots: dict[str, Node] = {}
        self._clock = count(1)
        self._order = count()
        self._n_slots = n_slots
        self._free_slots = list(range(n_slots - 1, -1, -1))
        self._tenants: dict[str, _Tenant] = {}

    def root(self, key: str) -> Node:
        """The beginning of every path under `key`."""
        if key not in self._roots:
            self._roots[key] = Node((), -1, None, key)
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
        self._tenant(node).seen_at = self._now()
        self._offer(node)

    def extend(self, parent: Node, tokens: Tokens, block: int) -> Node:
        """The node of these tokens after `parent`; made with `block` if there is none."""
        node = parent.children.get(tokens)
        if node is None:
            node = parent.children[tokens] = Node(tokens, block, parent, parent.realm, used=next(self._clock))
            self.pool.keep(block)
            self.n_nodes += 1
            tenant = self._tenant(node)
            tenant.n_nodes += 1
            tenant.seen_at = self._now()
        return node

    def evict(self, wanted: int, pinned: bool = False) -> int:
        """Gives up leaves that no sequence uses until `wanted` blocks came free; how many did.  With `pinned`
        the pinned ones are no exception.
        """
        if pinned:
            for node in list(self.pins):
                self.unpin(node)
        freed, busy = 0, list[tuple[int, int, Node]]()
        able = set(self._tenants.values())
        while freed < wanted and able:
            tenant = max(able, key=self._claim)
            if not tenant.leaves:
                able.remove(tenant)
                continue
            entry = heapq.heappop(tenant.leaves)
            used, _, node = entry
            if node.used != used or node.children or node.parent is None:
                continue
            if node.n_pins or not self.pool.is_idle(node.block):
                busy.append(entry)
                continue
            self._remove(node)
            freed += 1
        for entry in busy:
            heapq.heappush(self._tenant(entry[2]).leaves, entry)
        return freed

    def pin(self, node: Node, until: float) -> None:
        """The path to `node` stays until then (seconds of `now`), or longer if it is pinned already."""
        if node not in self.pins:
            for each in node.path():
                each.n_pins += 1
        self.held.discard(node)
        self.pins[node] = max(until, self.pins.get(node, 0.0))

    def hold(self, node: Node, until: float) -> bool:
        """As `pin`, if there is room for it, and giving way to pins; whether it stays.  What was held on the
        way to it is held by it now.
        """
        path = set(node.path())
        if len(self.pinned() | path) > self.most_pinned:
            return False
        if node in self.pins and node not in self.held:
            return True
        self.pin(node, until)
        self.held.add(node)
        for each in (self.held & path) - {node}:
            if self.pins[each] <= self.pins[node]:
                self.unpin(each)
        return True

    def make_room(self, path: set[Node]) -> bool:
        """Ends what is held, the first to end first, until `path` may be pinned; whether it may."""
        for each in sorted(self.held, key=self.pins.__getitem__):
            if len(self.pinned() | path) <= self.most_pinned:
                break
            self.unpin(each)
        return len(self.pinned() | path) <= self.most_pinned

    def unpin(self, node: Node) -> None:
        """The path to `node` is pinned no longer."""
        del self.pins[node]
        self.held.discard(node)
        for each in node.path():
            each.n_pins -= 1
        self._offer(node)

    def unpin_overdue(self) -> None:
        """Ends the pins whose time is over."""
        now = self._now()
        for node in [node for node, until in self.pins.items() if until <= now]:
            self.unpin(node)

    def pinned(self, held: bool = True) -> set[Node]:
        """All nodes of pinned paths; without those that are only held, if wished."""
        ends = set(self.pins) if held else set(self.pins) - self.held
        return {each for node in ends for each in node.path()}

    @property
    def most_pinned(self) -> int:
        """Blocks that may be pinned at a time."""
        return int(self.pool.n_blocks * PIN_SHARE)

    def take_slot(self) -> int | None:
        """A place for a recurrent state: a free one, else that of the snapshot used longest ago, of the
        tenant that has most.
        """
        if not self._free_slots and self._n_snapshots:
            most = max(self._tenants.values(), key=lambda tenant: len(tenant.snapshots))
            self.forget(min(most.snapshots, key=lambda node: (node.n_pins > 0, node.used)))
        return self._free_slots.pop() if self._free_slots else None

    def give_slot(self, slot: int) -> None:
        """A place that is free again."""
        self._free_slots.append(slot)

    def remember(self, node: Node, slot: int) -> None:
        """The state after `node` lies in `slot` from now on."""
        assert node.slot < 0, "a node has one snapshot"
        node.slot = slot
        self._tenant(node).snapshots.add(node)

    def forget(self, node: Node) -> None:
        """The snapshot after `node`, if there is one, goes."""
        if node.slot >= 0:
            self._tenant(node).snapshots.remove(node)
            self._free_slots.append(node.slot)
            node.slot = -1

    def check_slots(self, used: Sequence[int]) -> None:
        """Raises Bug unless every slot is free, a snapshot's, or one of those `used`."""
        kept = [node.slot for tenant in self._tenants.values() for node in tenant.snapshots]
        if sorted([*self._free_slots, *kept, *used]) != list(range(self._n_slots)):
            raise Bug(f"recurrent states are not accounted for: {kept} kept, {used} in use")

    @property
    def n_slots_free(self) -> int:
        """Slots that a sequence could have now."""
        return len(self._free_slots) + self._n_snapshots

    @property
    def _n_snapshots(self) -> int:
        return sum(len(tenant.snapshots) for tenant in self._tenants.values())

    def clear(self) -> None:
        """Gives up everything that no sequence uses."""
        for node in list(self.nodes()):
            self._offer(node)
        self.evict(self.pool.n_blocks, pinned=True)

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
        self.leaving(node)
        parent = node.parent
        del parent.children[node.tokens]
        self.forget(node)
        self.pool.drop(node.block)
        node.parent = None
        self.n_nodes -= 1
        self.n_evicted += 1
        self._offer(parent)
        tenant = self._tenant(node)
        tenant.n_nodes -= 1
        if not tenant.n_nodes:
            del self._tenants[_name(node)]

    def _offer(self, node: Node) -> None:
        """Puts a leaf among those that may be given up."""
        if node.children or node.parent is None:
            return
        tenant = self._tenant(node)
        heapq.heappush(tenant.leaves, (node.used, next(self._order), node))
        if len(tenant.leaves) > 4 * tenant.n_nodes + 64:  # most of them out of date
            tenant.leaves = [e for e in tenant.leaves if e[2].used == e[0] and e[2].parent is not None]
            heapq.heapify(tenant.leaves)

    def _tenant(self, node: Node) -> _Tenant:
        return self._tenants.setdefault(_name(node), _Tenant())

    def _claim(self, tenant: _Tenant) -> tuple[bool, int, int]:
        """Whose turn it is to give a block: first of those that are gone, then of who has most."""
        oldest = -tenant.leaves[0][0] if tenant.leaves else 0
        return self._now() - tenant.seen_at > SHARE_S, tenant.n_nodes, oldest


def _name(node: Node) -> str:
    """Who has the share that a node belongs to: its tenant, without the salt behind "/", or the adapter."""
    return node.realm.partition("\0")[0].partition("/")[0]
