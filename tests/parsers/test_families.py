"""What each family's models write, as their templates show it, and how a template tells the family."""

from __future__ import annotations

import re

import pytest

from kvasir.parsers.deepseek import DEEPSEEK
from kvasir.parsers.families import family_of
from kvasir.parsers.generic import GENERIC
from kvasir.parsers.harmony import HARMONY
from kvasir.parsers.llama3 import LLAMA3
from kvasir.parsers.mistral import MISTRAL
from kvasir.parsers.qwen_coder import QWEN_CODER
from tests.parsers.taken import TOOLS, whole

ROME = ("call", "get_weather", {"city": "Rome"})
NOW = ("call", "now", {})
PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "parameters": {"type": "object", "properties": {"source": {"type": "string"}}},
    },
}


# -- Qwen3-Coder, Qwen3.5 -----------------------------------------------------------------------------


def xml(name: str, **values: str) -> str:
    """A call as the template writes it."""
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def test_qwen_coder_calls():
    assert whole(QWEN_CODER, xml("get_weather", city="Rome")) == [ROME]
    assert whole(QWEN_CODER, "I look.\n" + xml("get_weather", city="Rome") + "\n" + xml("now")) == [
        ("text", "I look."),
        ROME,
        NOW,
    ]
    assert whole(QWEN_CODER, "<think>\nhm\n</think>\n\n" + xml("now")) == [("thinking", "hm"), NOW]
    bare = xml("get_weather", city="Rome").removeprefix("<tool_call>\n")
    assert whole(QWEN_CODER, bare) == [ROME], "the outer mark is forgotten at times"
    assert whole(QWEN_CODER, '<tool_call>{"name": "now", "arguments": {}}</tool_call>') == [NOW]


def test_qwen_coder_values_become_what_the_schema_says():
    text = xml("get_weather", city="007", days="3", units='["C", "F"]', more="12")
    assert whole(QWEN_CODER, text) == [
        ("call", "get_weather", {"city": "007", "days": 3, "units": ["C", "F"], "more": "12"})
    ]
    text = xml("get_weather", city="null", days="many", units="[C]")
    assert whole(QWEN_CODER, text) == [
        ("call", "get_weather", {"city": "null", "days": "many", "units": "[C]"})
    ]
    schema = {"a": {"type": ["number", "null"]}, "b": {"anyOf": [{"type": "object"}, {"type": "boolean"}]}}
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": schema}}}
    for a, b, found in (
        ("1.5", "True", {"a": 1.5, "b": True}),
        ("null", '{"x": []}', {"a": None, "b": {"x": []}}),
    ):
        assert whole(QWEN_CODER, xml("f", a=a, b=b), tools=[tool]) == [("call", "f", found)]


def test_qwen_coder_text_is_literal():
    program = 'def f():\n    return \'</parameter>\'\n\n<tool_call> </function></tool_call> {"a": "\\n"}\n'
    assert whole(QWEN_CODER, xml("get_weather", city=program)) == [("call", "get_weather", {"city": program})]
    harm = "__import__('os').system('touch pwned')"
    assert whole(QWEN_CODER, xml("get_weather", days=harm)) == [("call", "get_weather", {"days": harm})]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=f>\n<parameter=a>\nx",
        "<tool_call>\n<function=f>\nhuh</function></tool_call>",
        "<tool_call>\n<function=f",
        "<function=>\n</function>",
        "<tool_call><parameter=a>1</parameter></tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</function>\n</tool_call>",
        "<tool_call></tool_call>",
    ],
)
def test_qwen_coder_malformed(text):
    assert whole(QWEN_CODER, "a " + text) == [("text", "a " + text)]


# -- Llama 3 ------------------------------------------------------------------------------------------

LLAMA_CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'


def test_llama_calls():
    assert whole(LLAMA3, LLAMA_CALL) == [ROME]
    assert whole(LLAMA3, f"\n{LLAMA_CALL}; {LLAMA_CALL}\n") == [ROME, ROME]
    assert whole(LLAMA3, f"<|python_tag|>{LLAMA_CALL}") == [ROME]
    assert whole(LLAMA3, f'{{"type": "function", {LLAMA_CALL[1:]}') == [ROME]
    assert whole(LLAMA3, f'{{"type": "function", "function": {LLAMA_CALL}}}') == [ROME]
    assert whole(LLAMA3, '{"function": "get_weather", "parameters": {"city": "Rome"}}') == [ROME]
    assert whole(LLAMA3, f"{LLAMA_CALL} Wait.") == [ROME, ("text", "Wait.")]
    assert whole(LLAMA3, '<function=get_weather>{"city": "Rome"}</function>') == [ROME]
    assert whole(LLAMA3, '[get_weather(city="Rome"), now()]') == [ROME, NOW]


