"""The form of a family's calls, for the grammar that makes a model call a tool."""

from __future__ import annotations

from enum import Enum

from kvasir.records import dataclass


class Hole(Enum):
    """What a call brings of its own."""

    NAME = "the tool's name as it is"
    JSON_NAME = "the tool's name as a JSON string"
    ARGUMENTS = "a JSON object"
    PARAMETERS = "what the tool's schema lists, one by one, as Qwen3-Coder writes it"
    ID = "nine letters and digits"
    THOUGHT = "any text"


Pieces = tuple[str | Hole, ...]
NAME, JSON_NAME, ARGUMENTS, PARAMETERS, ID, THOUGHT = Hole


@dataclass(frozen=True)
class Syntax:
    """`begin`, then calls with `between` between them, then `end`.

    `plain` is the form of calls to which `PARAMETERS` do not do justice.  `single`: no more than one call.
    `prelude` may stand before it all; `text_begin` stands before a text that comes instead.  `thinks_within`:
    the prelude holds the thought, else what the family marks as such comes before it.
    """

    call: Pieces
    begin: str = ""
    between: str = ""
    end: str = ""
    plain: Pieces = ()
    single: bool = False
    prelude: Pieces = ()
    text_begin: Pieces = ()
    thinks_within: bool = False
