"""One step ahead: a decode is begun before anybody has read what the one before it chose.

Only a program whose rows choose on the device can do so (`backends.base.Ahead`), and only for sequences whose
choice needs nothing from the host: no constraint, no penalty, no log probabilities.  A row that was begun for
a sequence which turns out to have ended is not read; what it wrote lies beyond what is filed.
"""

from __future__ import annotations

import numpy as np

from kvasir.backends.base import Ahead, Batch, Ints, Pending
from kvasir.engine.part import Part
from kvasir.engine.scheduler import Scheduler
from kvasir.engine.sequence import Sequence
from kvasir.records import dataclass
from kvasir.sampling import uniform


@dataclass(frozen=True)
class Flight:
    """A step under way: row r is of sequences[r]."""

    sequences: tuple[Sequence, ...]
    pending: Pending


class Pilot:
    """Keeps one step in the air.  Mutable; touched by the engine's thread alone."""

    def __init__(self, program: Ahead, scheduler: Scheduler):
        self._program, self._scheduler = program, scheduler
        self._flight: Flight | None = None
        self.n_ahead = 0  # steps that were begun before the one before was read

    @property
    def is_flying(self) -> bool:
        return self._flight is not None

    def takes(self, parts: list[Part]) -> bool:
        """Whether these are decodes that choose by themselves, and nobody waits to be let in."""
        plain = all(p.count == 1 and p.n_logits == 1 and not p.drafts and _plain(p.sequence) for p in parts)
        return plain and bool(parts)

    def begin(self, parts: list[Part], batch: Batch) -> None:
        """Begins the step of these parts."""
        self._flight = self._begun(tuple(p.sequence for p in parts), batch)

    def land(self) -> list[tuple[Sequence, int]]:
        """The token that each sequence still running chose; the next step is begun first, if it can be."""
        flight = self._flight
        assert flight is not None
        self._flight = self._following(flight)
        ids = flight.pending.ids()
        return [(s, int(id)) for s, id in zip(flight.sequences, ids, strict=True) if s.finished is None]

    def _following(self, flight: Flight) -> Flight | None:
        going = [(r, s) for r, s in enumerate(flight.sequences) if s.finished is None]
        sequences = [s for _, s in going]
        if not going or self._scheduler.n_waiting or set(sequences) != set(self._scheduler.running):
            return None
        if any(s.most_drafts < 1 or self._scheduler.room_for_drafts(s, 1) < 1 for s in sequences):
            return None
        self.n_ahead += 1
        tokens = np.array([-1 - r for r, _ in going], np.int32)
        return self._begun(tuple(sequences), _after(sequences, tokens), more=1)

    def _begun(self, sequences: tuple[Sequence, ...], batch: Batch, more: int = 0) -> Flight:
        """`more`: tokens that a sequence has beyond those that are known."""
        drawn = [
            uniform(s.seed, s.index, len(s.tokens) + more) if s.params.temperature else 0.0 for s in sequences
        ]
        return Flight(sequences, self._program.begin(batch, [s.params for s in sequences], drawn))


def _after(sequences: list[Sequence], tokens: Ints) -> Batch:
    """One row of each, after its last token."""
    blocks = np.full((len(sequences), max(len(s.blocks) for s in sequences)), -1, np.int32)
    for n, sequence in enumerate(sequences):
        blocks[n, : len(sequence.blocks)] = sequence.blocks
    positions = np.array([len(s.tokens) for s in sequences], np.int32)
    counted, none = np.arange(len(sequences) + 1, dtype=np.int32), np.full(len(sequences), -1, np.int32)
    return Batch(tokens, positions, counted, blocks, none, counted[:-1])


def _plain(s: Sequence) -> bool:
    p = s.params
    penalized = (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1, 0, 0)
    told = p.logprobs is not None or s.is_scored or s.guide is not None or bool(s.adapter)
    bent = bool(p.logit_bias) or bool(p.allowed_token_ids) or p.typical_p < 1
    return not (told or bent or (penalized and p.repeat_last_n)) and s.n_generated >= p.min_tokens
