"""Guesses by a smaller model with the same vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from time import perf_counter

import numpy as np

from kvasir.backends.base import BLOCK, Batch, Floats, Program
from kvasir.engine import sequence as seq
from kvasir.engine.blocks import BlockPool
from kvasir.errors import Bug
from kvasir.records import dataclass
from kvasir.sampling import uniform

CATCH_UP = (
    256  # tokens of texts that it has not read yet which it reads a round; a guess comes after all of them
)
FORGET = 0.1


@dataclass
class _Track:
    """What the draft model's cache holds of one sequence.  Mutable.

    A recurrent state takes no row back: `saved` is the slot of that after the first `n_saved` tokens.
    """

    tokens: list[int] = field(default_factory=list)
    n_agreed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    saved: int = -1
    n_saved: int = 0

    def agree(self, tokens: list[int]) -> None:
        """Drops guesses that did not come true.  At least one of `tokens` stays to be computed."""
        n, most = self.n_agreed, min(len(self.tokens), len(tokens) - 1)
        while n < most and self.tokens[n] == tokens[n]:
            n += 1
        n = min(n, most)
        if n < len(self.tokens) and self.slot >= 0:
            n = min(n, self.n_saved)
            self.slot, self.saved = self.saved, self.slot
        del self.tokens[n:]
        self.n_agreed = n


class ModelDrafter:
    """Mutable: holds the draft model's cache.  One caller at a time.

    It draws with the numbers that the model itself will draw with, so that two models of one mind choose the
    same token at any temperature.
    """

    def __init__(self, program: Program):
        self.program, self.pool = program, BlockPool(program.memory.n_blocks)
        self._slotted = any(s.kind == "slot" for s in program.plan.states.values())
        self._slots = list(range(program.memory.n_slots)) if self._slotted else []
        self.cost_s = 0.0
        self._tracks: dict[seq.Sequence, _Track] = {}

    def propose(self, wanted: Sequence[tuple[seq.Sequence, int]]) -> list[list[int]]:
        """At most so many tokens to come after each sequence's own; none while its text is being read."""
        found: dict[seq.Sequence, list[int]] = {s: [] for s, _ in wanted}
        begun, room = perf_counter(), CATCH_UP
        going: list[tuple[seq.Sequence, int]] = []
        rows: list[tuple[_Track, list[int]]] = []
        for sequence, count in wanted:
            track = self._tracks.setdefault(sequence, _Track())
            track.agree(sequence.tokens)
            pending = sequence.tokens[len(track.tokens) :][: max(room, 1)]
            if not self._hold(track, len(sequence.tokens) + count):
                continue
            room -= len(pending)
            rows.append((track, pending))
            if len(track.tokens) + len(pending) == len(sequence.tokens):
                going.append((sequence, count))
        logits = self._compute(rows) if rows else []
        for sequence, count in going:
            if count > 1 and self._slotted:
                self._save(self._tracks[sequence])
        last = {id(track): row for (track, _), row in zip(rows, logits, strict=True)}
        while going:
            rows = []
            for sequence, _ in going:
                track = self._tracks[sequence]
                found[sequence].append(self._choose(sequence, found[sequence], last[id(track)]))
                rows.append((track, found[sequence][-1:]))
            left = [(s, n) for s, n in going if len(found[s]) < n]
            rows = [(t, r) for (s, n), (t, r) in zip(going, rows, strict=True) if len(found[s]) < n]
            if rows:
                logits = self._compute(rows)
                last = {id(track): row for (track, _), row in zip(rows, logits, strict=True)}
            going = left
        made = sum(map(len, found.values()))
        if made:
            each = (perf_counter() - begun) / made
            self.cost_s = (
                self.cost_s + FORGET * (min(each, 4 * self.cost_s) - self.cost_s) if self.cost_s else each
            )
        return [found[s] for s, _ in wanted]

    def forget(self, sequence: seq.Sequence) -> None:
        """Frees what was kept for it."""
        if track := self._tracks.pop(sequence, None):
            self.pool.give_back(track.blocks)
            self._slots += [slot for slot in (track.slot, track.saved) if slot >= 0]

    def check(self) -> None:
        """Raises Bug unless every block is accounted for, and every place of a recurrent state."""
        self.pool.check(t.blocks for t in self._tracks.values())
        used = [slot for t in self._tracks.values() for slot in (t.slot, t.saved) if slot >= 0]
        if self._slotted and sorted([*self._slots, *used]) != list(range(self.program.memory.n_slots)):
            raise Bug(f"recurrent states of the draft model are not accounted for: {used} in use")

    def _save(self, track: _Track) -> None:
        """Keeps its state before guesses are added to it."""
        self.program.copy_slot(track.slot, track.saved)
        track.n_saved = len(track.tokens)

    def _hold(self, track: _Track, n_tokens: int) -> bool:
        """Blocks for so many tokens, and places for states; False if there are none, or the model cannot read
        so far.
        """
        if n_tokens > (self.program.plan.context or n_tokens):
            return False
        if self._slotted and track.slot < 0:
            if len(self._slots) < 2:
                return False
            track.slot, track.saved = self._slots.pop(), self._slots.pop()
        taken = self.pool.take(max(0, -(-n_tokens // BLOCK) - len(track.blocks)))
        track.blocks += taken or []
        return taken is not None

    def _choose(self, sequence: seq.Sequence, guessed: list[int], row: Floats) -> int:
        params, tokens = sequence.params, [*sequence.tokens, *guessed] if guessed else sequence.tokens
        back = params.repeat_last_n
        recent = tokens if back < 0 else tokens[-back:] if back else []
        drawn = uniform(sequence.seed, sequence.index, len(tokens)) if params.temperature else 0.0
        return self.program.choose(np.array(row, np.float32), recent, params, drawn)

    def _compute(self, rows: list[tuple[_Track, list[int]]]) -> list[Floats]:
        """The logits after these tokens of each track, which then holds them."""
        counts = [len(tokens) for _, tokens in rows]
        firsts = [len(track.tokens) for track, _ in rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        blocks = np.full((len(rows), max(len(track.blocks) for track, _ in rows)), -1, np.int32)
        for n, (track, _) in enumerate(rows):
            blocks[n, : len(track.blocks)] = track.blocks
        logits = self.program.step(
            Batch(
                tokens=np.concatenate([np.asarray(tokens, np.int32) for _, tokens in rows]),
                positions=np.concatenate(
                    [np.arange(a, a + c, dtype=np.int32) for a, c in zip(firsts, counts, strict=True)]
                ),
                starts=starts,
                blocks=blocks,
                slots=np.array([track.slot for track, _ in rows], np.int32),
                logit_rows=(starts[1:] - 1).astype(np.int32),
            )
        )
        for track, tokens in rows:
            track.tokens += tokens
        return list(logits)
