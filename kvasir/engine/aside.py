"""Prompts beside answers: a chunk of them is computed in the gaps between the steps of others.

A few rows of a prompt in each step of answers keep the answers quick and the prompt dear: its past is read
anew for every few.  So the rows of prompts make a step of their own, which rests between two ops once it has
had its share of the time (`backends.base.Piecemeal`).  When a chunk is computed, and beside what, changes no
bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from time import perf_counter

from kvasir.backends.base import Batch, Floats, Piecemeal
from kvasir.engine.blocks import BlockPool
from kvasir.engine.masks import Masks
from kvasir.engine.part import Part
from kvasir.engine.radix import Radix
from kvasir.engine.sequence import Sequence
from kvasir.records import dataclass


class Aside:
    """What the chunk under way writes: its blocks and slots stay its own until it ends, whatever becomes of
    its sequences.  Mutable.
    """

    def __init__(self, pool: BlockPool, radix: Radix):
        self._pool, self._radix = pool, radix
        self.sequences = set[Sequence]()  # those still running
        self.blocks: list[int] = []
        self.slots: list[int] = []  # of sequences that ended

    def begin(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = set(sequences)
        self.blocks = [block for s in self.sequences for block in s.blocks]
        self._pool.share(self.blocks)

    def leave(self, sequence: Sequence) -> bool:
        """It ends; whether its slot stays with the chunk.  Nobody waits for a chunk without sequences."""
        if sequence not in self.sequences:
            return False
        self.sequences.remove(sequence)
        if self.sequences:
            self.slots += [sequence.slot] if sequence.slot >= 0 else []
            return True
        self.end()
        return False

    def end(self) -> None:
        """The chunk is computed, or nobody wants it."""
        self._pool.give_back(self.blocks)
        for slot in self.slots:
            self._radix.give_slot(slot)
        self.sequences, self.blocks, self.slots = set(), [], []


@dataclass
class Chunk:
    """Rows of prompts that are being computed: what the engine keeps of a step, and how long it has run."""

    parts: list[Part]
    counts: list[int]
    masks: dict[Sequence, Future[list[Floats]]]
    seconds: float = 0.0

    @property
    def n_rows(self) -> int:
        return sum(p.n_rows for p in self.parts)


class Gaps:
    """At most one chunk is under way.  Mutable; touched by the engine's thread alone."""

    def __init__(self, program: Piecemeal, aside: Aside, masks: Masks):
        self._program, self._aside, self._masks = program, aside, masks
        self._chunk: Chunk | None = None

    @property
    def is_open(self) -> bool:
        """Whether a chunk is under way that somebody waits for."""
        return bool(self._aside.sequences)

    def split(self, parts: list[Part], batch_of: Callable[[list[Part]], Batch]) -> list[Part]:
        """The parts that are a step now: where there are answers and prompts, the answers.  The prompts are
        begun.
        """
        later = [p for p in parts if not p.sequence.is_decoding]
        if not later or len(later) == len(parts):
            return parts
        self._program.begin_aside(batch_of(later))
        self._aside.begin(p.sequence for p in later)
        self._chunk = Chunk(later, [p.n_logits for p in later], self._masks.start(later))
        return [p for p in parts if p.sequence.is_decoding]

    def go_on(self, seconds: float) -> tuple[Chunk, Floats] | None:
        """About so many seconds more of the chunk; it and its output when it is done."""
        assert self._chunk
        begun = perf_counter()
        output = self._program.go_on(seconds)
        self._chunk.seconds += perf_counter() - begun
        if output is None:
            return None
        self._aside.end()
        return self._chunk, output
