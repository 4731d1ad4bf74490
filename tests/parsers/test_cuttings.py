"""Every family: any text, in any cutting, gives the same parts, loses nothing, takes linear time."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.parsers.families import all_families
from tests.parsers.taken import taken

PIECES = (
    '{"name": "f", "arguments": {"a": "b"}}', '{"name": "get_weather", "parameters": {"city": "Rome"}}',
    "{", "}", '"', "\\", "[", "]", ":", ",", " ", "\n", "x", "é", "😀", "1", "null", "get_weather", "f",
    "<think>", "</think>", '{"name": ', '"arguments": {"a": ', "```json\n", "\n```",
)  # fmt: skip


@st.composite
def answers(draw, family):
    """A text of what the family writes and of bits of it, and where to cut it."""
    own = sorted({*family.marks, *family.opens, *PIECES})
    bit = st.sampled_from(own).flatmap(lambda mark: st.sampled_from([mark, mark[: len(mark) // 2], mark[1:]]))
    text = "".join(draw(st.lists(st.one_of(st.sampled_from(own), bit), max_size=25)))
    places = draw(st.lists(st.integers(0, len(text)), max_size=12))
    edges = [0, *sorted(places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("family", all_families(), ids=lambda f: f.name)
@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["open", "may", "closed"]), st.sampled_from([None, 1]))
def test_every_cutting_gives_the_same(family, data, state, max_calls):
    pieces = data.draw(answers(family))
    text = "".join(pieces)
    found = taken(family, [text], state=state, max_calls=max_calls)
    assert taken(family, pieces, state=state, max_calls=max_calls) == found
    assert taken(family, list(text), state=state, max_calls=max_calls) == found
    thinks = family.run or state == "open" or any(mark in text for mark in family.pair)
    if not thinks and not any(part[0] == "call" for part in found):
        assert found == ([("text", text)] if text else []), "what is no call is text, all of it"


@pytest.mark.parametrize("family", all_families(), ids=lambda f: f.name)
def test_a_hostile_answer_takes_linear_time(family):
    """Half calls in great number, a letter at a time; what is quadratic takes minutes."""
    marks = dict.fromkeys([*family.opens, *family.marks])
    opened = [mark + '{"name": "f", "arguments": {"a": "' for mark in marks]
    shapes = ['{"a":', "[f(a=", "<tool_call>", '"', " ", '{"a":"', "<", "[", *marks, *opened]
    for shape in shapes:
        for size, step in ((5_000, 1), (50_000, 50_000)):
            text = (shape * (size // len(shape) + 1))[:size]
            began = time.process_time()
            taken(family, [text[i : i + step] for i in range(0, size, step)])
            assert time.process_time() - began < 1.0, shape
