"""Parts of the built-in model's answers, from its process's point of view: Deltas, ends, stop strings."""

from __future__ import annotations

import json

import pytest

from kvasir.chat import ChatRequest, Delta, Finished, Message, ToolPiece
from kvasir.errors import UsageError
from kvasir.runner.client import ModelProcess
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from tests.parsers.taken import WEATHER


@pytest.fixture(scope="module", params=[Model, ModelProcess], ids=["here", "in a process"])
def mead(request):
    made = request.param.load("mead", threads=1)
    yield made
    made.close()


def ask(model: Model | ModelProcess, text: str, params: SamplingParams | None = None, **more):
    """The Deltas and the end of one answer."""
    params = params or SamplingParams(temperature=0, max_tokens=60)
    request = ChatRequest(params, messages=(Message("user", text),), **{"parse": True, **more})
    *deltas, end = model.submit(request)
    assert isinstance(end, Finished) and all(isinstance(delta, Delta) for delta in deltas)
    assert sum(len(delta.token_ids) for delta in deltas) == end.metrics.n_generated
    return deltas, end


def test_a_call_comes_as_a_call(mead):
    deltas, end = ask(mead, "What is the weather in Rome?", tools=(WEATHER,))
    (piece,) = [piece for delta in deltas for piece in delta.tool_calls]
    assert isinstance(piece, ToolPiece)
    assert (piece.number, piece.name, piece.last) == (0, "get_weather", True)
    assert json.loads(piece.arguments) == {"city": "Rome"} and piece.id.startswith("call_")
    assert end.reason == "tool_calls" and end.stop_reason is None
    assert "".join(delta.text for delta in deltas) == ""
    (again,) = [
        p for d in ask(mead, "What is the weather in Rome?", tools=(WEATHER,))[0] for p in d.tool_calls
    ]
    assert again.id != piece.id


def test_without_parse_it_is_the_text_that_the_model_writes(mead):
    deltas, end = ask(mead, "What is the weather in Rome?", tools=(WEATHER,), parse=False)
    text = "".join(delta.text for delta in deltas)
    assert text.startswith('<tool_call>\n{"name": "get_weather"') and end.reason == "stop"


def test_tools_that_may_not_be_called_are_hidden(mead):
    hidden, _ = ask(mead, "What is the weather in Rome?", tools=(WEATHER,), tool_choice="none")
    without, _ = ask(mead, "What is the weather in Rome?")
    assert [d.token_ids for d in hidden] == [d.token_ids for d in without]
    assert not any(delta.tool_calls for delta in hidden)


def test_a_call_that_is_cut_off_is_text(mead):
    params = SamplingParams(temperature=0, max_tokens=12)
    deltas, end = ask(mead, "What is the weather in Rome?", params, tools=(WEATHER,))
    assert "".join(delta.text for delta in deltas).startswith('<tool_call>\n{"name"')
    assert end.reason == "length" and not any(delta.tool_calls for delta in deltas)


def test_a_tool_that_must_be_called(mead):
    deltas, end = ask(mead, "What is DNS?", tools=(WEATHER,), tool_choice="get_weather")
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    arguments = json.loads("".join(piece.arguments for piece in pieces))
    assert set(arguments) >= {"city"} and end.reason == "tool_calls" and {p.number for p in pieces} == {0}
    with pytest.raises(UsageError, match="none of the tools"):
        ask(mead, "What is DNS?", tools=(WEATHER,), tool_choice="nothing")


def test_stop_strings_stop_the_text_and_no_call(mead):
    params = SamplingParams(temperature=0, max_tokens=60, stop=["city"])
    deltas, end = ask(mead, "What is the weather in Rome?", params, tools=(WEATHER,))
    assert any(delta.tool_calls for delta in deltas) and end.reason == "tool_calls"
    plain, _ = ask(mead, "What is DNS?")
    word = "".join(delta.text for delta in plain).split()[3]
    params = SamplingParams(temperature=0, max_tokens=60, stop=[word])
    deltas, end = ask(mead, "What is DNS?", params)
    text = "".join(delta.text for delta in deltas)
    assert (end.reason, end.stop_reason) == ("stop", word)
    assert text == "".join(delta.text for delta in plain).partition(word)[0]
