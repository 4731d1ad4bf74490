"""Guesses at the tokens to come, and how many of them are worth a row.

A guess is verified by the model itself in the same step, so it changes how long an answer takes and never
what it is: each row's token is chosen by the same law, with the same draw, as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvasir.engine import sequence as seq
from kvasir.engine.cost import StepCost

MOST = 12  # drafts a sequence and step
FORGET = 0.15  # share of the newest verdict in the running acceptance
HOPE = 0.6  # acceptance that is assumed before there was any verdict
RETRY_TOKENS = 64  # after so many tokens without a draft, one is tried again
MARGIN = 1.1  # a row must promise this much more than it costs


class Drafter(Protocol):
    """Something that guesses.  `cost_s`: the seconds that a guess takes, from experience."""

    cost_s: float

    def propose(self, wanted: Sequence[tuple[seq.Sequence, int]]) -> list[list[int]]:
        """At most so many tokens to come after each sequence's own."""
        ...

    def forget(self, sequence: seq.Sequence) -> None:
        """The sequence has ended."""
        ...


class NgramDrafter:
    """Guesses that what followed the last three (else two) tokens before will follow them again.  Mutable.

    Source: prompt lookup decoding (Saxena 2023); here with an index, so that a guess costs no search.
    """

    cost_s = 0.0

    def __init__(self) -> None:
        self._seen: dict[seq.Sequence, _Index] = {}

    def propose(self, wanted: Sequence[tuple[seq.Sequence, int]]) -> list[list[int]]:
        found = []
        for sequence, count in wanted:
            index = self._seen.setdefault(sequence, _Index())
            at = index.find(sequence.tokens)
            found.append(sequence.tokens[at : at + count] if at is not None else [])
        return found

    def forget(self, sequence: seq.Sequence) -> None:
        self._seen.pop(sequence, None)


class _Index:
    """Where each pair and triple of tokens last ended in a sequence.  Mutable."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._done = 1

    def find(self, tokens: list[int]) -> int | None:
        """Where what follows began when the last tokens came before; None if they never did."""
        for end in range(self._done, len(tokens)):  # those that end before the last token
            for n in (2, 3):
                if end >= n:
                    self._ends[_key(tokens[end - n : end])] = end
        self._done = max(self._done, len(tokens))
        for n in (3, 2):
            if len(tokens) > n and (at := self._ends.get(_key(tokens[-n:]))) is not None:
                return at
        return None


def _key(tokens: list[int]) -> int:
    """One number for a pair or a triple: a tuple would take three times the memory."""
    key = len(tokens)
    for token in tokens:
        key = key << 24 | token
    return key


class Speculation:
    """How many drafts each sequence gets: as many as pay by its measured acceptance and the measured cost of
    rows.  Mutable.

    A recurrent state takes no rows back: it is copied before, and after a wrong guess the rows that were
    right are computed again.  `save_s`: what the copy takes, from experience; 0 where there is none.
    """

    def __init__(self, drafter: Drafter, cost: StepCost):
        self.drafter, self.cost = drafter, cost
        self.save_s = 0.0
        self._acceptance: dict[seq.Sequence, float] = {}
        self._quiet: dict[seq.Sequence, int] = {}

    def counts(self, sequences: Sequence[seq.Sequence], n_rows: int) -> list[int]:
        """How many drafts each may have, when the step has `n_rows` rows without them."""
        wanted = [0] * len(sequences)
        for i, sequence in enumerate(sequences):
            rate = self._acceptance.get(sequence, HOPE)
            most = min(MOST, sequence.most_drafts)
            while wanted[i] < most and self._pays(rate ** (wanted[i] + 1), n_rows, sum(wanted), len(wanted)):
                wanted[i] += 1
            others = n_rows + sum(wanted) - wanted[i]
            while self.save_s and wanted[i] and not self._saving_pays(rate, wanted[i], others, len(wanted)):
                wanted[i] -= 1
            if not wanted[i] and most > 0:
                quiet = self._quiet[sequence] = self._quiet.get(sequence, 0) + 1
                wanted[i] = int(quiet % RETRY_TOKENS == 0)
        return wanted

    def _pays(self, chance: float, n_rows: int, n_drafts: int, n_sequences: int) -> bool:
        """Whether one more row, right with this chance, makes more tokens a second."""
        now, more = self.cost.predict(n_rows + n_drafts), self.cost.predict(n_rows + n_drafts + 1)
        if not now:
            return n_drafts < 2 * n_sequences
        return chance > MARGIN * n_sequences * max((more + self.drafter.cost_s) / now - 1, 0.0)

    def _saving_pays(self, rate: float, n_drafts: int, n_rows: int, n_sequences: int) -> bool:
        """Whether so many drafts of one sequence are worth a copy of its state, and rows computed twice."""
        now, more = self.cost.predict(n_rows), self.cost.predict(n_rows + n_drafts)
        gain = sum(rate**n for n in range(1, n_drafts + 1))
        rows_s = max(more - now, 0.0) * (2 - rate**n_drafts) + n_drafts * self.drafter.cost_s
        return not now or gain > MARGIN * n_sequences * (rows_s + self.save_s) / now

    def saved(self, seconds: float) -> None:
        """A state was copied in so many seconds."""
        self.save_s += FORGET * (min(seconds, 2 * self.save_s) - self.save_s) if self.save_s else seconds

    def verdict(self, sequence: seq.Sequence, n_drafted: int, n_accepted: int) -> None:
        """What became of a sequence's drafts in a step: the first `n_accepted` of them were right."""
        rate = self._acceptance.get(sequence, HOPE)
        for i in range(min(n_accepted + 1, n_drafted)):
            rate += FORGET * (float(i < n_accepted) - rate)
        self._acceptance[sequence] = rate

    def forget(self, sequence: seq.Sequence) -> None:
        """The sequence has ended."""
        self._acceptance.pop(sequence, None)
        self._quiet.pop(sequence, None)
        self.drafter.forget(sequence)
