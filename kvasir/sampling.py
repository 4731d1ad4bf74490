"""How the next token is chosen: the parameters of a request, and the law in numpy that native samplers
equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import numpy.typing as npt

from kvasir.errors import Bug, UsageError
from kvasir.structured import Constraint, StructuredOutputsParams

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingParams:
    """The wishes of one request.  Defaults are vLLM's (temperature 1, nothing cut); each face sets its own.

    temperature 0 is greedy.  top_k 0 or -1 keeps all.  `seed` None draws one.
    Raises UsageError that names the field and its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64  # tokens the three penalties look back; -1: all; 0: none
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 16  # None: until the model stops or the context is full
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    logprob_token_ids: Sequence[int] = ()  # with logprobs: told of these tokens too, after the likeliest
    prompt_logprobs: int | None = None  # for each token of the prompt, as logprobs for those of the answer
    allowed_token_ids: Sequence[int] = ()  # no others are chosen; empty: all may be
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stops)
        for name in ID_LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        object.__setattr__(self, "top_k", max(self.top_k, 0) if _is_int(self.top_k) else self.top_k)
        for name, low, high, whole in RANGES:
            value = getattr(self, name)
            if value is None and name in ("seed", "max_tokens", "logprobs", "prompt_logprobs"):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise UsageError(f"{name} must be {'an integer' if whole else 'a number'}, got {value!r}")
            if not (isfinite(value) and low <= value <= high):
                raise UsageError(f"{name} must be between {low} and {high}, got {value!r}")
        if not all(isinstance(s, str) and s for s in stops):
            raise UsageError("stop must hold texts that are not empty")
        for name in ID_LISTS:
            if not all(_is_int(t) and t >= 0 for t in getattr(self, name)):
                raise UsageError(f"{name} must hold token ids (integers from 0)")
        if self.allowed_token_ids and self.structured_outputs:
            raise UsageError("allowed_token_ids and structured_outputs cannot both hold an answer")
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise UsageError("structured_outputs must be a StructuredOutputsParams")
        for token, bias in self.logit_bias.items():
            if not _is_int(token) or token < 0 or not isinstance(bias, int | float) or not abs(bias) <= 100:
                raise UsageError(
                    f"logit_bias: {token!r}: {bias!r} is not a token id with a bias from -100 to 100"
                )

    @property
    def stops(self) -> tuple[str, ...]:
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def constraint(self) -> Constraint | None:
        """The form that the answer must have."""
        return self.structured_outputs.constraint if self.structured_outputs else None


ID_LISTS = ("stop_token_ids", "logprob_token_ids", "allowed_token_ids")
RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("n", 1, 128, True),
    ("temperature", 0, 100, False),
    ("top_k", 0, 2**31 - 1, True),
    ("top_p", 0, 1, False),
    ("min_p", 0, 1, False),
    ("typical_p", 0, 1, False),
    ("repetition_penalty", 1e-3, 100, False),
    ("presence_penalty", -100, 100, False),
    ("frequency_penalty", -100, 100, False),
    ("repeat_last_n", -1, 2**31 - 1, True),
    ("seed", -(2**63), 2**64 - 1, True),
    ("max_tokens", 1, 2**31 - 1, True),
    ("min_tokens", 0, 2**31 - 1, True),
    ("logprobs", 0, 20, True),
    ("prompt_logprobs", 0, 20, True),
)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on these three alone, so a seed gives the same text whatever else runs.

    Source: SplitMix64 (Steele, Lea, Flood 2014), its finalizer applied to the three in turn.
    """
    state = 0
    for word in (seed, index, position):
        state = (state + word + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return (state >> 11) / float(1 << 53)


def penalize(logits: Floats, recent: Sequence[int], params: SamplingParams) -> None:
    """In place: the three penalties, for every distinct token of `recent`.

    repetition divides a positive logit and multiplies a negative one; frequency subtracts once a time the
    token occurred, presence once.
    """
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    if not recent or penalties == (1, 0, 0):
        return
    for token, times in Counter(recent).items():
        logit = logits[token]
        logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logits[token] = logit - times * params.frequency_penalty - params.presence_penalty


def choose(logits: Floats, params: SamplingParams, drawn: float) -> int:
    """The token that `drawn` in [0, 1) picks from logits [V]: top-k, typical-p, top-p, min-p, temperature,
    in this order.

    Candidates stand by logit, highest first, the lower id first among equals; the draw inverts their
    cumulative probability in float64.  Temperature 0 takes the first candidate.  A NaN is never chosen.
    Raises Bug when nothing can be.
    """
    wide: Wide = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    if not len(wide) or wide.max() == -np.inf:
        raise Bug("no logit is above -inf: there is no token to choose")
    if params.temperature == 0:
        return int(np.argmax(wide))
    if wide.max() == np.inf:  # infinities share the draw evenly
        wide = np.where(wide == np.inf, 0.0, -np.inf)
    order = np.argsort(-wide, kind="stable")[: params.top_k or None]
    order = order[wide[order] > -np.inf]
    if params.typical_p < 1:
        order = _typical(wide, order, params.typical_p)
    if params.top_p < 1:
        p = _softmax(wide[order])
        order = order[: int(np.searchsorted(np.cumsum(p), params.top_p)) + 1]
    if params.min_p > 0:
        p = _softmax(wide[order])
        order = order[p >= params.min_p * p[0]]
    p = _softmax(wide[order] / params.temperature)
    return int(order[min(int(np.searchsorted(np.cumsum(p), drawn, side="right")), len(order) - 1)])


def _typical(logits: Wide, order: npt.NDArray[np.intp], mass: float) -> npt.NDArray[np.intp]:
    """The candidates whose surprise is nearest the distribution's entropy, until they hold `mass`; by logit
    again.

    Source: Locally Typical Sampling, arXiv 2202.00666.
    """
    p = _softmax(logits[order])
    surprise = -np.log(np.maximum(p, 1e-300))
    nearest = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
    kept = nearest[: int(np.searchsorted(np.cumsum(p[nearest]), mass)) + 1]
    return np.asarray(order[np.sort(kept)])


def _softmax(x: Wide) -> Wide:
    e = np.exp(x - x[0])
    return np.asarray(e / e.sum())


def logprobs(logits: Floats) -> Wide:
    """Natural-log probabilities [V] of the model's own distribution, before penalties and temperature."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))
