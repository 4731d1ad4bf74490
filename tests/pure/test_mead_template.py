"""mead's chat template renders, letter by letter, the text that mead is trained on."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.chat import assistant_text, pieces, render
from training.corpus import Message, read_corpus
from training.samples import Sampler

TEMPLATE = Path(__file__).parents[2] / "training" / "chat_template.jinja"
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather <now> of a city's",
    "parameters": {"type": "object", "properties": {}}}}  # fmt: skip
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "n": 2}}}


def by_template(messages: list[Message], tools: list[dict[str, Any]] | None = None, ask: bool = False) -> str:
    """The text of the template, in the environment that transformers and the engine give it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(messages=messages, tools=tools, add_generation_prompt=ask)


def test_a_question() -> None:
    messages = [{"role": "user", "content": "What is DNS?"}]
    text = by_template(messages, ask=True)
    assert text == "<|im_start|>user\nWhat is DNS?<|im_end|>\n<|im_start|>assistant\n"


CONVERSATIONS: list[tuple[list[Message], list[dict[str, Any]] | None]] = [
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None),
    ([{"role": "system", "content": "s"}, {"role": "user", "content": " two\n\nlines "}], None),
    ([{"role": "system", "content": ""}, {"role": "user", "content": "u"}], None),
    ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], [WEATHER, WEATHER]),
    ([{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
      {"role": "tool", "content": '{"t": 3}'}, {"role": "assistant", "content": "cold"}], [WEATHER]),
    ([{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
      {"role": "tool", "content": "x"}, {"role": "tool", "content": "y"}], [WEATHER]),
    ([{"role": "user", "content": "u"},
      {"role": "assistant", "content": "wait", "tool_calls": [CALL]}], [WEATHER]),
    ([{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}], [WEATHER]),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "tools"), CONVERSATIONS)
@pytest.mark.parametrize("ask", [False, True])
def test_written_conversations(
    messages: list[Message], tools: list[dict[str, Any]] | None, ask: bool
) -> None:
    assert by_template(messages, tools, ask) == render(messages, tools, ask)


def test_drawn_conversations() -> None:
    sampler = Sampler(read_corpus(), frozenset(), seed=3)
    for sample in islice(iter(sampler.draw, None), 500):
        assert by_template(sample.messages, sample.tools) == render(sample.messages, sample.tools)


def test_a_call_is_what_the_parser_looks_for() -> None:
    text = assistant_text({"role": "assistant", "content": "", "tool_calls": [CALL]})
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(body) == {"name": "get_weather", "arguments": {"city": "Köln", "n": 2}}


def test_only_what_the_assistant_writes_has_full_weight() -> None:
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}]
    assert [piece.text for piece in pieces(messages) if piece.weight == 1] == ["b<|im_end|>"]
