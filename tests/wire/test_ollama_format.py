"""The wire format without HTTP: bodies to requests, events to lines, as Ollama's clients expect them."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.api.body import decode
from kvasir.api.gotemplate import render_go_template
from kvasir.api.ollama import Reply, parse_chat, parse_generate, to_request
from kvasir.chat import Delta, Finished, Message, Metrics, TokenLogprob, ToolCall
from kvasir.errors import UsageError
from kvasir.structured import Constraint

CAN = ("completion", "tools", "thinking")
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
METRICS = Metrics(prefill_s=0.5, decode_s=1.5, total_s=2.0, n_prompt=3, n_cached=2, n_generated=2)


def asked(body: dict, kind: str = "generate"):
    return (parse_generate if kind == "generate" else parse_chat)(json.dumps(body).encode())


def test_the_program_of_many_clients() -> None:
    got = asked(
        {
            "model": "mead",
            "prompt": "What is a VLAN?",
            "stream": False,
            "options": {"temperature": 0.3, "num_predict": 256},
        }
    )
    request = to_request(got, CAN, True)
    assert request.messages == (Message("user", "What is a VLAN?"),) and request.think is True
    p = request.params
    assert (p.temperature, p.max_tokens, p.top_k, p.top_p, p.seed) == (0.3, 256, 40, 0.9, None)
    assert not got.stream and not request.truncate and request.max_context is None


def test_defaults_are_ollamas() -> None:
    p = asked({"model": "m", "prompt": "x"}).params
    assert (p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p) == (0.8, 40, 0.9, 0.0, 1.0)
    assert (p.repetition_penalty, p.repeat_last_n, p.presence_penalty, p.frequency_penalty) == (1.0, 64, 0, 0)
    assert p.max_tokens is None and p.stop == () and p.logprobs is None


def test_null_is_as_if_it_were_not_there() -> None:
    body = {
        "model": "m",
        "prompt": None,
        "stream": None,
        "options": None,
        "format": None,
        "images": None,
        "think": None,
    }
    got = asked(body)
    assert got.empty and got.stream and got.options.params == asked({"model": "m"}).options.params
    assert asked({"model": "m", "options": {"seed": None, "num_gpu": None}}).warnings == ()


def test_format_becomes_a_constraint() -> None:
    assert asked({"model": "m", "prompt": "p", "format": "json"}).params.constraint == Constraint("json")
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    made = asked({"model": "m", "prompt": "p", "format": schema}).params.constraint
    assert made is not None and made.kind == "schema"
    assert json.loads(made.text) == schema and made.text.index('"b"') < made.text.index('"a"')
    for nothing in (None, ""):
        assert asked({"model": "m", "prompt": "p", "format": nothing}).params.constraint is None
    assert parse_chat(b'{"model": "m", "format": "json"}').params.constraint == Constraint("json")


def test_system_raw_template_and_a_model_without_template() -> None:
    whole = to_request(asked({"model": "m", "prompt": "p", "system": "s"}), CAN, True)
    assert [m.role for m in whole.messages] == ["system", "user"]
    raw = to_request(asked({"model": "m", "prompt": "p", "raw": True}), CAN, True)
    assert raw.prompt == "p" and raw.messages == ()
    own = asked(
        {
            "model": "m",
            "prompt": "p",
            "system": "s",
            "template": "{{ if .System }}<{{ .System }}>{{ end }}{{ .Prompt }}",
        }
    )
    assert to_request(own, CAN, True).prompt == "<s>p"
    assert to_request(asked({"model": "m", "prompt": "p"}), CAN, False).prompt == "p"
    with pytest.raises(UsageError, match="system"):
        to_request(asked({"model": "m", "prompt": "p", "system": "s"}), CAN, False)


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        ({"images": ["aGk="]}, "vision"),
        ({"suffix": "x"}, "insert"),
        ({"think": True}, "thinking"),
        ({"think": "high"}, "thinking"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(body: dict, needs: str) -> None:
    with pytest.raises(UsageError, match=f"mead does not support {needs}"):
        to_request(asked({"model": "mead", "prompt": "p", **body}), ("completion",), True)


def test_chat_with_tools() -> None:
    tool = {
        "type": "function",
        "function": {"name": "now", "description": "d", "parameters": {"type": "object"}},
    }
    call = {"function": {"name": "now", "arguments": {"b": 1, "a": 2}}}
    messages = [
        {"role": "User", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "now", "content": "12"},
    ]
    request = to_request(asked({"model": "m", "messages": messages, "tools": [tool]}, "chat"), CAN, True)
    assert request.tools == (tool,) and request.messages[0].role == "user"
    assert request.messages[1].tool_calls == (ToolCall("now", {"b": 1, "a": 2}),)
    assert list(request.messages[1].tool_calls[0].arguments) == ["b", "a"]
    with pytest.raises(UsageError, match="tools"):
        to_request(asked({"model": "m", "messages": messages, "tools": [tool]}, "chat"), (), True)


BAD = [
    ({"prompt": 5}, "prompt must be of type string"),
    ({"stream": "yes"}, "stream must be of type boolean"),
    ({"model": 5}, "model must be of type string"),
    ({"model": ""}, "model is required"),
    ({"options": []}, "options must be of type object"),
    ({"context": ["a"]}, r"context\[0\] must be of type integer"),
    ({"context": [-1]}, "context"),
    ({"keep_alive": "300"}, "keep_alive"),
    ({"keep_alive": True}, "keep_alive"),
    ({"think": "hard"}, "think"),
    ({"think": 3}, "think must be of type boolean or string"),
    ({"format": "xml"}, "invalid format"),
    ({"format": 3}, "invalid format"),
    ({"format": []}, "invalid format"),
    ({"format": {"const": "x" * 300_000}}, "invalid format: the JSON schema has 300,013 bytes, the limit is"),
    ({"shift": True}, "shift"),
    ({"suffix": "b", "system": "s"}, "suffix goes between two texts"),
    ({"raw": True, "system": "s"}, "raw mode does not support"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"images": "x"}, "images"),
    ({"truncate": 1}, "truncate"),
    ({"_debug_render_only": True}, "_debug_render_only"),
]


@pytest.mark.parametrize(("body", "says"), BAD)
def test_ill_typed_fields_are_named(body: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        asked({"model": "m", "prompt": "p", **body})


BAD_OPTIONS = [
    ("temperature", -1),
    ("temperature", 999999),
    ("temperature", "hot"),
    ("temperature", True),
    ("temperature", [1]),
    ("top_p", -1),
    ("top_p", 1.5),
    ("top_k", 0.5),
    ("top_k", -7),
    ("repeat_penalty", 0),
    ("min_p", 2),
    ("num_predict", -5),
    ("num_predict", 2**63),
    ("num_predict", "many"),
    ("num_ctx", -1),
    ("seed", 2**64),
    ("seed", "x"),
    ("typical_p", 9),
    ("repeat_last_n", -2),
    ("presence_penalty", 1e9),
    ("frequency_penalty", {}),
    ("stop", "x"),
    ("stop", [1]),
    ("stop", [""]),
    ("stop", ["x"] * 999),
    ("stop", ["x" * 9999]),
    ("num_gpu", "all"),
    ("use_mmap", 1),
    ("tfs_z", "a"),
]


@pytest.mark.parametrize(("name", "value"), BAD_OPTIONS)
def test_ill_typed_options_are_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f'option "{name}" must '):
        asked({"model": "m", "prompt": "p", "options": {name: value}})


def test_options_of_other_kinds() -> None:
    given = {
        "num_predict": 5.0,
        "top_k": -1,
        "seed": 0,
        "num_ctx": 128,
        "stop": ["a", "b"],
        "num_gpu": 1,
        "zzz\r\n": 1,
    }
    got = asked({"model": "m", "prompt": "p", "options": given, "zap": 1})
    assert (
        got.params.max_tokens == 5
        and got.params.seed == 0
        and got.params.stop == ("a", "b")
        and got.params.top_k == 0
    )
    assert got.options.max_context == 128
    assert got.warnings == (
        "unknown field 'zap'",
        "option num_gpu has no effect",
        "unknown option 'zzz\\r\\n'",
    )
    assert asked({"model": "m", "options": {"num_predict": 0}}).params.max_tokens is None


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"content": "x"}], r"messages\[0\].role is required"),
        ([{"role": "king", "content": ""}], r"messages\[0\].role"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content must be of type string"),
        ("hi", "messages"),
        ([7], "messages"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            "arguments",
        ),
    ],
)
def test_ill_typed_messages(messages: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        asked({"model": "m", "messages": messages}, "chat")


HOSTILE = [
    b"",
    b"{",
    b"[]",
    b"5",
    b"null",
    b'"x"',
    b"\x00",
    b'{"model":"m"\x00}',
    b'{"model":"\xff"}',
    b'{"a":NaN}',
    b'{"a":1e999}',
    b'{"a":"\\ud800"}',
    b'{"a":"\\udc00x"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a":' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf{}",
    b"{}{}",
    b"'a'",
    b'{"a":1,}',
    b"\xff\xfe{\x00}\x00",
    b'{"model":"\xed\xa0\x80"}',
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bytes(raw: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        parse_generate(raw)
    assert len(str(caught.value)) < 200


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
FIELDS = [
    "model",
    "prompt",
    "stream",
    "options",
    "messages",
    "tools",
    "think",
    "keep_alive",
    "context",
    "format",
    "raw",
]
OPTION_NAMES = ["temperature", "top_k", "stop", "seed", "num_ctx", "num_gpu", "x"]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values),
    st.dictionaries(st.sampled_from(OPTION_NAMES), json_values),
    st.booleans(),
)
def test_any_json_parses_or_is_a_usage_error(body: dict, options: dict, chat: bool) -> None:
    raw = json.dumps({"model": "m", "options": options, **body}).encode()
    try:
        (parse_chat if chat else parse_generate)(raw)
    except UsageError as error:
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(raw: bytes) -> None:
    try:
        decode(raw)
    except UsageError as error:
        assert str(error)


def lines(reply: Reply, events: list, whole: bool = False) -> list[dict]:
    out = [] if whole else [reply.line(e) for e in events]
    if whole:
        for event in events:
            reply.take(event)
        out = [reply.whole()]
    return [json.loads(line) for line in out if line]


EVENTS = [
    Delta("He", (11,)),
    Delta("", (12,)),
    Delta("llo", (13,)),
    Finished("stop", METRICS, prompt_token_ids=(1, 2, 3)),
]
NUMBERS = {
    "total_duration": 2_250_000_000,
    "load_duration": 250_000_000,
    "prompt_eval_count": 3,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 2,
    "eval_duration": 1_500_000_000,
    "cached_count": 2,
}
HEAD = {"model": "m", "created_at": "2026-01-02T03:04:05.678901Z"}


def test_golden_generate() -> None:
    reply = Reply(asked({"model": "m", "prompt": "p"}), 0.25, now=lambda: AT)
    assert lines(reply, EVENTS) == [
        {**HEAD, "response": "He", "done": False},
        {**HEAD, "response": "llo", "done": False},
        {
            **HEAD,
            "response": "",
            "done": True,
            "done_reason": "stop",
            "context": [1, 2, 3, 11, 12, 13],
            **NUMBERS,
        },
    ]
    reply = Reply(asked({"model": "m", "prompt": "p", "raw": True, "truncate": True}), 0.25, now=lambda: AT)
    assert lines(reply, EVENTS, whole=True) == [
        {**HEAD, "response": "Hello", "done": True, "done_reason": "stop", "truncated_count": 0, **NUMBERS}
    ]


def test_golden_chat() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "p"}]}
    reply = Reply(asked(body, "chat"), 0.25, now=lambda: AT)
    assert lines(reply, EVENTS) == [
        {**HEAD, "message": {"role": "assistant", "content": "He"}, "done": False},
        {**HEAD, "message": {"role": "assistant", "content": "llo"}, "done": False},
        {
            **HEAD,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            **NUMBERS,
        },
    ]


def test_golden_logprobs() -> None:
    body = {"model": "m", "prompt": "p", "logprobs": True, "top_logprobs": 1}
    assert asked(body).params.logprobs == 1
    spell = {1: b"a", 2: b"\xc3"}.__getitem__
    events = [Delta("a", (1,), (TokenLogprob(1, -0.5, ((2, -0.25),)),)), EVENTS[-1]]
    (first, last) = lines(Reply(asked(body), token_bytes=spell), events)
    one = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "�", "logprob": -0.25, "bytes": [195]}],
    }
    assert first["logprobs"] == [one] and "logprobs" not in last
    assert lines(Reply(asked(body), token_bytes=spell), events, whole=True)[0]["logprobs"] == [one]


def test_golden_load_and_unload() -> None:
    reply = Reply(asked({"model": "m"}), now=lambda: AT)
    assert json.loads(reply.loaded(False)) == {**HEAD, "response": "", "done": True, "done_reason": "load"}
    reply = Reply(asked({"model": "m", "messages": []}, "chat"), now=lambda: AT)
    assert json.loads(reply.loaded(True))["done_reason"] == "unload"


def test_go_templates() -> None:
    values = {"System": "", "Prompt": "hi", "Response": ""}
    assert (
        render_go_template(
            "a {{- if .System }}x{{ else }}y{{ end -}}  {{.Prompt}}{{ .Response }}<end>", values
        )
        == "ayhi"
    )
    assert render_go_template("{{ .Prompt }}", {**values, "Prompt": "{{ .System }}"}) == "{{ .System }}"
    for bad in (
        "{{ range .Messages }}",
        "{{ if .System }}",
        "{{ end }}",
        "{{ .Nope }}",
        "{{ if .Nope }}{{ end }}",
        "{{ x y z }}",
        "{% for i in range(9) %}{{ i }}{% endfor %}",
        "{{ .Prompt }}" * 2000,
    ):
        with pytest.raises(UsageError, match="template"):
            render_go_template(bad, values)
