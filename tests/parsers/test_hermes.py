"""Hermes's and Qwen's answers, which are mead's too."""

from __future__ import annotations

import pytest

from kvasir.parsers.answer import Answer
from kvasir.parsers.families import family_of
from kvasir.parsers.hermes import HERMES
from kvasir.parsers.parts import Said, Thought, tools_of
from tests.parsers.taken import TOOLS, taken, whole

ROME = ("call", "get_weather", {"city": "Rome"})
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def calls(text: str, **more):
    return whole(HERMES, text, **more)


def test_a_call_text_and_calls_thought_and_calls():
    assert calls(CALL) == [ROME]
    assert calls(f"Let me see.\n{CALL}\n{CALL}") == [("text", "Let me see."), ROME, ROME]
    thought = "<think>\nThe user wants\n\nweather.\n</think>\n\n"
    assert calls(thought + CALL) == [("thinking", "The user wants\n\nweather."), ROME]
    assert calls(thought + "Sunny.") == [("thinking", "The user wants\n\nweather."), ("text", "Sunny.")]
    assert calls(CALL + "\nDone. ") == [ROME, ("text", "Done. ")]


def test_braces_marks_and_unicode_in_arguments():
    wild = 'a"}\\n}</tool_call>\\u00e9\\\\ 日本 😀 { [ <tool_call>'
    text = f'<tool_call>{{"arguments": {{"city": "{wild}", "x": [1, {{}}, null]}}, "name": "f"}}</tool_call>'
    city = 'a"}\n}</tool_call>é\\ 日本 😀 { [ <tool_call>'
    with_quote = text.replace('a"', 'a\\"')
    assert calls(with_quote) == [("call", "f", {"city": city, "x": [1, {}, None]})]


@pytest.mark.parametrize("body", [
    '{"name": "f", "arguments": {"a": 1,}}', '{"name": "f", "arguments": {"a": 01}}', "{'name': 'f'}",
    '{"name": 5, "arguments": {}}', '{"name": "", "arguments": {}}', '{"arguments": {}}', "[]", "f(1)", "",
    '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": "no"}', '{"name": "f"} {"name": "g"}',
    '{"name": "f", "arguments": {"a": 1}}}', '{"name": "f", "arguments": {"a": 1}', '{"name": "f" "b": 1}',
    '{"name": "f", "arguments": {"a": 1e999}}', '{"name": "f", "arguments": {"a": NaN}}', '{"a": tru}',
    '{"name": "f", "arguments": {"a": %s}}' % ("[" * 100 + "]" * 100), '{"a": "\\x"}', "oops", '{"a": }',
    '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}", '{"a": 1 2}', '{"a", 1}', '{,}', '{"a"]',
])  # fmt: skip
def test_a_malformed_call_is_text_and_the_next_one_is_found(body):
    bad = f"<tool_call>\n{body}\n</tool_call>"
    assert calls(bad) == [("text", bad)]
    assert calls(f"{bad}\n{CALL}") == [("text", bad), ROME]


def test_what_models_make_of_the_form():
    assert calls('<tool_call>{"name": "now"}</tool_call>') == [("call", "now", {})]
    assert calls('<tool_call>{"name": "now", "arguments": null}</tool_call>') == [("call", "now", {})]
    assert calls('<tool_call>{"name": "now", "parameters": {"a": 1}}</tool_call>') == [
        ("call", "now", {"a": 1})
    ]
    twice = '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert calls(twice) == [("call", "now", {"a": 1})]
    assert calls(CALL.removesuffix("</tool_call>")) == [ROME], "the end closes it"
    assert calls(CALL.removesuffix("ol_call>")) == [ROME]
    assert calls(CALL.replace("</tool_call>", "") + CALL) == [ROME, ROME]
    assert calls('<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}') == [("call", "f", {"a": "1\n2"})]
    assert calls('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}') == [("call", "f", {"a": "�"})]


@pytest.mark.parametrize("end", range(len("<tool_call>\n"), len(CALL) - len("}\n</tool_call>")))
def test_a_call_that_is_cut_off_is_text(end):
    assert calls("So: " + CALL[:end]) == [("text", "So: " + CALL[:end])]


def test_thought_that_the_prompt_has_opened():
    assert calls("hm\n</think>\n\nYes", state="open") == [("thinking", "hm"), ("text", "Yes")]
    assert calls("hm ", state="open") == [("thinking", "hm ")], "cut off"
    assert calls("hm\n</think>\n\nYes", state="closed") == [("text", "hm\n</think>\n\nYes")]
    assert calls("<think>\n\n</think>\n\nYes") == [("text", "Yes")]
    assert calls("\n <think>a</think><think>b</think>c") == [("thinking", "ab"), ("text", "c")]
    assert calls("A <think> in text") == [("text", "A <think> in text")]
    assert calls("\n\n<thin") == [("text", "\n\n<thin")]


def test_calls_in_a_thought_count_only_where_the_answer_ends_with_them():
    assert calls("I call.\n" + CALL, state="open") == [("thinking", "I call."), ROME]
    assert calls(f"I call.\n{CALL}\n{CALL}\n", state="open") == [("thinking", "I call."), ROME, ROME]
    planned = f"I might write\n{CALL}\n{CALL} but"
    assert calls(planned + "</think>No.", state="open") == [("thinking", planned), ("text", "No.")]
    half = f"{CALL}<tool_call>oops"
    assert calls(half, state="open") == [("thinking", half)]
    assert calls(f"{half}\n{CALL}", state="open") == [("thinking", half), ROME]


def test_without_tools_nothing_is_a_call():
    assert calls(CALL, tools=()) == [("text", CALL)]
    assert calls(f"<think>a{CALL}</think>b ", tools=()) == [("thinking", f"a{CALL}"), ("text", "b ")]


def test_no_more_calls_than_allowed():
    answer = Answer(HERMES, tools_of(TOOLS), "may", 1)
    assert len(answer.push(f"a {CALL}")) == 2 and answer.full
    assert answer.push(f" b {CALL}") == [] and answer.finish() == []
    assert taken(HERMES, [f"{CALL}{CALL} c"], max_calls=1) == [ROME]


def test_nothing_waits_longer_than_needed():
    answer = Answer(HERMES, tools_of(TOOLS), "may")
    assert answer.push("<") == [] and answer.push("think") == []
    assert answer.push(">\n") == [] and answer.push("so") == [Thought("so")]
    assert answer.push(" ") == [] and answer.push("on </th") == [Thought(" on")]
    assert answer.push("ing") == [Thought(" </thing")]
    assert answer.push("\n</think>\n\n") == [] and answer.push("Yes") == [Said("Yes")]
    assert answer.push(" <tool") == [] and answer.push("s>") == [Said(" <tools>")]
    assert answer.push("<tool_call>") == [] and answer.push("x") == [Said("<tool_call>x")]
    plain = Answer(HERMES, {}, "closed")
    assert plain.push("Yes \n") == [Said("Yes \n")] and plain.push("<tool_call>") == [Said("<tool_call>")]


def test_which_templates_are_of_this_family():
    found = family_of("{% for t in tools %}<tool_call>...{% endfor %}")
    assert found.name == "hermes" and found.pair.open == "<think>"
    assert family_of("<tool_call>[THINK] [/THINK]").pair.open == "[THINK]"
    assert family_of("<tool_call>", {"◁think▷", "◁/think▷"}.__contains__).pair.open == "◁think▷"
    assert family_of("").name == "json"
