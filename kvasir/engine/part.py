"""What a step computes of one sequence."""

from __future__ import annotations

from kvasir.engine.sequence import Sequence
from kvasir.records import dataclass


@dataclass(frozen=True)
class Part:
    """A sequence's share of a step: its next `count` uncomputed tokens, and then the guessed `drafts`."""

    sequence: Sequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        return self.count + len(self.drafts)

    @property
    def n_logits(self) -> int:
        """Rows at its end that want logits; to be asked before the step counts as computed."""
        if self.sequence.is_scored:
            return self.n_rows
        return 1 + len(self.drafts) if self.count == self.sequence.n_pending else 0
