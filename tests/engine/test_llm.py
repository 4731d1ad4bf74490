"""The Python face over a scripted model: what goes in, in any of its forms, and what comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest

from kvasir import LLM, SamplingParams
from kvasir.chat import Message, ToolCall
from kvasir.errors import UsageError
from kvasir.llm import _conversations
from kvasir.runner.model import Model
from tests.engine.fake import FakeProgram, expected
from tests.engine.test_model import model, text_of

WISHES = {"temperature": 0, "max_tokens": 8}


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setattr(Model, "load", lambda name, **how: model(FakeProgram(64)))
    with LLM("fake") as face:
        yield face
        face.model.check()


@pytest.mark.parametrize("call, told", [("enable", "True 4"), ("disable", "False 9")])
def test_an_import_leaves_the_collector_as_it_was_and_a_timeout_that_was_chosen(call: str, told: str) -> None:
    code = f"import gc, os; gc.{call}(); from kvasir import LLM"
    code += "; print(gc.isenabled(), os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    about = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    if call == "disable":
        about["OPENBLAS_THREAD_TIMEOUT"] = "9"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=about)
    assert (run.stdout.strip(), run.stderr) == (told, "")


@pytest.mark.parametrize(
    "prompts",
    [
        ["12", "3"],
        ("12", "3"),
        [[1, 2], [3]],
        (p for p in ["12", [3]]),
        [{"prompt": "12"}, {"prompt_token_ids": [3]}],
    ],
)
def test_prompts_in_any_form_give_answers_in_their_order(llm: LLM, prompts: object) -> None:
    found = llm.generate(prompts, SamplingParams(**WISHES))
    assert [r.text for r in found] == [text_of("12"), text_of("3")]
    assert [r.prompt_token_ids for r in found] == [(1, 2), (3,)]
    assert found[0].token_ids == tuple(expected([1, 2], 8)) and found[0].finish_reason == "length"
    assert found[0].metrics.n_generated == 8 and found[0].finished


@pytest.mark.parametrize("prompt", ["12", [1, 2], (1, 2), {"prompt": "12"}, ["12"]])
def test_one_prompt_is_one_answer(llm: LLM, prompt: object) -> None:
    (found,) = llm.generate(prompt, **WISHES)
    assert found.text == text_of("12")


@pytest.mark.parametrize("prompts", [5, [5.0], [None], ["a", []], [[True]], {"text": "x"}])
def test_what_is_no_prompt_is_refused(llm: LLM, prompts: object) -> None:
    with pytest.raises(UsageError):
        llm.generate(prompts, **WISHES)


def test_no_prompts_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_parameters_come_one_way(llm: LLM) -> None:
    short, long = SamplingParams(temperature=0, max_tokens=2), SamplingParams(temperature=0, max_tokens=5)
    assert [len(r.token_ids) for r in llm.generate(["1", "2"], [short, long])] == [2, 5]
    for bad in ({"sampling_params": short, "max_tokens": 3}, {"sampling_params": [short]}, {"max_token": 3}):
        with pytest.raises(UsageError):
            llm.generate(["1", "2"], **bad)


def test_a_refused_prompt_among_others_leaves_nothing_running(llm: LLM) -> None:
    with pytest.raises(UsageError, match="2000 tokens"):
        llm.generate(["1", "2" * 2000], temperature=0, max_tokens=None)
    assert llm.generate("12", **WISHES)[0].text == text_of("12")


def test_a_stream_grows_to_the_whole_and_may_be_left(llm: LLM) -> None:
    parts = list(llm.stream("12", **WISHES))
    assert all(b.text.startswith(a.text) for a, b in pairwise(parts))
    assert [p.finished for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].text == text_of("12")
    for _ in llm.stream("1", temperature=0, max_tokens=None):
        break
    assert llm.generate("12", **WISHES)[0].text == text_of("12")


def test_several_answers_and_logprobs(llm: LLM) -> None:
    (found,) = llm.generate("12", temperature=0, max_tokens=3, n=2, logprobs=2)
    assert [o.index for o in found.outputs] == [0, 1]
    assert found.outputs[0].token_ids == found.outputs[1].token_ids == tuple(expected([1, 2], 3))
    for token, told in zip(found.token_ids, found.outputs[0].logprobs, strict=True):
        assert told.token_id == told.top[0][0] == token and len(told.top) == 2 and told.logprob < 0


def test_messages_in_any_form() -> None:
    function = {"name": "add", "arguments": '{"b": 1, "a": 2}'}
    (one,) = _conversations([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "7", "function": function}]},
        Message("tool", "3"),
    ])  # fmt: skip
    assert one[0].content == "ab" and one[2].content == "3"
    assert one[1].tool_calls == (ToolCall("add", {"b": 1, "a": 2}, "7"),)
    assert len(_conversations([[{"role": "user", "content": "a"}], [Message("user", "b")]])) == 2


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["hello"],
        [{"content": "no role"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}],
        [{"role": "assistant", "content": "", "tool_calls": ["f"]}],
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[object]) -> None:
    with pytest.raises(UsageError):
        _conversations(messages)


def test_chat_goes_through_the_template(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    render = SimpleNamespace(
        render=lambda messages, **how: "".join(m.content for m in messages), close=bool, source=""
    )
    object.__setattr__(llm.model.prompter, "template", render)
    assert llm.chat([{"role": "user", "content": "12"}], **WISHES)[0].text == text_of("12")
    assert [r.text for r in llm.chat([[Message("user", "1")], [Message("user", "2")]], **WISHES)] == [
        text_of("1"),
        text_of("2"),
    ]
    assert list(llm.stream_chat([Message("user", "3")], **WISHES))[-1].text == text_of("3")
