"""How the next token is chosen: the parameters of one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from kvasir.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """The wishes of one request.  Defaults are vLLM's (temperature 1, nothing cut), not Ollama's: a face sets its own.

    temperature 0 is greedy.  top_k 0 or -1 keeps all.  `seed` None draws one.  Raises UsageError that names the field.
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
    stop: str | tuple[str, ...] | list[str] = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "top_k", max(self.top_k, 0) if _is_int(self.top_k) else self.top_k)
        for name, low, high, whole in RANGES:
            value = getattr(self, name)
            if value is None and name in ("seed", "max_tokens", "logprobs"):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise UsageError(f"{name} must be {'an integer' if whole else 'a number'}, got {value!r}")
            if not (isfinite(value) and low <= value <= high):
                raise UsageError(f"{name} must be between {low} and {high}, got {value!r}")
        if not all(isinstance(s, str) and s for s in stops):
            raise UsageError("stop must hold texts that are not empty")
        if not all(_is_int(t) and t >= 0 for t in self.stop_token_ids):
            raise UsageError("stop_token_ids must hold token ids (integers from 0)")
        for token, bias in self.logit_bias.items():
            if not _is_int(token) or token < 0 or not isinstance(bias, int | float) or not abs(bias) <= 100:
                raise UsageError(f"logit_bias: {token!r}: {bias!r} is not a token id with a bias from -100 to 100")

    @property
    def stops(self) -> tuple[str, ...]:
        assert isinstance(self.stop, tuple)
        return self.stop


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
)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
