"""Which tokens constrained answers may take next, worked out on other threads while a step runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from kvasir import faults
from kvasir.backends.base import Floats
from kvasir.engine.part import Part
from kvasir.engine.sequence import Sequence
from kvasir.grammar.guide import Allowed, Guide

MAX_THREADS = 4
MINUS_INFINITY = np.array(-np.inf, np.float32).view(np.int32)


class Masks:
    """Mutable: its threads start with the first constrained answer and end with it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def start(self, parts: Iterable[Part]) -> dict[Sequence, Future[list[Floats]]]:
        """What each constrained sequence that gets logits may take next and after its drafts, under way: to
        be added to the logits [V], 0 for what is allowed, else -inf.

        A result raises UsageError when a grammar cannot be followed further.  Until it is there the
        sequence's guide belongs to the thread that computes it.
        """
        guided = [
            (p, p.sequence.guide) for p in parts if p.sequence.guide and p.count == p.sequence.n_pending
        ]
        if guided and self._pool is None:
            self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "masks")
        return {p.sequence: self._pool.submit(_bars, g, p.drafts) for p, g in guided if self._pool and g}


def permit(logits: Floats, bars: Floats, unwanted: Collection[int]) -> None:
    """In place: adds `bars` to logits [V], and bars the `unwanted` tokens too unless nothing else is left:
    an answer that is whole ends, whatever else was wished.
    """
    if unwanted:
        more = bars.copy()
        more[list(unwanted)] = -np.inf
        bars = more if (more == 0).any() else bars
    logits += bars


def _bars(guide: Guide, drafts: Items[int]) -> list[Floats]:
    faults.reach("runner.mask")
    return [bars_of(allowed) for allowed in guide.along(drafts)]


def bars_of(allowed: Allowed) -> Floats:
    """0 where `allowed`, else -inf, [V]: in integers, which takes a sixth of the time of choosing floats."""
    bits = np.subtract(allowed.view(np.uint8), 1, dtype=np.int32)
    bits &= MINUS_INFINITY
    return bits.view(np.float32)
