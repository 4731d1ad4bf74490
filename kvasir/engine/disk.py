"""The disk below the prefix cache: blocks that leave memory are written, and read where that is quicker.

The engine's thread asks and never waits for the disk: one thread of the lowest priority writes, two read
straight into blocks that were taken for it, and what they did is taken over between two steps.  Whatever is
wrong with the disk or a file is a miss and a number in the statistics.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Row
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, time
from weakref import WeakSet

from kvasir.backends.base import BLOCK, Bytes, Program
from kvasir.engine.cost import StepCost
from kvasir.engine.index import Index
from kvasir.engine.radix import PIN_S, Node, Radix, Tokens
from kvasir.engine.segments import Damaged, Record, Writer, open_safely, read
from kvasir.engine.sequence import Sequence
from kvasir.engine.shelf import (
    Pin,
    Shelf,
    next_key,
    read_about,
    root_key,
    state_key,
    write_about,
)
from kvasir.engine.stats import DiskStats

QUEUE_BYTES = 64 << 20  # of blocks that left memory and wait to be written; more are not kept
READERS = 2
SCAN_WAIT_S = 0.5  # the first request waits so long for the list of what there is
LOAD_WAIT_S = 5.0  # a disk that has not answered by then is not waited for
RETRY_S = 60.0  # after a disk that could not be written
LOOK_S = 2.0  # between two looks at what other processes did
USED_S = 60.0  # how exact a segment's time of last use is
LEAST_BLOCKS = 4  # a path shorter than that is computed sooner than anyone notices


@dataclass(frozen=True)
class _Write:
    """A block to be written.  `held`: the cache block that `pieces` are the memory of, or -1 for a copy."""

    key: bytes
    parent: bytes
    tokens: Tokens
    pieces: tuple[Bytes, ...]
    held: int = -1

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class _Read:
    """A record to be read into `pieces`, as part `number` of a load."""

    load: Load
    number: int
    record: Record
    pieces: tuple[Bytes, ...]


@dataclass(eq=False)
class Load:
    """Blocks on their way from disk into memory.  Mutable; `done` is set by the readers.

    `path`: what memory has of the prefix already, and `blocks` come after it; `slot` takes the recurrent
    state at the end of both.
    """

    sequence: Sequence
    root: Node
    path: list[Node]
    tokens: list[int]
    blocks: list[int]
    slot: int
    n_parts: int
    n_bytes: int
    begun_at: float
    ended_at: float = 0.0
    done: dict[int, bool] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return len(self.done) == self.n_parts


class Disk:
    """The disk tier of one engine.  Mutable.  Its methods are for the engine's thread, `stats` for any."""

    def __init__(self, shelf: Shelf, program: Program, kv_format: str, about: dict[str, object]):
        self.shelf, self._program, self._kv, self._about = shelf, program, kv_format, about
        self.cost = StepCost()
        self.radix: Radix
        self.index = Index(shelf)
        self._slotted = any(s.kind == "slot" for s in program.plan.states.values())
        self._block_bytes = sum(map(len, program.block(0)))
        known = read_about(shelf.folder)
        self._token_s, self._rate = _positive(known.get("token_s")), _positive(known.get("rate"))
        self._allowance, self._allowed_at = shelf.quota / 4, monotonic()
        self._asked: WeakSet[Sequence] = WeakSet()
        self._loads: list[Load] = []
        self._late: list[Load] = []
        self._reads: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        self._landed = threading.Event()
        self._changed = threading.Condition()
        self._writes: deque[_Write] = deque()
        self._queued: set[bytes] = set()
        self._written: deque[int] = deque()  # held blocks that may go
        self._held: list[int] = []
        self._queued_bytes, self._looked_at = 0, 0.0
        self._closing = self._ending = self._hurry = False
        self._not_before = 0.0
        self._pins_seen: Mapping[str, Pin] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._readers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="prefix writer", daemon=True)

    def attach(self, radix: Radix, cost: StepCost) -> None:
        """Begins to serve this tree."""
        self.radix, self.cost = radix, cost
        radix.leaving = self.leaving
        self._thread.start()

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
        self._look()
        root = self.radix.root(sequence.realm)
        known = self.radix.match(sequence.realm, sequence.tokens) if self._slotted else path
        records = self._find(known[-1] if known else root, sequence.tokens, len(known))
        state = None
        if self._slotted:
            state, end = self._last_state(known, records, len(path))
            known, records = known[:end], records[: max(0, end - len(known))]
        n_blocks = len(known) + len(records) - len(path)
        if n_blocks <= 0 or len(records) > room or not self._pays(n_blocks, records, state):
            self._count("n_misses", (len(sequence.tokens) - 1) // BLOCK > len(path))
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
        load = Load(sequence, root, known, tokens, blocks, at, len(records) + (at >= 0), n_bytes, monotonic())
        self._loads.append(load)
        while len(self._readers) < READERS:
            self._readers.append(threading.Thread(target=self._serve, name="prefix reader", daemon=True))
            self._readers[-1].start()
        for number, (record, block) in enumerate(zip(records, blocks, strict=True)):
            self._reads.put(_Read(load, number, record, self._program.block(block)))
        if state:
            self._reads.put(_Read(load, len(records), state, self._program.slot(at)))
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
        self._landed.wait(wait_s)
        self._landed.clear()

    def land(self) -> None:
        """Takes over what was read and written since."""
        while self._written:
            block = self._written.popleft()
            self._held.remove(block)
            self.radix.pool.give_back([block])
        now = monotonic()
        for load in [each for each in self._loads if not each.is_over]:
            if now - max(load.begun_at, load.ended_at) > LOAD_WAIT_S:
                self._loads.remove(load)
                self._late.append(load)
                self._count("n_failed")
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
        self._count("n_hits", n_good > 0)
        self._count("n_misses", n_good == 0)
        self._count("n_tokens", n_good * BLOCK)
        (self._loads if load in self._loads else self._late).remove(load)

    def held(self) -> list[list[int]]:
        """The cache blocks that it has a part in, for the accounts."""
        loads = (*self._loads, *self._late)
        return [self._held, *([*ld.blocks, *(node.block for node in ld.path)] for ld in loads)]

    @property
    def n_slots_held(self) -> int:
        return sum(load.slot >= 0 for load in (*self._loads, *self._late))

    # -- from memory to disk --------------------------------------------------------------------------

    def leaving(self, node: Node) -> None:
        """A block is about to leave memory: a copy of it is queued, if there is room and it is not there."""
        if monotonic() < self._not_before or not self.index.may_become_mine:
            return
        with suppress(MemoryError):
            for key, parent, pieces in self._parts(node):
                n_bytes = sum(map(len, pieces))
                if not self._may_write(n_bytes):
                    self._count("n_dropped")
                    return
                copies = tuple(piece.copy() for piece in pieces)
                self._put([_Write(key, parent, node.tokens, copies)])

    def _parts(self, node: Node) -> list[tuple[bytes, bytes, tuple[Bytes, ...]]]:
        """Key, parent and memory of a node's block, and of the recurrent state after it, unless they are on
        disk or on their way.
        """
        key, found = self.key_of(node), list[tuple[bytes, bytes, tuple[Bytes, ...]]]()
        assert node.parent is not None
        if key not in self.index and key not in self._queued:
            found.append((key, self.key_of(node.parent), self._program.block(node.block)))
        if node.slot >= 0:
            own = state_key(key)
            if own not in self.index and own not in self._queued:
                found.append((own, key, self._program.slot(node.slot)))
        return found

    def _may_write(self, n_bytes: int) -> bool:
        """Whether a block that leaves memory is kept: not more of them in an hour than the quota holds."""
        now = monotonic()
        quota = self.shelf.quota
        self._allowance = min(quota / 4, self._allowance + (now - self._allowed_at) * quota / 3600)
        self._allowed_at = now
        if self._queued_bytes + n_bytes > QUEUE_BYTES or n_bytes > self._allowance:
            return False
        self._allowance -= n_bytes
        return True

    def _put(self, writes: list[_Write]) -> None:
        with self._changed:
            for write in writes:
                self._writes.append(write)
                self._queued.add(write.key)
                self._queued_bytes += write.n_bytes if write.held < 0 else 0
            self._changed.notify()

    def close(self, wait_s: float) -> None:
        """Writes what is in memory, what was used last first, and ends; whatever is not written by then is
        lost.  After the engine's last step.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
        self._put(self._worth_keeping())
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(wait_s)
        self._hurry = True
        self._thread.join(0.1)
        for _ in self._readers:
            self._reads.put(None)

    def _worth_keeping(self) -> list[_Write]:
        """All blocks of the tree that belong to a path of some length, parents first, no more than half the
        quota; read where they lie, since nobody changes them any more.
        """
        found, seen, left = list[_Write](), set[Node](), self.shelf.quota / 2
        leaves = [node for node in self.radix.nodes() if not node.children]
        goes_on = self.index.parents() | {write.parent for write in tuple(self._writes)}
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
                    found.append(_Write(key, parent, node.tokens, pieces, node.block))
        return found

    # -- pins -----------------------------------------------------------------------------------------

    def pin(self, node: Node, text: str = "") -> None:
        """The path to `node` is pinned on disk too, and written soon."""
        path, writes = list(node.path())[::-1], list[_Write]()
        for each in path:
            for key, parent, pieces in self._parts(each):
                if key == each.key:
                    self.radix.pool.share([each.block])
                    self._held.append(each.block)
                    writes.append(_Write(key, parent, each.tokens, pieces, each.block))
        self._put(writes)
        keys = tuple(self.key_of(each).hex() for each in path)
        self.index.pin(Pin(keys, len(path) * BLOCK, time() + PIN_S, text))
        self._look(now=True)

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
            if pin and len(self.radix.pinned() | set(node.path())) <= self.radix.most_pinned:
                left_s = float("inf") if pin.until is None else pin.until - time()
                self.radix.pin(node, monotonic() + left_s)

    # -- numbers --------------------------------------------------------------------------------------

    def stats(self) -> DiskStats:
        """What it did so far."""
        with self._lock:
            counts = Counter(self._counts)
        counts["n_corrupt"] += self.index.n_damaged
        return DiskStats(n_blocks=self.index.n_blocks, **counts)

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    # -- threads --------------------------------------------------------------------------------------

    def _look(self, now: bool = False) -> None:
        """Has the thread look at the folder, every now and then."""
        if now or monotonic() - self._looked_at > LOOK_S:
            self._looked_at = monotonic()
            with self._changed:
                self.index.wants_look = True
                self._changed.notify()

    def _serve(self) -> None:
        """A thread that reads."""
        while job := self._reads.get():
            right = False
            try:
                with open_safely(job.record.path) as file:
                    own = job.record
                    read(file, own, own.key, own.parent, own.tokens, job.pieces)
                    _used_now(file.fileno())
                right = True
                self._count("read_bytes", own.n_bytes)
            except Damaged:
                self.index.drop(job.record)
                self._count("n_corrupt")
            except Exception:  # whatever ails the disk, the prefix is computed
                self.index.drop(job.record)
                self._count("n_failed")
            job.load.ended_at = monotonic()
            job.load.done[job.number] = right
            self._landed.set()

    def _run(self) -> None:
        """The thread that looks through the folder and writes."""
        self.index.look()
        _yield_to_others()
        writer = Writer(
            self.shelf.folder, self.shelf.model, self.shelf.most_segment_bytes, self.shelf.make_room
        )
        while not self._hurry:
            with self._changed:
                while not (self._writes or self._ending or self.index.wants_look):
                    self._changed.wait()
                job = self._writes.popleft() if self._writes else None
                wants_look, self.index.wants_look = self.index.wants_look, False
                over = self._ending and job is None
            if wants_look:
                self.index.look()
            if job:
                self._write(writer, job)
            elif over:
                break
        self._end(writer)

    def _write(self, writer: Writer, job: _Write) -> None:
        if monotonic() >= self._not_before and job.key not in self.index:
            try:
                if self.index.may_write(writer, self._about):
                    self.index.add(writer.append(job.key, job.parent, job.tokens, job.pieces))
                    self._count("n_written")
                    self._count("written_bytes", job.n_bytes)
            except Exception:  # a full disk, a folder that cannot be written: left alone for a while
                self._count("n_failed")
                self._not_before = monotonic() + RETRY_S
        with self._changed:
            self._queued.discard(job.key)
            self._queued_bytes -= job.n_bytes if job.held < 0 else 0
        if job.held >= 0:
            self._written.append(job.held)

    def _end(self, writer: Writer) -> None:
        """What was measured is noted for the next start."""
        with suppress(OSError):
            if self.index.is_mine:
                rows = self.cost.rows_known
                token_s = self.cost.predict(rows) / rows if rows else self._token_s
                write_about(self.shelf.folder, {**self._about, "token_s": token_s, "rate": self._rate})
                if not self._hurry:
                    writer.settle()
        writer.close()
        self.index.close()


def _positive(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e12 else 0.0


def _used_now(fd: int) -> None:
    """A segment's time of change is that of its last use."""
    with suppress(OSError):
        if time() - os.fstat(fd).st_mtime > USED_S:
            os.utime(fd)


def _yield_to_others() -> None:
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
