"""Which tokens constrained answers may take next, worked out on other threads while a step runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from kvasir.backends.base import Floats
from kvasir.engine.scheduler import Part
from kvasir.engine.sequence import Sequence
from kvasir.grammar.guide import Allowed

MAX_THREADS = 4


class Masks:
    """Mutable: its threads start with the first constrained answer and end with it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def start(self, parts: Iterable[Part]) -> dict[Sequence, Future[list[Allowed]]]:
        """What each constrained sequence that gets logits allows next and after its drafts, under way.

        A result raises UsageError when a grammar cannot be followed further.  Until it is there the
        sequence's guide belongs to the thread that computes it.
        """
        guided = [
            (p, p.sequence.guide) for p in parts if p.sequence.guide and p.count == p.sequence.n_pending
        ]
        if guided and self._pool is None:
            self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "masks")
        return {p.sequence: self._pool.submit(g.along, p.drafts) for p, g in guided if self._pool and g}


def permit(logits: Floats, allowed: Allowed, unwanted: Collection[int]) -> None:
    """In place: logits [V] of what is not `allowed` become -inf, and those of `unwanted` tokens too unless
    nothing else is left: an answer that is whole ends, whatever else was wished.
    """
    kept = allowed
    if unwanted:
        kept = allowed.copy()
        kept[list(unwanted)] = False
        kept = kept if kept.any() else allowed
    np.copyto(logits, np.float32(-np.inf), where=~kept)
