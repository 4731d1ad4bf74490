"""Rotary frequencies as checkpoints configure them: default, linear, llama3, yarn, longrope."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field

import numpy as np
import numpy.typing as npt

from kvasir.checkpoint.config import Config
from kvasir.errors import CheckpointError, ModelError
from kvasir.plan.ops import Pooling
from kvasir.records import dataclass

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """What a model file must know beside its config.

    `context`: positions the caller wants, 0: as many as the model was made for.  `factors`: GGUF keeps
    divisors of rotary frequencies as tensors (rope_freqs, rope_factors_long, rope_factors_short).
    `tensors`: the names in the file, which tell what GGUF's metadata leaves out.  `pooling`: how an encoder's
    rows become one, if the folder says so.  `truncate`: whether YaRN rounds the ends of its ramp, if the
    config does not say.
    """

    context: int = 0
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tensors: Collection[str] = ()
    pooling: Pooling | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Rotation:
    """Inverse frequencies of the pairs of a head, and what cos and sin are multiplied by."""

    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0


def table(c: Config) -> Config:
    """The rotary table: `rope_parameters` (Transformers 5), `rope_scaling` (before), or the config itself."""
    return c.table("rope_parameters") or c.table("rope_scaling") or c


def rotation(c: Config, given: Given, head_dim: int, theta: float = 10000.0, part: float = 1.0,
             t: Config | None = None) -> Rotation:  # fmt: skip
    """The rotation that the config, or its table `t`, asks for over heads of `head_dim`.

    `theta`: the base, `part`: how much of a head is turned, where the config does not say.
    Raises ModelError for a kind of scaling that Kvasir does not know.
    """
    t = t or table(c)
    base = t.float("rope_theta", c.float("rope_theta", theta))
    dim = int(head_dim * t.float("partial_rotary_factor", c.float("partial_rotary_factor", part)))
    if not (1 < base < 1e12 and 0 < dim <= head_dim and dim % 2 == 0):
        raise CheckpointError(f"rotary base {base:g} over {dim} of {head_dim} columns makes no sense")
    plain = base ** (-np.arange(0, dim, 2) / dim)
    if "rope_freqs" in given.factors:
        return Rotation(divided(plain, given.factors["rope_freqs"], "rope_freqs"))
    kind = "default" if t is c else t.str("rope_type", t.str("type", "default"))
    if kind == "su" or t.has("long_factor"):  # Phi-3's names for it
        kind = "longrope"
    if kind not in KINDS:
        raise ModelError(f"rope scaling {kind!r} is not known", hint=f"known: {', '.join(KINDS)}")
    try:
        made = KINDS[kind](c, t, given, plain, base)
    except (ArithmeticError, ValueError):
        made = Rotation(())
    if not made.inverse_frequencies or not np.isfinite([*made.inverse_frequencies, made.magnitude]).all():
        raise CheckpointError(f"{c.where}: {kind} scaling with such numbers makes no sense")
    return made


def simple(base: float, dim: int) -> Rotation:
    """No scaling at all."""
    return Rotation(tuple((base ** (-np.arange(0, dim, 2) / dim)).tolist()))


def divided(plain: Doubles, by: Sequence[float], name: str) -> tuple[float, ...]:
    if len(by) != len(plain) or not all(math.isfinite(f) and f > 0 for f in by):
        raise CheckpointError(f"{name}: {len(by)} divisors, {len(plain)} positive ones are wanted")
    return tuple((plain / np.asarray(by)).tolist())


def default(c: Config, t: Config, given: Given, plain: Doubles, base: float) -> Rotation:
    return Rotation(tuple(plain.tolist()))


def factor(t: Config, otherwise: float = 0.0) -> float:
    f = t.float("factor", otherwise)
    if not 1e-3 < f < 1e6:
        raise CheckpointError(f"rope scaling by a factor of {f:g} makes no sense")
    return f


def linear(c: Config, t: Config, given: Given, plain: Doubles, base: float) -> Rotation:
    """Positions closer together by a factor.  Source: arXiv 2306.15595."""
    return Rotation(tuple((plain / factor(t)).tolist()))


def llama3(c: Config, t: Config, given: Given, plain: Doubles, base: float) -> Rotation:
    """Short waves stay, long ones are slowed by the factor, a ramp between.  Source: Llama 3.1's release."""
    low, high = t.float("low_freq_factor", 1.0), t.float("high_freq_factor", 4.0)
    turns = original(c, t) * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return Rotation(tuple((plain * (keep + (1 - keep) / factor(t))).tolist()))


def yarn(c: Config, t: Config, given: Given, plain: Doubles, base: float) -> Rotation:
    """Pairs that turn often stay, the others are slowed, scores sharpened.  Source: arXiv 2309.00071."""
    pairs, length = len(plain), original(c, t)
    by = factor(t, c.int("max_position_embeddings", length) / length)

    def pair(turns: float) -> float:
        """The pair that turns so often over the original length, as a real number."""
        return pairs * math.log(length / (turns * 2 * math.pi)) / math.log(base)

    first, last = pair(t.float("beta_fast", 32.0)), pair(t.float("beta_slow", 1.0))
    if t.bool("truncate", given.truncate):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    slowed = np.clip((np.arange(pairs) - first) / (last - first if last != first else 0.001), 0, 1)
    m, m_all = t.float("mscale", 0.0), t.float("mscale_all_dim", 0.0)
    sharpen = sharpened(by, m) / sharpened(by, m_all) if m and m_all else sharpened(by, 1.0)
    magnitude = t.float("attention_factor", sharpen)
    return Rotation(tuple((plain * (1 - slowed + slowed / by)).tolist()), magnitude)


def sharpened(by: float, m: float) -> float:
    return 0.1 * m * math.log(by) + 1 if by > 1 else 1.0


def longrope(c: Config, t: Config, given: Given, plain: Doubles, base: float) -> Rotation:
    """A divisor a pair, one set up to the original length and another beyond.  Source: arXiv 2402.13753.

    The context planned for decides which, once, so that cached keys stay valid while a sequence grows.
    """
    length, longest = original(c, t), c.int("max_position_embeddings")
    which = "long" if (given.context or longest) > length else "short"
    other = "short" if which == "long" else "long"
    t.ignore(f"{other}_factor")
    by = given.factors.get(f"rope_factors_{which}") or t.floats(f"{which}_factor", ())
    stretch = t.float("factor", longest / length)
    usual = math.sqrt(1 + math.log(stretch) / math.log(length)) if stretch > 1 else 1.0
    return Rotation(divided(plain, by, f"{which}_factor"), t.float("attention_factor", usual))


def original(c: Config, t: Config) -> int:
    """The length the model was trained at before it was stretched."""
    n = t.int("original_max_position_embeddings", c.int("max_position_embeddings"))
    return c.int("original_max_position_embeddings", n)


KINDS = {"default": default, "linear": linear, "llama3": llama3, "yarn": yarn, "longrope": longrope}
