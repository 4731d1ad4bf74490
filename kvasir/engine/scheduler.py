"""Which rows of which sequences the next step computes.

There is no prefill phase and no decode phase.  The law: in each step a sequence is given at most the tokens
it has and has not computed, and perhaps some that a drafter guesses to come after them.  Chunked prefill,
decode, a prefix that is known already, resuming after preemption, verifying drafts are that one thing.
"""

from __future__ import annotations

from bisect import insort
from time import monotonic

from kvasir.backends.base import BLOCK
from kvasir.chat import FinishReason
from kvasir.engine.aside import Aside
from kvasir.engine.blocks import BlockPool
from kvasir.engine.cost import Pace, StepCost
from kvasir.engine.disk import Disk
from kvasir.engine.part import Part
from kvasir.engine.radix import PIN_S, Node, Radix
from kvasir.engine.sequence import Sequence
from kvasir.errors import CapacityError

SCORED_ROWS = 32  # of a prompt whose log probabilities are wanted, a step: logits are many numbers
SPARSE = 8  # of a long prompt's recurrent states those are kept that are an eighth of it apart
LOOK_AHEAD = 32  # waiting sequences of a tenant that may pass one which had better wait


class Scheduler:
    """Higher priority first, then first come, first served; among tenants of one priority, the one that was
    given fewest rows of late goes first.  Mutable.

    A step has at most `step_tokens` rows.  Sequences that give a token go first, so that a long prompt never
    holds up the answers under way, and while there are such, prompts get chunks that keep the step not much
    longer than it is without them (`Pace`); where a program can rest, they get a chunk beside, one at a time
    (`aside`).  A sequence is let in when there are blocks for all its tokens, and takes them as it grows.
    When they run out, what the prefix cache keeps goes first; then the last sequence in order is preempted,
    and waits.
    """

    def __init__(
        self,
        pool: BlockPool,
        n_slots: int,
        max_sequences: int,
        step_tokens: int,
        cost: StepCost | None = None,
        reuse: bool = True,
        disk: Disk | None = None,
        piecemeal: bool = False,
    ):
        self.pool, self.max_sequences, self.step_tokens = pool, max_sequences, step_tokens
        self.cost, self.pace = cost or StepCost(), Pace()
        self.radix = Radix(pool, n_slots)
        self.aside, self._piecemeal = Aside(pool, self.radix), piecemeal
        self.n_new = 0  # sequences without a first token when the last step was scheduled
        self.disk = disk if reuse else None
        if self.disk:
            self.disk.attach(self.radix, self.cost)
        self.running: list[Sequence] = []  # in order of rank
        self.copies: list[tuple[int, int]] = []  # recurrent states to copy, slot to slot, before the step
        self._waiting: dict[str, list[Sequence]] = {}  # by tenant, in order of rank
        self._given: dict[str, int] = {}  # rows a tenant was given, as far as it matters for its turn
        self._use_slots, self._reuse = n_slots > 0, reuse

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.running)

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that are not let in yet, in order of rank."""
        return sorted((s for queue in self._waiting.values() for s in queue), key=_rank)

    @property
    def n_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, sequence: Sequence) -> None:
        """Queues it.  Raises CapacityError when its prompt would not fit even with the cache to itself."""
        have = self.pool.n_blocks * BLOCK
        if len(sequence.tokens) + 1 > have:
            raise CapacityError(
                f"the prompt has {len(sequence.tokens)} tokens and the KV cache holds {have} in all",
                hint="shorten the prompt, or free memory and load the model again",
            )
        self._wait(sequence)

    def schedule(self) -> list[Part]:
        """The next step's parts; empty only if there is no work."""
        if self.disk:
            self.disk.land()
        if self.radix.pins:
            self.radix.unpin_overdue()
        parts: dict[int, Part] = {}
        budget = self.step_tokens
        for sequence in [s for s in self.running if s.is_decoding]:
            count = self._chunk(sequence, budget - sum(p.count for p in parts.values()))
            self._give(sequence, count, parts)
        n_rows = sum(p.count for p in parts.values())
        budget -= n_rows
        free = min(self.n_waiting, self.max_sequences - len(self.running))
        self.n_new = sum(not s.is_decoding for s in self.running) + free
        if self.aside.sequences:
            budget = 0
        elif parts:
            rows = self.pace.chunk if self._piecemeal else self.pace.rows
            budget = min(budget, rows(n_rows, self.n_new, budget))
        for sequence in [s for s in self.running if not s.is_decoding]:
            budget -= self._give(sequence, self._chunk(sequence, budget), parts)
        while budget > 0 and self._waiting and len(self.running) < self.max_sequences:
            admitted = self._admit_next()
            if admitted is None:
                break
            budget -= self._give(admitted, self._chunk(admitted, budget), parts)
        return list(parts.values())

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Takes it out, wherever it is, and frees what it held."""
        if sequence in self.running:
            self.file(sequence)
            self.running.remove(sequence)
        else:
            self._unwait(sequence)
        self._release(sequence)
        self.pool.give_back(sequence.finish(reason))

    def file(self, sequence: Sequence) -> None:
        """Puts the blocks that are full by now into the prefix cache; a twin of one there is swapped for
        it.
        """
        if not self._reuse:
            return
        node = sequence.node or self.radix.root(sequence.realm)
        while (sequence.n_filed + 1) * BLOCK <= sequence.n_computed:
            at = sequence.n_filed
            node = self.radix.extend(
                node, tuple(sequence.tokens[at * BLOCK : (at + 1) * BLOCK]), sequence.blocks[at]
            )
            if node.block != sequence.blocks[at]:
                self.pool.share([node.block])
                self.pool.give_back([sequence.swap(at, node.block)])
            sequence.file(node)
        if sequence.pin is not None and 0 < sequence.n_prompt // BLOCK <= sequence.n_filed:
            self._pin_prompt(sequence, node)
        if 0 < (n_blocks := sequence.n_hold // BLOCK) <= sequence.n_filed:
            until = monotonic() + sequence.hold_s
            stays = self.radix.hold(self._ancestor(sequence, node, n_blocks), until)
            sequence.held(n_blocks * BLOCK if stays else 0)

    def _pin_prompt(self, sequence: Sequence, node: Node) -> None:
        """Pins the whole blocks of its prompt, if there is still room for pins."""
        node = self._ancestor(sequence, node, sequence.n_prompt // BLOCK)
        if self.radix.make_room(set(node.path())):
            self._pin(node, sequence.pin or "")
        sequence.pinned()

    def _ancestor(self, sequence: Sequence, node: Node, n_blocks: int) -> Node:
        """The end of the first blocks of its path, which ends at `node`."""
        for _ in range(sequence.n_filed - n_blocks):
            assert node.parent is not None
            node = node.parent
        return node

    def _pin(self, node: Node, text: str = "") -> None:
        self.radix.pin(node, monotonic() + PIN_S)
        if self.disk:
            self.disk.pin(node, text)

    def snapshot(self, sequence: Sequence) -> tuple[int, int] | None:
        """Slots from and to which its recurrent state should be copied now: at the end of each chunk of a
        prompt, and at the newest border of an answer in place of the one before.
        """
        node = sequence.node
        if not (self._use_slots and self._reuse and node) or sequence.n_filed * BLOCK != sequence.n_computed:
            return None
        if (
            sequence.n_pending > BLOCK
            and sequence.n_computed - sequence.n_kept < sequence.n_computed // SPARSE
        ):
            return None  # small chunks of a long prompt: the states of others are worth more
        if sequence.snapshot:
            self.radix.forget(sequence.snapshot)
            sequence.keep(None)
        if node.slot >= 0 or (slot := self.radix.take_slot()) is None:
            return None
        self.radix.remember(node, slot)
        sequence.keep_at(sequence.n_computed)
        if sequence.n_generated:
            sequence.keep(node)
        return sequence.slot, slot

    def check(self) -> None:
        """Raises Bug unless every block is accounted for, and every place of a recurrent state."""
        held = [*self.disk.held()] if self.disk else []
        held += [self.radix.blocks(), self.aside.blocks]
        self.pool.check([*(s.blocks for s in (*self.running, *self.waiting)), *held])
        loading = [*self.disk.slots()] if self.disk else []
        self.radix.check_slots([*(s.slot for s in self.running if s.slot >= 0), *loading, *self.aside.slots])

    def room_for_drafts(self, sequence: Sequence, wanted: int) -> int:
        """How many of `wanted` rows after its one pending token have blocks: nobody is preempted for a
        guess.
        """
        while len(sequence.blocks) < _blocks(len(sequence.tokens) + wanted):
            if not self.pool.n_free:
                self.radix.evict(1)
            taken = self.pool.take(1)
            if taken is None:
                break
            sequence.hold(taken)
        room = len(sequence.blocks) * BLOCK - len(sequence.tokens)
        if self._use_slots and self._reuse:  # a step ends where a snapshot can be taken
            room = min(room, -len(sequence.tokens) % BLOCK)
        return max(0, min(wanted, room))

    # -- letting in ---------------------------------------------------------------------------------

    def _admit_next(self) -> Sequence | None:
        """Lets in the next sequence in order; None when there is no room for it or all had better wait."""
        heads = sorted(
            self._waiting.values(),
            key=lambda q: (-q[0].priority, self._given.get(q[0].tenant, 0), q[0].asked_at),
        )
        for queue in heads:
            for sequence in queue[:LOOK_AHEAD]:
                path = self._known(sequence)
                if self._reuse and self._is_under_way(sequence, len(path)):
                    continue
                room = self._room(path)
                # Not before all of it fits: else its own next chunk would soon preempt it, again and again.
                if (self._use_slots and not self.radix.n_slots_free) or (
                    _blocks(len(sequence.tokens)) - len(path) > room
                ):
                    return None
                if self.disk and not sequence.is_scored and self.disk.fetch(sequence, path, room):
                    continue
                self._admit(sequence, path)
                return sequence
        return None

    def _room(self, path: list[Node]) -> int:
        """Blocks that a sequence could have beside those of its path.  What is pinned gives way only to one
        that has the cache to itself.
        """
        kept = set(path)
        if self.radix.pins and (self.running or (self.disk and self.disk.is_loading)):
            kept |= self.radix.pinned()
        return self.pool.n_free + self.pool.n_idle - sum(self.pool.is_idle(node.block) for node in kept)

    def _known(self, sequence: Sequence) -> list[Node]:
        """The path of the prefix cache that the sequence can begin with."""
        reuse = self._reuse and not sequence.is_scored
        path = self.radix.match(sequence.realm, sequence.tokens) if reuse else []
        while self._use_slots and path and path[-1].slot < 0:
            path.pop()
        return path

    def _is_under_way(self, sequence: Sequence, n_known: int) -> bool:
        """Whether the next block of its prompt is being computed by another sequence right now."""
        start, stop = n_known * BLOCK, (n_known + 1) * BLOCK
        if stop >= len(sequence.tokens) or sequence.is_scored:
            return False
        wanted = sequence.tokens[:stop]
        return any(
            s.n_computed < stop
            and s.n_pending > 1
            and s.tokens[start:stop] == wanted[start:]
            and s.realm == sequence.realm
            and s.tokens[:stop] == wanted
            for s in self.running
        )

    def _admit(self, sequence: Sequence, path: list[Node]) -> None:
        self._unwait(sequence)
        self.pool.share(node.block for node in path)
        if self.radix.pins:
            for node in path:
                is_late = self.radix.pins.get(node, float("inf")) < monotonic() + PIN_S / 2
                if is_late and node not in self.radix.held:
                    self._pin(node)
        slot = -1
        if self._use_slots:
            kept = path[-1].slot if path else -1
            if path:
                self.radix.touch(path[-1])
            taken = self.radix.take_slot()
            assert taken is not None
            slot = taken
            if path and kept != slot:
                self.copies.append((kept, slot))
        sequence.begin(slot, path)
        insort(self.running, sequence, key=_rank)

    def _wait(self, sequence: Sequence) -> None:
        active = {s.tenant for s in self.running} | self._waiting.keys()
        if sequence.tenant not in active:  # time that it did not ask for is not owed to it
            self._given = {t: n for t, n in self._given.items() if t in active}
            self._given[sequence.tenant] = min(self._given.values(), default=0)
        insort(self._waiting.setdefault(sequence.tenant, []), sequence, key=_rank)

    def _unwait(self, sequence: Sequence) -> None:
        queue = self._waiting.get(sequence.tenant, [])
        if sequence in queue:
            queue.remove(sequence)
            if not queue:
                del self._waiting[sequence.tenant]

    # -- growing ------------------------------------------------------------------------------------

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """How many of its pending tokens go into this step."""
        count = min(sequence.n_pending, budget)
        if sequence.is_scored:
            count = min(count, SCORED_ROWS)
        if self._use_slots and self._reuse:  # chunks end where a snapshot can be taken
            stop = sequence.n_computed + count
            border = min(stop, len(sequence.tokens) - 1) // BLOCK * BLOCK
            if border > sequence.n_computed:
                return border - sequence.n_computed
        return count

    def _give(self, sequence: Sequence, count: int, parts: dict[int, Part]) -> int:
        """Rows for it in this step, with blocks for them; preempts the last in order until there are some."""
        if count <= 0 or sequence not in self.running:
            return 0
        freed = 0
        while sequence in self.running and not self._grow(sequence, count):
            victim = self._preempt_last()
            freed += parts.pop(id(victim)).count if id(victim) in parts else 0
        if sequence not in self.running:
            return -freed
        parts[id(sequence)] = Part(sequence, count)
        self._given[sequence.tenant] = self._given.get(sequence.tenant, 0) + count
        return count - freed

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Blocks for `count` more tokens; False if there are none to be had."""
        need = _blocks(sequence.n_computed + count) - len(sequence.blocks)
        if need <= 0:
            return True
        if need > self.pool.n_free:
            self.radix.evict(need - self.pool.n_free)
        if need > self.pool.n_free and self.radix.pins and self.running == [sequence]:
            self.radix.evict(need - self.pool.n_free, pinned=True)
        taken = self.pool.take(need)
        sequence.hold(taken or [])
        return taken is not None

    def _preempt_last(self) -> Sequence:
        victim = self.running[-1]
        if victim in self.aside.sequences:  # the chunk ends too: it writes the blocks that are wanted
            gone = self.aside.sequences
            self.aside.end()
        else:
            gone = {victim}
        for sequence in gone:
            self.running.remove(sequence)
            self._release(sequence)
            self.pool.give_back(sequence.preempt())
            self._wait(sequence)
        return victim

    def _release(self, sequence: Sequence) -> None:
        if sequence.node:
            self.radix.touch(sequence.node)
        stays = self.aside.leave(sequence)
        if sequence.slot >= 0 and not stays:
            self.radix.give_slot(sequence.slot)


def _rank(sequence: Sequence) -> tuple[int, float]:
    return -sequence.priority, sequence.asked_at


def _blocks(n_tokens: int) -> int:
    return -(-n_tokens // BLOCK)
