"""Ollama's `options`: their types, ranges and defaults, and what becomes of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from kvasir.api.words import json_name, short
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams
from kvasir.store.made import Made

MAX_STOPS = 64
MAX_STOP_LENGTH = 1000
BIG = 2**31 - 1


@dataclass(frozen=True)
class Option:
    """A number: its range, whether it is whole, Ollama's default, its help, its name in SamplingParams."""

    low: float
    high: float
    whole: bool
    default: float | int
    help: str
    param: str = ""


NUMBERS: dict[str, Option] = {
    "temperature": Option(0, 100, False, 0.8, "how much chance; 0 takes the likeliest token", "temperature"),
    "top_k": Option(-1, BIG, True, 40, "choose among the N likeliest tokens; 0: all", "top_k"),
    "top_p": Option(
        0, 1, False, 0.9, "choose among the likeliest that make up X of the probability", "top_p"
    ),
    "min_p": Option(
        0, 1, False, 0.0, "leave out what has less than X of the likeliest one's probability", "min_p"
    ),
    "typical_p": Option(
        0, 1, False, 1.0, "choose among the most typical that make up X of the probability", "typical_p"
    ),
    "repeat_penalty": Option(
        0.001, 100, False, 1.0, "divide the score of tokens that were there already", "repetition_penalty"
    ),
    "repeat_last_n": Option(
        -1, BIG, True, 64, "how far back the penalties look; -1: all the way", "repeat_last_n"
    ),
    "presence_penalty": Option(
        -100, 100, False, 0.0, "take X off the score of tokens that were there already", "presence_penalty"
    ),
    "frequency_penalty": Option(
        -100, 100, False, 0.0, "take X off for each time that a token was there", "frequency_penalty"
    ),
    "seed": Option(-(2**63), 2**63 - 1, True, -1, "the same seed gives the same answer; negative: draw one"),
    "num_predict": Option(-2, BIG, True, -1, "tokens to write at most; below 1: until the model stops"),
    "num_ctx": Option(0, BIG, True, 0, "tokens of prompt and answer together; 0: the model's own limit"),
}
# Ollama reads these; here they have nothing to change: memory, threads and batches are the program's
# business.  The type is checked, the value is not used, and the answer's warning says so.
IDLE: dict[str, type] = {
    **dict.fromkeys(
        ["num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "mirostat"], int
    ),
    **dict.fromkeys(["mirostat_tau", "mirostat_eta", "tfs_z"], float),
    **dict.fromkeys(
        ["use_mmap", "use_mlock", "low_vram", "f16_kv", "logits_all", "vocab_only", "penalize_newline",
         "numa", "embedding_only"], bool
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The options of one request, checked."""

    params: SamplingParams
    max_context: int | None = None
    warnings: tuple[str, ...] = ()


def over_defaults(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a request wants over what the model's own parameters say; those without effect are left out."""
    return {**{k: v for k, v in parameters.items() if k not in IDLE}, **given}


def with_own(params: SamplingParams, said: Collection[str], made: Made | None) -> SamplingParams:
    """`params`, with a made model's own parameters where the request said nothing.

    `said`: the names in SamplingParams that the request gave.
    """
    if made is None or not made.parameters:
        return params
    own = parse_options(over_defaults(made.parameters, {})).params
    fields = {name: option.param for name, option in NUMBERS.items() if option.param}
    fields |= {"seed": "seed", "num_predict": "max_tokens", "stop": "stop"}
    wanted = {fields[name] for name in made.parameters if name in fields}
    return replace(params, **{name: getattr(own, name) for name in wanted.difference(said)})


def own_context(given: int | None, made: Made | None) -> int | None:
    """The limit of prompt and answer: the request's, or else a made model's own num_ctx."""
    if given is not None or made is None:
        return given
    return parse_options({"num_ctx": made.parameters.get("num_ctx")}).max_context


def parse_options(given: Mapping[str, Any]) -> Options:
    """The wishes in `given` over Ollama's defaults; null is as if the option were not there.

    num_predict below 1 means until the model stops; a negative seed draws one; num_ctx 0 is the model's own
    limit.  Names that nobody knows become warnings.  Raises UsageError with the option's type and range.
    """
    warnings: list[str] = []
    values = {name: option.default for name, option in NUMBERS.items()}
    stops: tuple[str, ...] = ()
    for name, value in given.items():
        if value is None:
            continue
        if name in NUMBERS:
            values[name] = number(name, value)
        elif name == "stop":
            stops = _stops(value)
        elif name in IDLE:
            _idle(name, value)
            warnings.append(f"option {name} has no effect")
        else:
            warnings.append(f"unknown option {short(name)}")
    params: dict[str, Any] = {o.param: values[name] for name, o in NUMBERS.items() if o.param}
    params["seed"] = None if values["seed"] < 0 else int(values["seed"])
    params["max_tokens"] = None if values["num_predict"] <= 0 else int(values["num_predict"])
    return Options(SamplingParams(stop=stops, **params), int(values["num_ctx"]) or None, tuple(warnings))


def number(name: str, value: object) -> float | int:
    """`value` as the number that option `name` takes.  Raises UsageError with its type and range."""
    option = NUMBERS[name]
    kind, span = (
        ("integer" if option.whole else "number"),
        f"between {_bound(option.low)} and {_bound(option.high)}",
    )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f'option "{name}" must be of type {kind}, {span}, got {json_name(value)}')
    if not isinstance(value, int) and not isfinite(value):
        raise UsageError(f'option "{name}" must be a finite {kind}, {span}')
    if option.whole and value != int(value):
        raise UsageError(f'option "{name}" must be of type integer, {span}, got {value!r}')
    if not option.low <= value <= option.high:
        raise UsageError(f'option "{name}" must be {span}, got {short(str(value), 30)[1:-1]}')
    return int(value) if option.whole else float(value)


def _bound(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _stops(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(s, str) for s in value):
        raise UsageError('option "stop" must be of type array of strings')
    if len(value) > MAX_STOPS or any(not 0 < len(s) <= MAX_STOP_LENGTH for s in value):
        raise UsageError(
            f'option "stop" must hold at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters'
        )
    return tuple(value)


def _idle(name: str, value: object) -> None:
    kind = IDLE[name]
    fits = isinstance(value, bool) if kind is bool else isinstance(value, int | float)
    if not fits or (kind is not bool and isinstance(value, bool)):
        wanted = {int: "integer", float: "number", bool: "boolean"}[kind]
        raise UsageError(f'option "{name}" must be of type {wanted}, got {json_name(value)}')
