"""A call that must be made is told while its arguments are written, and is the same call in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir.chat import ChatRequest, Delta, Finished, Message, ToolPiece
from kvasir.parsers.answer import Family
from kvasir.parsers.early import Early
from kvasir.parsers.families import family_of
from kvasir.parsers.parts import tools_of
from kvasir.parsers.syntax import Hole
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from tests.parsers.taken import NOW, WEATHER

TEMPLATES = (
    "<tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "<｜tool▁call▁begin｜>",
    "[TOOL_CALLS]name[ARGS]",
    "[TOOL_CALLS]name[CALL_ID]id[ARGS]",
    "[TOOL_CALLS] [ {{ x }}",
    "",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=3)


def written(family: Family, calls: Sequence[tuple[str, str]]) -> str:
    """What a model of the family writes that calls these tools with these arguments."""

    def one(name: str, arguments: str) -> str:
        holes = {Hole.NAME: name, Hole.JSON_NAME: json.dumps(name), Hole.ARGUMENTS: arguments}
        holes[Hole.ID] = "abcdefgh9"
        return "".join(piece if isinstance(piece, str) else holes[piece] for piece in family.syntax.call)

    syntax = family.syntax
    return syntax.begin + syntax.between.join(one(*call) for call in calls) + syntax.end


def told(family: Family, pieces: Sequence[str]) -> list[ToolPiece]:
    early = Early(family, tools_of((WEATHER, NOW)), lambda: "id")
    return [each for piece in pieces for each in early.push(piece)]


def calls(pieces: Sequence[ToolPiece]) -> list[tuple[str, str, bool]]:
    """Name, arguments and whether it is whole, of each call."""
    found: dict[int, tuple[str, str, bool]] = {}
    for piece in pieces:
        name, text, last = found.get(piece.number, ("", "", False))
        assert not last and (piece.id == "id") == bool(piece.name)
        found[piece.number] = (name or piece.name, text + piece.arguments, piece.last)
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("template", TEMPLATES)
@given(st.lists(st.tuples(st.sampled_from(["get_weather", "now"]), ARGUMENTS), min_size=1, max_size=2))
def test_in_any_cutting_it_is_what_was_written(template: str, made: list[tuple[str, dict]]) -> None:
    family = family_of(template)
    made = made[:1] if family.syntax.single else made
    texts = [(name, json.dumps(arguments)) for name, arguments in made]
    text = written(family, texts)
    want = [(name, json.loads(arguments), True) for name, arguments in texts]
    for size in (1, 3, len(text)):
        found = calls(told(family, [text[i : i + size] for i in range(0, len(text), size)]))
        assert [(name, json.loads(arguments), last) for name, arguments, last in found] == want


def test_each_letter_of_the_arguments_comes_at_once() -> None:
    family = family_of("<tool_call>")
    pieces = told(family, list(written(family, [("get_weather", '{"city": "Rome"}')])))
    assert [piece.arguments for piece in pieces] == ["", *'{"city": "Rome"}']


def test_halves_of_surrogate_pairs_are_not_passed_on() -> None:
    family = family_of("<tool_call>")
    texts = (r'"\ud83d\ude00"', r'"\ud83d"', r'"\ude00x"', r'"\\ud83d"', r'"\ud83d\n"')
    want = ["😀", "\ufffd", "\ufffdx", "\\ud83d", "\ufffd\n"]
    for text, said in zip(texts, want, strict=True):
        whole = written(family, [("now", f'{{"x": {text}}}')])
        for pieces in (list(whole), [whole]):
            ((_, arguments, _),) = calls(told(family, pieces))
            assert json.loads(arguments) == {"x": said}


@pytest.mark.parametrize("text", ["<think>\n", "The weather", '<tool_call>\n{"name": "other"', "x" * 5000])
def test_what_begins_otherwise_is_left_to_the_parser(text: str) -> None:
    assert told(family_of("<tool_call>"), list(text + '{"city": 1}')) == []


def test_mead_tells_its_arguments_as_it_writes_them() -> None:
    model = Model.load("mead", threads=1)
    request = ChatRequest(
        SamplingParams(temperature=0, max_tokens=60),
        messages=(Message("user", "How is the weather in Rome?"),),
        tools=(WEATHER,),
        tool_choice="required",
        parse=True,
    )
    try:
        events = list(model.submit(request))
        cut = list(model.submit(ChatRequest(**{**vars(request), "params": SamplingParams(max_tokens=14)})))
    finally:
        model.close()
    pieces = [piece for event in events if isinstance(event, Delta) for piece in event.tool_calls]
    assert len(pieces) > 3 and pieces[0].name == "get_weather" and pieces[-1].last
    text = "".join(piece.arguments for piece in pieces)
    assert "city" in json.loads(text) and "  " not in text and "\n" not in text
    assert isinstance(events[-1], Finished) and events[-1].reason == "tool_calls"
    assert isinstance(cut[-1], Finished) and cut[-1].reason == "length"
    assert all(not event.text for event in cut if isinstance(event, Delta))