def test_llama_python():
    found = whole(LLAMA3, '<|python_tag|>brave_search.call(query="weather in \\"Rome\\"", n=-2, f=1.5)')
    assert found == [("call", "brave_search", {"query": 'weather in "Rome"', "n": -2, "f": 1.5})]
    assert whole(LLAMA3, "<|python_tag|>print(1 + 1)\nx = {", tools=(PYTHON,)) == [
        ("call", "python", {"source": "print(1 + 1)\nx = {"})
    ]
    assert whole(LLAMA3, "<|python_tag|>print(1 + 1)") == [("text", "<|python_tag|>print(1 + 1)")]
    values = '[get_weather(city=\'a\\n\\u00e9)"\', days=[1, (2,), {"k": None}, True], units={})]'
    assert whole(LLAMA3, values) == [
        ("call", "get_weather", {"city": 'a\né)"', "days": [1, [2], {"k": None}, True], "units": {}})
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 5}',
        '{"name": "Bob", "parameters": {}}',
        '{"answer": [1, 2]}',
        "[1, 2]",
        "{}",
        '{"name": "now"}',
        "[now(1)]",
        "[now(a=b)]",
        "[now(a=__import__('os'))]",
        "[other(a=1)]",
        '{"name": "now',
        "[now(), ]",
        "[now() now()]",
        "<|python_tag|>",
        '<function=f>{"a": }</function>',
        "[now(a='x",
        "{ x }",
        "[now(a=" + "[" * 40 + "]" * 40 + ")]",
        f"So: {LLAMA_CALL}",
        f"[{LLAMA_CALL}, 5]",
    ],
)
def test_llama_texts(text):
    assert whole(LLAMA3, text) == [("text", text)]


# -- Mistral ------------------------------------------------------------------------------------------


def test_mistral_calls():
    one = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    assert whole(MISTRAL, f"[TOOL_CALLS] [{one}]") == [ROME]
    assert whole(MISTRAL, f'[TOOL_CALLS][{one}, {{"name": "now", "arguments": {{}}, "id": "abc"}}]') == [
        ROME,
        NOW,
    ]
    assert whole(MISTRAL, f"I look.[TOOL_CALLS]{one}") == [("text", "I look."), ROME]
    assert whole(MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}[TOOL_CALLS]now[ARGS]{}') == [
        ROME,
        NOW,
    ]
    assert whole(MISTRAL, '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Rome"}') == [ROME]
    assert whole(MISTRAL, '[TOOL_CALLS]get_weather{"city": "Rome"}') == [ROME]
    magistral = family_of("[TOOL_CALLS] [THINK] [/THINK]")
    assert whole(magistral, "[THINK]hm[/THINK]Yes[TOOL_CALLS]now[ARGS]{}") == [
        ("thinking", "hm"),
        ("text", "Yes"),
        NOW,
    ]


def test_mistral_ids_are_what_its_templates_take():
    ids = {MISTRAL.call_id() for _ in range(50)}
    assert len(ids) == 50 and all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in ids)


@pytest.mark.parametrize(
    "text",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] [",
        "[TOOL_CALLS] []",
        "[TOOL_CALLS] [5]",
        "[TOOL_CALLS]now[ARGS]",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]now[ARGS]{",
        "[TOOL_CALLS]a b[ARGS]{}",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CALLS]now[ARGS][1]",
    ],
)
def test_mistral_malformed(text):
    assert whole(MISTRAL, text) == [("text", text)]


# -- DeepSeek -----------------------------------------------------------------------------------------


def v3(*calls: str) -> str:
    """Calls as the templates of V3 and R1 write them."""
    each = (f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call}\n```<｜tool▁call▁end｜>" for call in calls)
    return "<｜tool▁calls▁begin｜>" + "\n".join(each) + "<｜tool▁calls▁end｜>"


WEATHER_V3, NOW_V3 = 'get_weather\n```json\n{"city": "Rome"}', "now\n```json\n{}"
V31 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>'
)


def test_deepseek_calls():
    assert whole(DEEPSEEK, v3(WEATHER_V3)) == [ROME]
    assert whole(DEEPSEEK, "Yes." + v3(WEATHER_V3, NOW_V3)) == [("text", "Yes."), ROME, NOW]
    assert whole(DEEPSEEK, "hm\n</think>\n\n" + v3(NOW_V3), state="open") == [("thinking", "hm"), NOW]
    assert whole(DEEPSEEK, V31 + "<｜tool▁calls▁end｜>") == [ROME]
    two = V31 + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    assert whole(DEEPSEEK, two) == [ROME, NOW]
    assert whole(DEEPSEEK, V31) == [ROME], "the end closes it"
    assert whole(DEEPSEEK, V31.removeprefix("<｜tool▁calls▁begin｜>")) == [ROME]


