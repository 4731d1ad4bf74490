"""Log probabilities: of tokens that were chosen, and of tokens that were given."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kvasir.backends.base import Floats
from kvasir.chat import TokenLogprob
from kvasir.engine.sequence import Sequence
from kvasir.sampling import logprobs


def score(sequence: Sequence, rows: Floats) -> None:
    """Takes the log probabilities of its prompt from the rows [n, V] that begin at its first uncomputed
    token.
    """
    for position, row in enumerate(rows, sequence.n_computed + 1):
        if position < sequence.n_prompt:
            entry = logprob_of(logprobs(row), sequence.tokens[position], sequence.params.prompt_logprobs)
            sequence.scored(position, entry)


def logprob_of(own: np.ndarray, token_id: int, count: int | None, more: Iterable[int] = ()) -> TokenLogprob:
    best = np.argsort(-own, kind="stable")[:count].tolist() if count else ()
    told = tuple(dict.fromkeys((*best, *more)))
    return TokenLogprob(token_id, float(own[token_id]), tuple((t, float(own[t])) for t in told))
