"""Which rows of which sequences the next step computes.

There is no prefill phase and no decode phase.  The law: in each step a sequence is given at most the tokens
it has and has not computed.  Chunked prefill, decode, resuming after preemption are that one thing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvasir.backends.base import BLOCK
from kvasir.chat import FinishReason
from kvasir.engine.blocks import BlockPool
from kvasir.engine.sequence import Sequence
from kvasir.errors import CapacityError


@dataclass(frozen=True)
class Part:
    """A sequence's share of a step: its next `count` uncomputed tokens."""

    sequence: Sequence
    count: int


class Scheduler:
    """First come, first served, under a budget of `step_tokens` rows a step.  Mutable.

    Sequences with one pending token go first, so that a long prompt never holds up the answers under way.
    A sequence is let in when there are blocks for all its tokens, and takes them as it grows.  When they
    run out the youngest running sequence is preempted and waits at the front of the queue.
    """

    def __init__(self, pool: BlockPool, n_slots: int, max_sequences: int, step_tokens: int):
        self.pool, self.max_sequences, self.step_tokens = pool, max_sequences, step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self._slots = list(range(n_slots - 1, -1, -1))
        self._use_slots = n_slots > 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues it.  Raises CapacityError when its prompt would not fit even with the cache to itself."""
        have = self.pool.n_blocks * BLOCK
        if len(sequence.tokens) + 1 > have:
            raise CapacityError(
                f"the prompt has {len(sequence.tokens)} tokens and the KV cache holds {have} in all",
                hint="shorten the prompt, or free memory and load the model again",
            )
        self.waiting.append(sequence)

    def schedule(self) -> list[Part]:
        """The next step's parts; empty only if there is no work."""
        parts: dict[int, Part] = {}
        budget = self.step_tokens
        for sequence in sorted(self.running, key=lambda s: s.n_pending > 1):
            count = min(sequence.n_pending, budget)
            if count == 0 or sequence not in self.running:
                continue
            while sequence in self.running and not self._grow(sequence, count):
                victim = self._preempt_youngest()
                budget += parts.pop(id(victim)).count if id(victim) in parts else 0
            if sequence in self.running:
                parts[id(sequence)] = Part(sequence, count)
                budget -= count
        while budget and self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            # Not before all of it fits: else its own next chunk would soon preempt it, again and again.
            if (self._use_slots and not self._slots) or _blocks(len(sequence.tokens)) > self.pool.n_free:
                break
            count = min(sequence.n_pending, budget)
            self._grow(sequence, count)
            self.waiting.popleft()
            self._admit(sequence)
            parts[id(sequence)] = Part(sequence, count)
            budget -= count
        return list(parts.values())

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Takes it out, wherever it is, and frees what it held."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free_slot(sequence)
        self.pool.give_back(sequence.finish(reason))

    def check(self) -> None:
        """Raises Bug unless every block is accounted for."""
        self.pool.check(s.blocks for s in (*self.running, *self.waiting))

    def _admit(self, sequence: Sequence) -> None:
        sequence.begin(self._slots.pop() if self._use_slots else -1)
        # Kept in order of arrival: a resumed sequence is older than those that came after it.
        at = next(
            (i for i, s in enumerate(self.running) if s.asked_at > sequence.asked_at), len(self.running)
        )
        self.running.insert(at, sequence)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Blocks for `count` more tokens; False if the pool cannot give them."""
        need = _blocks(sequence.n_computed + count) - len(sequence.blocks)
        if need <= 0:
            return True
        taken = self.pool.take(need)
        sequence.hold(taken or [])
        return taken is not None

    def _preempt_youngest(self) -> Sequence:
        victim = self.running.pop()
        self._free_slot(victim)
        self.pool.give_back(victim.preempt())
        self.waiting.appendleft(victim)
        return victim

    def _free_slot(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._slots.append(sequence.slot)


def _blocks(n_tokens: int) -> int:
    return -(-n_tokens // BLOCK)