@pytest.mark.parametrize(
    "text",
    [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
        V31[:-25],
        v3("f\n```json\n{'a'}"),
        v3("f"),
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}x",
        v3("f\n```json\n[]"),
        "<｜tool▁call▁begin｜>" + "f" * 500,
    ],
)
def test_deepseek_malformed(text):
    assert whole(DEEPSEEK, "a " + text) == [("text", "a " + text)]


# -- gpt-oss ------------------------------------------------------------------------------------------

ANALYSIS = "<|channel|>analysis<|message|>The user wants weather.<|end|>"
COMMENTARY = "<|start|>assistant<|channel|>commentary"
TO_WEATHER = ' to=functions.get_weather <|constrain|>json<|message|>{"city": "Rome"}'
FINAL = "<|start|>assistant<|channel|>final<|message|>It is sunny."
WANTS = ("thinking", "The user wants weather.")


def test_harmony_channels():
    assert whole(HARMONY, ANALYSIS + FINAL) == [WANTS, ("text", "It is sunny.")]
    assert whole(HARMONY, ANALYSIS + FINAL + "<|return|>") == [WANTS, ("text", "It is sunny.")]
    assert whole(HARMONY, ANALYSIS + COMMENTARY + TO_WEATHER + "<|call|>") == [WANTS, ROME]
    assert whole(HARMONY, ANALYSIS + COMMENTARY + TO_WEATHER) == [WANTS, ROME]
    early = "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
    assert whole(HARMONY, ANALYSIS + early + '{"city": "Rome"}<|call|>') == [WANTS, ROME]
    first = " to=functions.now<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
    assert whole(HARMONY, first) == [NOW]
    plan = f"{COMMENTARY}<|message|>I look twice.<|end|>{COMMENTARY}{TO_WEATHER}<|call|>"
    assert whole(HARMONY, ANALYSIS + plan) == [WANTS, ("text", "I look twice."), ROME]
    twice = (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        + FINAL
    )
    assert whole(HARMONY, twice) == [("thinking", "a\nb"), ("text", "It is sunny.")]
    assert whole(HARMONY, ANALYSIS.removesuffix("<|end|>") + FINAL) == [WANTS, ("text", "It is sunny.")]


def test_harmony_texts_and_what_is_cut_off():
    assert whole(HARMONY, "Just text {") == [("text", "Just text {")]
    assert whole(HARMONY, ANALYSIS[:40]) == [("thinking", "The user w")]
    assert whole(HARMONY, ANALYSIS + "<|start|>assistant<|chan") == [WANTS]
    malformed = COMMENTARY + " to=functions.get_weather<|message|>{oops"
    assert whole(HARMONY, malformed) == [("text", malformed)]
    assert whole(HARMONY, COMMENTARY + TO_WEATHER, tools=()) == [("text", COMMENTARY + TO_WEATHER)]
    code = COMMENTARY.replace("commentary", "analysis") + " to=python code<|message|>print(1)\n<|call|>"
    assert whole(HARMONY, code, tools=(PYTHON,)) == [("call", "python", {"source": "print(1)\n"})]


# -- others -------------------------------------------------------------------------------------------


def test_json_of_unknown_families():
    one = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    for text in (
        one,
        f"[{one}]",
        f"```json\n{one}\n```",
        f"<tool_call>{one}</tool_call>",
        f"<|tool_call|>[{one}]<|/tool_call|>",
        f"<function_call> {one}",
    ):
        assert whole(GENERIC, text) == [ROME]
    assert whole(GENERIC, f"I look.\n```json\n{one}\n```\nDone") == [
        ("text", "I look."),
        ROME,
        ("text", "Done"),
    ]
    for text in ('{"name": "Bob", "arguments": {}}', '```json\n{"a": 1}\n```', "{", f"So: {one}", "[]"):
        assert whole(GENERIC, text) == [("text", text)]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{- '<|im_start|>' }} {%- for tool in tools %}<tool_call>\\n{\"name\": {%- endfor %}", "hermes"),
        ("<tool_call>\\n<function=example>\\n<parameter=value_1>", "qwen coder"),
        ("{{ '[TOOL_CALLS]' + tool_call.function.name + '[ARGS]' }}", "mistral"),
        ("'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] <tool_call>", "deepseek"),
        ('Environment: ipython {"name": function name, "parameters": dict', "llama3"),
        ('{{- "<|python_tag|>" + tool_call.name + ".call(" }}', "llama3"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "harmony"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "json"),
    ],
)
def test_which_template_is_whose(template, name):
    assert family_of(template).name == name
    assert set(family_of(template).pair) <= set(family_of(template).marks)


def test_thoughts_of_every_pair():
    for template, answer in (
        ("[THINK] [/THINK]", "[THINK]hm[/THINK]Yes"),
        ("", "<think>hm</think>Yes"),
        ("<seed:think></seed:think>", "<seed:think>hm</seed:think>Yes"),
    ):
        assert whole(family_of(template), answer, tools=TOOLS) == [("thinking", "hm"), ("text", "Yes")]
