"""How families mark thoughts, and where a prompt leaves an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

State = Literal["open", "may", "closed"]


class Pair(NamedTuple):
    """What stands before and behind a thought."""

    open: str
    close: str


# DeepSeek, Qwen and many more; Mistral; Seed; Command; Kimi; Gemma 4.
PAIRS = (
    Pair("<think>", "</think>"),
    Pair("[THINK]", "[/THINK]"),
    Pair("<seed:think>", "</seed:think>"),
    Pair("<|START_THINKING|>", "<|END_THINKING|>"),
    Pair("◁think▷", "◁/think▷"),
    Pair("<|channel>", "<channel|>"),
)
CHANNEL, MESSAGE = "<|channel|>", "<|message|>"  # harmony's: it has channels, and thinks in one of them


def thinks(template: str) -> bool:
    """Whether a model with this chat template can think."""
    marks = ("enable_thinking", *(pair.open for pair in PAIRS))
    return any(mark in template for mark in marks) or (CHANNEL in template and MESSAGE in template)


def pair_of(known: Callable[[str], bool]) -> Pair | None:
    """The first pair of which both marks are known."""
    return next((pair for pair in PAIRS if known(pair.open) and known(pair.close)), None)


def left_by(tail: str, pair: Pair) -> State:
    """Where a prompt leaves an answer: inside a thought, free to begin with one, or behind it.

    `tail`: the prompt's last part, behind the last marker that is no mark of a thought; what a user wrote
    about such marks does not stand there.
    """
    opened, closed = tail.rfind(pair.open), tail.rfind(pair.close)
    if opened > closed:
        return "open"
    if closed >= 0 and not tail[closed + len(pair.close) :].strip():
        return "closed"
    return "may"
