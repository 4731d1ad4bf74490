"""The native sampler: the law of `sampling.py`, for logits that lie on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvasir.backends.base import Floats
from kvasir.errors import Bug
from kvasir.sampling import SamplingParams


def choose(
    native: Any, name: str, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float
) -> int:
    """The next token for logits [V] (changed in place) of the plan `name`.  Raises Bug when no logit is above
    -inf.
    """
    p = params
    penalties = (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
    if len(recent) and penalties != (1, 0, 0):
        native.penalize(logits, np.asarray(recent, np.int32), *penalties)
    try:
        return int(native.sample(logits, p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p, drawn))
    except ValueError as error:
        raise Bug(f"{name} gave no usable logits: {error}") from None
