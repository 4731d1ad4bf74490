"""The disk below the prefix cache: blocks that leave memory are written, and read where that is quicker.

The engine's thread asks and never waits for the disk: one thread of the lowest priority writes, two read
straight into blocks that were taken for it, and what they did is taken over between two steps.  Whatever is
wrong with the disk or a file is a miss and a number in the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Row
from contextlib import suppress
from time import monotonic, time
from weakref import WeakSet

from kvasir.backends.base import BLOCK, Bytes, Program
from kvasir.engine.cost import StepCost
from kvasir.engine.index import Index
from kvasir.engine.loads import Load, Read, Readers
from kvasir.engine.radix import PIN_S, Node, Radix
from kvasir.engine.segments import Record
from kvasir.engine.sequence import Sequence
from kvasir.engine.shelf import Pin, Shelf, next_key, read_about, root_key, state_key
from kvasir.engine.spool import Spool, Write
from kvasir.engine.stats import DiskStats, Tally

SCAN_WAIT_S = 0.5  # the first request waits so long for the list of what there is
LOAD_WAIT_S = 5.0  # a disk that has not answered by then is not waited for
LEAST_BLOCKS = 4  # a path shorter than that is computed sooner than anyone notices


class Disk:
    """The disk tier of one engine.  Mutable.  Its methods are for the engine's thread, `stats` for any."""

    def __init__(self, shelf: Shelf, program: Program, kv_format: str, about: dict[str, object]):
        self.shelf, self._program, self._kv, self._about = shelf, program, kv_format, about
        self.cost = StepCost()
        self.radix: Radix
        self.index = Index(shelf)
        self._slotted = any(s.kind == "slot" for s in program.plan.states.values())
        known = read_about(shelf.folder)
        self._token_s, self._rate = _positive(known.get("token_s")), _positive(known.get("rate"))
        self._asked: WeakSet[Sequence] = WeakSet()
        self._loads: list[Load] = []
        self._late: list[Load] = []  # nobody waits for them any more
        self._held: list[int] = []  # blocks that are being written
        self._pins_seen: Mapping[str, Pin] = {}
        self._tally = Tally()
        self.spool = Spool(shelf, self.index, self._measured, self._tally)
        self._readers = Readers(self.index, self._tally)

    def attach(self, radix: Radix, cost: StepCost) -> None:
        """Begins to serve this tree."""
        self.radix, self.cost = radix, cost
        radix.leaving = self.leaving
        self.spool.thread.start()

    # -- what there is ------------------------------------------------------------------------------

    def key_of(self, node: Node) -> bytes:
        """The node's key on disk."""
        pending = []
        while not node.key:
            if node.parent is None:
                tenant, _, adapter = node.realm.partition("\0")
                node.key = root_key(self.shelf.model, self._kv, tenant, adapter)
            else:
                pending.append(node)
                node = node.parent
        for each in reversed(pending):
            assert each.parent is not None
            each.key = next_key(each.parent.key, each.tokens)
        return pending[0].key if pending else node.key

    def _find(self, node: Node, tokens: Row[int], start: int) -> list[Record]:
        """The records that go on after `node`, for whole blocks of `tokens` from block `start` on; the last
        token is left to be computed.
        """
        found, key = list[Record](), self.key_of(node)
        for at in range(start, (len(tokens) - 1) // BLOCK):
            ids = tuple(tokens[at * BLOCK : (at + 1) * BLOCK])
            record = self.index.get(next_key(key, ids), key, ids)
            if record is None:
                break
            found.append(record)
            key = record.key
        return found

    # -- from disk to memory --------------------------------------------------------------------------

    def fetch(self, sequence: Sequence, path: list[Node], room: int) -> bool:
        """Whether the sequence should wait, because more of its prefix than `path` comes from disk.

        `room`: blocks that it could have beside the path.
        """
        if self.is_coming(sequence, len(path)):
            return True
        if sequence in self._asked:
            return False
        self._asked.add(sequence)
        self.index.ready.wait(SCAN_WAIT_S)
        self.spool.look()
        root = self.radix.root(sequence.realm)
        known = self.radix.match(sequence.realm, sequence.tokens) if self._slotted else path
        records = self._find(known[-1] if known else root, sequence.tokens, len(known))
        state = None
        if self._slotted:
            state, end = self._last_state(known, records, len(path))
            known, records = known[:end], records[: max(0, end - len(known))]
        n_blocks = len(known) + len(records) - len(path)
        if n_blocks <= 0 or len(records) > room or not self._pays(n_blocks, records, state):
            self._tally.add("n_misses", (len(sequence.tokens) - 1) // BLOCK > len(path))
            return False
        return self._begin(sequence, root, known, records, state)

    def _last_state(self, known: list[Node], records: list[Record], least: int) -> tuple[Record | None, int]:
        """The last recurrent state on disk along a path and the records after it, and the blocks before it;
        more than `least`.
        """
        keys = [self.key_of(node) for node in known] + [record.key for record in records]
        ids = [node.tokens for node in known] + [record.tokens for record in records]
        for end in range(len(keys), least, -1):
            state = self.index.get(state_key(keys[end - 1]), keys[end - 1], ids[end - 1])
            if state:
                return state, end
        return None, least

    def _pays(self, n_blocks: int, records: list[Record], state: Record | None) -> bool:
        """Whether reading is sooner done than computing, as far as either was measured."""
        rows = n_blocks * BLOCK
        compute_s = self.cost.predict(rows) or rows * self._token_s
        n_bytes = sum(r.n_bytes for r in records) + (state.n_bytes if state else 0)
        if not compute_s or not self._rate or n_bytes < self._rate * compute_s:
            return True
        self._rate *= 1.05  # so that it is tried again some time
        return False

    def _begin(
        self, sequence: Sequence, root: Node, known: list[Node], records: list[Record], state: Record | None
    ) -> bool:
        pool = self.radix.pool
        pool.share(node.block for node in known)
        if len(records) > pool.n_free:
            self.radix.evict(len(records) - pool.n_free)
        blocks = pool.take(len(records))
        slot = self.radix.take_slot() if state and blocks is not None else None
        if blocks is None or (state and slot is None):
            pool.give_back([*(node.block for node in known), *(blocks or [])])
            return False
        n_bytes = sum(r.n_bytes for r in records) + (state.n_bytes if state else 0)
        tokens = sequence.tokens[: (len(known) + len(records)) * BLOCK]
        at = -1 if slot is None else slot
        load = Load(sequence, root, known, tokens, blocks, at, n_bytes)
        self._loads.append(load)
        for number, (record, block) in enumerate(zip(records, blocks, strict=True)):
            self._readers.put(Read(load, number, record, self._program.block(block)))
        if state:
            self._readers.put(Read(load, len(records), state, self._program.slot(at)))
        return True

    def is_coming(self, sequence: Sequence, n_known: int) -> bool:
        """Whether the next block of its prompt is being read."""
        start, stop = n_known * BLOCK, (n_known + 1) * BLOCK
        return any(
            stop <= len(load.tokens) < len(sequence.tokens)
            and load.root.realm == sequence.realm
            and load.tokens[start:stop] == sequence.tokens[start:stop]
            and load.tokens[:start] == sequence.tokens[:start]
            for load in self._loads
        )

    @property
    def is_loading(self) -> bool:
        return bool(self._loads)

    def wait(self, wait_s: float) -> None:
        """Until something has been read."""
        self._readers.wait(wait_s)

    def land(self) -> None:
        """Takes over what was read and written since."""
        while self.spool.written:
            block = self.spool.written.popleft()
            self._held.remove(block)
            self.radix.pool.give_back([block])
        for load in [each for each in self._loads if not each.is_over and each.quiet_s > LOAD_WAIT_S]:
            self._loads.remove(load)
            self._late.append(load)
            self._tally.add("n_failed")
        for load in [each for each in (*self._loads, *self._late) if each.is_over]:
            self._land(load)
        if self._pins_seen is not self.index.pins:
            self._take_over_pins()

    def _land(self, load: Load) -> None:
        """Puts the blocks into the tree, as far as all before them were right too."""
        pool, node = self.radix.pool, load.path[-1] if load.path else load.root
        first, n_good = len(load.path), 0
        while load.done.get(n_good) and n_good < len(load.blocks):
            at = (first + n_good) * BLOCK
            node = self.radix.extend(node, tuple(load.tokens[at : at + BLOCK]), load.blocks[n_good])
            n_good += 1
        if load.slot >= 0:
            if n_good == len(load.blocks) and load.done[len(load.blocks)] and node.slot < 0:
                self.radix.remember(node, load.slot)
            else:
                self.radix.give_slot(load.slot)
        pool.give_back(load.blocks)
        pool.give_back(each.block for each in load.path)
        if node.parent is not None:
            self.radix.touch(node)
        if self._pins_seen:
            self._adopt(node.path())
        took_s = load.ended_at - load.begun_at
        if n_good == len(load.blocks) and took_s > 0:
            rate = load.n_bytes / took_s
            self._rate = rate if not self._rate else self._rate + 0.3 * (rate - self._rate)
        load.sequence.loaded(n_good * BLOCK)
        self._tally.add("n_hits", n_good > 0)
        self._tally.add("n_misses", n_good == 0)
        self._tally.add("n_tokens", n_good * BLOCK)
        (self._loads if load in self._loads else self._late).remove(load)

    def held(self) -> list[list[int]]:
        """The cache blocks that it has a part in, for the accounts."""
        loads = (*self._loads, *self._late)
        return [self._held, *([*ld.blocks, *(node.block for node in ld.path)] for ld in loads)]

    def slots(self) -> list[int]:
        """The places of recurrent states that are being read."""
        return [load.slot for load in (*self._loads, *self._late) if load.slot >= 0]

    # -- from memory to disk --------------------------------------------------------------------------

    def leaving(self, node: Node) -> None:
        """A block is about to leave memory: a copy of it is queued, if there is room and it is not there."""
        if not self.spool.is_open:
            return
        with suppress(MemoryError):
            for key, parent, pieces in self._parts(node):
                n_bytes = sum(map(len, pieces))
                if not self.spool.may_take(n_bytes):
                    self._tally.add("n_dropped")
                    return
                copies = tuple(piece.copy() for piece in pieces)
                self.spool.put([Write(key, parent, node.tokens, copies)])

    def _parts(self, node: Node) -> list[tuple[bytes, bytes, tuple[Bytes, ...]]]:
        """Key, parent and memory of a node's block, and of the recurrent state after it, unless they are on
        disk or on their way.
        """
        key, found = self.key_of(node), list[tuple[bytes, bytes, tuple[Bytes, ...]]]()
        assert node.parent is not None
        if key not in self.index and key not in self.spool:
            found.append((key, self.key_of(node.parent), self._program.block(node.block)))
        if node.slot >= 0:
            own = state_key(key)
            if own not in self.index and own not in self.spool:
                found.append((own, key, self._program.slot(node.slot)))
        return found

    def close(self, wait_s: float) -> None:
        """Writes what is in memory, what was used last first, and ends; whatever is not written by then is
        lost.  After the engine's last step; any number of times.
        """
        self.spool.close(self._worth_keeping, wait_s)
        self._readers.close()

    def _worth_keeping(self) -> list[Write]:
        """All blocks of the tree that belong to a path of some length, parents first, no more than half the
        quota; read where they lie, since nobody changes them any more.
        """
        found, seen, left = list[Write](), set[Node](), self.shelf.quota / 2
        leaves = [node for node in self.radix.nodes() if not node.children]
        goes_on = self.index.parents() | self.spool.parents()
        for leaf in sorted(leaves, key=lambda node: (-node.n_pins, -node.used)):
            path = list(leaf.path())[::-1]
            if len(path) < LEAST_BLOCKS and not leaf.n_pins and self.key_of(leaf) not in goes_on:
                continue
            for node in path:
                if node in seen:
                    continue
                seen.add(node)
                for key, parent, pieces in self._parts(node):
                    left -= sum(map(len, pieces))
                    if left < 0:
                        return found
                    found.append(Write(key, parent, node.tokens, pieces, node.block))
        return found

    # -- pins -----------------------------------------------------------------------------------------

    def pin(self, node: Node, text: str = "") -> None:
        """The path to `node` is pinned on disk too, and written soon."""
        path, writes = list(node.path())[::-1], list[Write]()
        for each in path:
            for key, parent, pieces in self._parts(each):
                if key == each.key:
                    self.radix.pool.share([each.block])
                    self._held.append(each.block)
                    writes.append(Write(key, parent, each.tokens, pieces, each.block))
        self.spool.put(writes)
        keys = tuple(self.key_of(each).hex() for each in path)
        self.index.pin(Pin(keys, len(path) * BLOCK, time() + PIN_S, text))
        self.spool.look(now=True)

    def _take_over_pins(self) -> None:
        """What other programs pinned and ended, as the file has it."""
        before, self._pins_seen = self._pins_seen, self.index.pins
        for name in before.keys() - self._pins_seen.keys():
            node = next((n for n in self.radix.pins if n.key.hex() == name), None)
            if node:
                self.radix.unpin(node)
        if self._pins_seen:
            self._adopt(self.radix.nodes())

    def _adopt(self, nodes: Iterable[Node]) -> None:
        """Pins in memory those of the nodes that are pinned on disk, as far as there is room for pins."""
        for node in list(nodes):
            pin = self._pins_seen.get(self.key_of(node).hex())
            if pin and self.radix.make_room(set(node.path())):
                left_s = float("inf") if pin.until is None else pin.until - time()
                self.radix.pin(node, monotonic() + left_s)

    # -- numbers --------------------------------------------------------------------------------------

    def stats(self) -> DiskStats:
        """What it did so far."""
        counts = self._tally.read()
        counts["n_corrupt"] += self.index.n_damaged
        return DiskStats(n_blocks=self.index.n_blocks, **counts)

    def _measured(self) -> dict[str, object]:
        """What the folder is to say of the model, and what the next start should know."""
        rows = self.cost.rows_known
        token_s = self.cost.predict(rows) / rows if rows else self._token_s
        return {**self._about, "token_s": token_s, "rate": self._rate}


def _positive(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e12 else 0.0
