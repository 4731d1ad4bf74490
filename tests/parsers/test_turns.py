"""What templates are given of earlier calls, so that each takes them."""

from __future__ import annotations

import pytest

from kvasir.chat import ChatRequest, Message, ToolCall
from kvasir.parsers.marks import left_by, pair_of, thinks
from kvasir.runner.prompt import Prompter, with_ids
from kvasir.sampling import SamplingParams
from kvasir.text.template import ChatTemplate
from tests.grammar.words import letters

EACH = "{% for m in messages %}{% for call in m.tool_calls or [] %}"
ADDED = (
    EACH
    + r"{{ '```json\n' + call['function']['arguments'] + '\n```' }}"
    + "{{ call.function.arguments.city ~ call.function.arguments }}{% endfor %}{% endfor %}"
)
DUMPED = (
    EACH
    + "{% if call.function.arguments is string %}no{% else %}{{ call.function.arguments | tojson }}"
    + "{% for k, v in call.function.arguments | items %}{{ k }}{{ v }}{% endfor %}{% endif %}"
    + "{% endfor %}{% endfor %}"
)
NINE = """{% for m in messages %}{% for call in m.tool_calls or [] %}{% if call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{{- '[TOOL_CALLS]' + call.id }}{% endfor %}{% if m.role == 'tool' %}{{ '[CALL]' + m.tool_call_id }}{% endif %}
{%- endfor %}"""
LEVEL = "<|channel|><|message|>{{ reasoning_effort }}"
ROME = ToolCall("get_weather", {"city": "Köln"})


def rendered(source: str, *messages: Message, think: bool | str | None = None) -> str:
    prompter = Prompter(letters(), ChatTemplate(source))
    try:
        return prompter.text(ChatRequest(SamplingParams(), messages=messages, think=think))
    finally:
        prompter.close()


def test_arguments_are_a_mapping_and_json():
    message = Message("assistant", "", tool_calls=(ROME,))
    assert rendered(ADDED, message) == '```json\n{"city": "Köln"}\n```Köln{"city": "Köln"}'
    assert rendered(DUMPED, message) == '{"city": "Köln"}cityKöln'


def test_a_call_without_a_word_has_no_content_where_templates_ask():
    source = (
        "{% for m in messages %}{% if m['content'] is not none %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    )
    call = Message("assistant", "", tool_calls=(ROME,))
    assert rendered(source, Message("user", ""), call, Message("assistant", "")) == "[][]"
    assert rendered("{{ messages[0]['content'] + '!' }}", call) == "!"


def test_mistrals_templates_get_the_ids_that_they_take():
    def turn(first: str, second: str, *results: str) -> list[str]:
        calls = (ToolCall("f", {}, first), ToolCall("g", {}, second))
        tools = [Message("tool", "1", tool_call_id=id) for id in results]
        text = rendered(NINE, Message("user", "u"), Message("assistant", "", tool_calls=calls), *tools)
        return text.replace("[TOOL_CALLS]", " ").replace("[CALL]", " ").split()

    assert turn("a1B2c3D4e", "123456789", "123456789") == ["a1B2c3D4e", "123456789", "123456789"]
    first, second, *results = turn("call_abcdefgh", "toolu_x", "toolu_x", "call_abcdefgh")
    assert results == [second, first] and first != second
    assert turn("call_abcdefgh", "toolu_x")[0] == first, "the same id every time"
    first, second, *results = turn("", "", "", "")
    assert results == [first, second] and first != second
    assert with_ids([Message("tool", "1")], "[0-9]{9}")[0].tool_call_id == "000000000"


def test_levels_that_a_family_has_not():
    assert rendered(LEVEL, Message("user", "u"), think="max").endswith(">high")
    assert rendered(LEVEL, Message("user", "u"), think="low").endswith(">low")
    other = LEVEL.replace("<|message|>", "")
    assert rendered(other, Message("user", "u"), think="max").endswith(">max")


@pytest.mark.parametrize(("tail", "state"), [
    ("assistant\n<think>\n", "open"), ("assistant\n<think>\n\n</think>\n\n", "closed"),
    ("assistant\n", "may"), ("<think>a</think> So", "may"), ("<think>a</think><think>b", "open"),
])  # fmt: skip
def test_where_a_prompt_leaves_the_answer(tail, state):
    pair = pair_of(lambda mark: "think" in mark and mark.startswith("<"))
    assert pair is not None and left_by(tail, pair) == state


def test_who_can_think():
    for template in ("enable_thinking", "<think>", "[THINK]", "<|channel|>analysis<|message|>"):
        assert thinks(template)
    assert not thinks("{{ messages }}")
