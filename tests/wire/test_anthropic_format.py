"""Anthropic's wire format without HTTP: bodies to requests, events to messages and streams."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.api.anthropic.body import MessagesBody
from kvasir.api.anthropic.reply import Reply
from kvasir.api.anthropic.request import Asked, parse_count, parse_messages
from kvasir.api.body import decode
from kvasir.api.face import Sent
from kvasir.api.seal import proof, sealed
from kvasir.chat import ChatRequest, Delta, Event, Finished, Message, Metrics, ToolCall, ToolPiece
from kvasir.errors import CapacityError, UsageError
from kvasir.structured import Constraint
from tests.wire.fake import INFO, FakeModel

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CLOCK = {"name": "clock", "input_schema": {"type": "object"}}
ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
METRICS = Metrics(n_prompt=20, n_cached=16, n_generated=5)


def asked(body: dict[str, Any]) -> Asked:
    base = {"model": "mead", "max_tokens": 100, "messages": HELLO}
    return parse_messages(Sent(json.dumps({**base, **body}).encode()))


def request(body: dict[str, Any], info: Any = ABLE) -> ChatRequest:
    (made,) = asked(body).requests(FakeModel(info=info))
    return made


def test_a_plain_message() -> None:
    got = request({})
    assert got.messages == (Message("user", "Hello"),) and got.parse and got.think is False
    p = got.params
    assert (p.temperature, p.top_p, p.top_k, p.max_tokens, p.stop) == (1.0, 1.0, 0, 100, ())
    assert not asked({}).stream and asked({}).media_type.startswith("application/json")
    assert asked({"stream": True}).media_type.startswith("text/event-stream")


def test_every_parameter_arrives() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    got = asked(
        {
            "temperature": 0.25,
            "top_p": 0.5,
            "top_k": 7,
            "max_tokens": 9,
            "stop_sequences": ["END"],
            "metadata": {"user_id": "u"},
            "service_tier": "auto",
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
            "keep_alive": "10m",
        }
    )
    p = got.params
    assert (p.temperature, p.top_p, p.top_k, p.max_tokens, p.stops) == (0.25, 0.5, 7, 9, ("END",))
    assert p.constraint == Constraint("schema", json.dumps(schema)) and got.keep_alive_s == 600
    assert got.warnings == ()
    old = asked({"output_format": {"type": "json_schema", "schema": schema}})
    assert old.params.constraint == p.constraint


def test_a_conversation_with_tools() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": proof("hm")},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "let me "},
                {"type": "text", "text": "see"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bergen", "b": 1}},
                {"type": "tool_use", "id": "t2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": "12:00"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "such city"}],
                },
                {"type": "text", "text": "and now?"},
            ],
        },
        {"role": "user", "content": "please"},
    ]
    got = request({"messages": messages, "system": "Be brief.", "tools": [WEATHER, CLOCK]})
    assert got.messages == (
        Message("system", "Be brief."),
        Message("user", "a\n\nb"),
        Message(
            "assistant",
            "let me see",
            "hm",
            (ToolCall("weather", {"city": "Bergen", "b": 1}, "t1"), ToolCall("clock", {}, "t2")),
        ),
        Message("tool", "12:00", tool_name="clock", tool_call_id="t2"),
        Message("tool", "Error: no\n\nsuch city", tool_name="weather", tool_call_id="t1"),
        Message("user", "and now?\n\nplease"),
    )
    assert list(got.messages[2].tool_calls[0].arguments) == ["city", "b"]
    assert got.tools[0] == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": WEATHER["input_schema"],
        },
    }
    assert got.tools[1]["function"] == {"name": "clock", "parameters": {"type": "object"}}


def test_an_answer_goes_on_from_a_last_message_of_the_assistant() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Well,"}]
    got = request({"messages": begun})
    assert got.continues and got.messages[-1] == Message("assistant", "Well,")
    assert not request({}).continues
    with pytest.raises(UsageError, match="cannot think"):
        request({"messages": begun, "thinking": {"type": "adaptive"}})
    with pytest.raises(UsageError, match="the last one calls tools"):
        request({"messages": RESULT[:2], "tools": [CLOCK]})


def test_the_line_that_differs_in_every_request_goes() -> None:
    blocks = ["x-anthropic-billing-header: cc_version=2.1; cch=0a1b2;", "You code.", "Be careful."]
    got = request({"system": [{"type": "text", "text": text} for text in blocks]})
    assert got.messages[0] == Message("system", "You code.\n\nBe careful.")
    assert request({"system": [{"type": "text", "text": ""}]}).messages[0].role == "user"


def test_text_that_comes_in_other_blocks() -> None:
    blocks = [
        {"type": "search_result", "source": "s", "title": "T", "content": [{"type": "text", "text": "x"}]},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
    ]
    assert request({"messages": [{"role": "user", "content": blocks}]}).messages[0].content == (
        "T (s)\nx\n\nwords"
    )


@pytest.mark.parametrize(
    ("choice", "made", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any"}, "required", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "tool", "name": "clock"}, "clock", True),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choice(choice: dict[str, Any], made: str, parallel: bool) -> None:
    got = request({"tools": [WEATHER, CLOCK], "tool_choice": choice})
    assert (got.tool_choice, got.parallel_tool_calls) == (made, parallel)


RESULT = [
    *HELLO,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "clock", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "12"}]},
]


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ({"thinking": {"type": "between_tools"}}, False),
        ({"thinking": {"type": "between_tools"}, "messages": RESULT}, True),
    ],
)
def test_thinking(body: dict[str, Any], think: bool | str) -> None:
    assert request(body).think == think


def test_a_model_that_cannot_think_or_call() -> None:
    assert request({"thinking": {"type": "adaptive"}}, INFO).think is None
    with pytest.raises(UsageError, match="thinking: this model does not think"):
        request({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}, INFO)
    with pytest.raises(UsageError, match="tools: this model"):
        request({"tools": [CLOCK]}, INFO)


def test_thoughts_come_back_as_they_went() -> None:
    def sent(block: dict[str, Any]) -> Message:
        messages = [*HELLO, {"role": "assistant", "content": [block]}, *HELLO]
        return request({"messages": messages}).messages[1]

    shown = {"type": "thinking", "thinking": "why\n", "signature": proof("why\n")}
    assert sent(shown).thinking == "why\n"
    assert sent({"type": "thinking", "thinking": "", "signature": sealed("how – so")}).thinking == "how – so"
    assert sent({**shown, "signature": "EqQBCkYIAxgCKkA"}).thinking == "why\n"  # another's, taken on trust
    assert sent({"type": "thinking", "thinking": "", "signature": "EqQBCkYIAxgCKkA"}).thinking == ""
    with pytest.raises(UsageError, match=r"messages\[1\].content\[0\]: the thinking is not the one"):
        sent({**shown, "thinking": "why not"})


def test_breakpoints_hold_what_stands_before_them() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    plain = {"type": "text", "text": "x"}
    block = {**plain, **mark}

    def held(body: dict[str, Any]) -> tuple[int | None, float]:
        got = request(body)
        return got.hold, got.hold_s

    assert held({}) == (None, 0.0)
    assert held({"tools": [{**CLOCK, **mark}]}) == (0, 300.0)
    assert held({"system": [block]}) == (1, 300.0)
    said = [{"role": "user", "content": [block]}, {"role": "assistant", "content": [plain]}, *HELLO]
    assert held({"messages": said}) == (1, 300.0) and held({"messages": said, "system": "s"}) == (2, 300.0)
    assert held({"messages": said, "system": [block], **mark}) == (4, 300.0)
    hour = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert held({"messages": said, "system": [{**plain, **hour}]}) == (2, 3600.0)
    inner = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    assert held({"messages": [*RESULT[:2], {"role": "user", "content": [inner]}], "tools": [CLOCK]})[0] == 3
    four = {
        "tools": [{**CLOCK, **mark}],
        "system": [block],
        "messages": [{"role": "user", "content": [block]}],
    }
    assert held({**four, **mark}) == (2, 300.0)
    with pytest.raises(UsageError, match="at most 4 blocks of a request may have it, got 5"):
        asked({**four, **mark, "system": [block, block]})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens must be of type integer"),
    ({"max_tokens": -1}, "max_tokens must be 0 or more"),
    ({"model": ""}, "model is required"),
    ({"model": 5}, "model must be of type string"),
    ({"messages": []}, "messages must hold 1 to"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, r"messages\[0\].role"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\].content is required"),
    ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content must be of type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"content\[0\].text is required"),
    (
        {"messages": [{"role": "user", "content": [{"type": "nope"}]}]},
        r"messages\[0\].content\[0\].type has a value that is not known here: 'nope'",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "images are not supported"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "documents other than plain text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
        r"messages\[0\].content\[0\].tool_use_id 'x' is the id of no tool_use",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
        "a thinking block cannot stand in a user message",
    ),
    ({"temperature": 1.5}, "temperature must be between 0 and 1"),
    ({"temperature": True}, "temperature must be of type number"),
    ({"top_p": 2}, "top_p must be between"),
    ({"top_k": -5.5}, "top_k must be of type integer"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
    ({"stream": "yes"}, "stream must be of type boolean"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"cache_control": {"type": "forever"}}, "cache_control.type"),
    ({"cache_control": {"type": "ephemeral", "ttl": "9h"}}, "cache_control.ttl"),
    ({"tools": [{"name": "x"}]}, r"tools\[0\].input_schema is required"),
    ({"tools": [CLOCK, CLOCK]}, "every tool needs a name of its own"),
    ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, r"tools\[0\].type 'web_search_2026"),
    ({"tool_choice": {"type": "any"}}, "tool_choice any needs tools"),
    ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [CLOCK]}, "tool_choice.name 'x' is none"),
    ({"tool_choice": {"type": "tool"}, "tools": [CLOCK]}, "tool_choice.name is required"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is required"),
    ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "must be at least 1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "must be greater than thinking.budget_tokens"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is required"),
    ({"container": "c"}, "container is not supported"),
    ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers is not supported"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=[words for _, words in BAD])
def test_what_is_wrong_is_named(body: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(body)


def test_what_nobody_knows_is_told() -> None:
    got = asked({"zap": 1, "speed": "fast", "output_config": {"effort": "low"}})
    assert got.warnings == (
        "unknown field 'zap'",
        "speed has no effect",
        "output_config.effort has no effect without thinking",
    )
    budget = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    assert "budget_tokens has no effect" in asked(budget).warnings[0]


def test_a_count_takes_the_same_body_without_max_tokens() -> None:
    body = {"model": "mead", "messages": HELLO, "system": "abc", "tools": [CLOCK]}
    counted = parse_count(Sent(json.dumps(body).encode()))
    model = FakeModel(info=ABLE)
    assert json.loads(counted.answer(model, 0.0)) == {"input_tokens": 8} and counted.model == "mead"
    assert model.requests[0].tools and counted.warnings == ()
    whole = {**body, "max_tokens": 5, "stream": True, "temperature": 1, "zap": 1}
    assert parse_count(Sent(json.dumps(whole).encode())).warnings == ("unknown field 'zap'",)
    with pytest.raises(UsageError, match="messages is required"):
        parse_count(Sent(b'{"model": "mead"}'))


# -- answers ----------------------------------------------------------------------------------------


def streamed(reply: Reply, events: list[Event]) -> list[dict[str, Any]]:
    """The events of a stream, each under its own name; pings left out."""
    raw = reply.begin() + b"".join(reply.line(event) for event in events) + reply.end()
    found = []
    for each in raw.decode().split("\n\n")[:-1]:
        name, data = each.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        found += [] if body["type"] == "ping" else [body]
    return found


def whole(reply: Reply, events: list[Event]) -> dict[str, Any]:
    for event in events:
        reply.take(event)
    return json.loads(reply.whole())


def delta(index: int, **fields: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def end(reason: str, sequence: str | None = None, thinking: int = 0) -> list[dict[str, Any]]:
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 16}
    usage |= {"output_tokens": 5, "output_tokens_details": {"thinking_tokens": thinking}}
    return [
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage,
        },
        {"type": "message_stop"},
    ]


def test_a_stream_begins_with_what_is_known_of_the_prompt() -> None:
    first = json.loads(Reply("mead").begin(20, 16).decode().split("data: ")[1].split("\n")[0])
    usage = first["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (4, 16)


def test_a_stream_of_text() -> None:
    reply = Reply("mead", id="msg_1")
    events: list[Event] = [Delta("Hi"), Delta(""), Delta(" you"), Finished("stop", METRICS)]
    assert streamed(reply, events) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "mead",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 0,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 0,
                    "service_tier": "standard",
                },
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        delta(0, type="text_delta", text="Hi"),
        delta(0, type="text_delta", text=" you"),
        {"type": "content_block_stop", "index": 0},
        *end("end_turn"),
    ]


CALLS: list[Event] = [
    Delta("", (1, 2), thinking="Let me"),
    Delta("", (3,), thinking=" see."),
    Delta("\n\n", (4,)),
    Delta("I ask.", (5,)),
    Delta("", tool_calls=(ToolPiece(0, "c1", "weather"),)),
    Delta("", tool_calls=(ToolPiece(0, arguments='{"city":'), ToolPiece(0, arguments=' "Bergen"}'))),
    Delta("", tool_calls=(ToolPiece(0, last=True), ToolPiece(1, "c2", "clock", "{}", last=True))),
    Finished("tool_calls", METRICS),
]


def test_a_stream_of_thoughts_and_calls() -> None:
    def start(index: int, **block: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    assert streamed(Reply("mead", shows="summarized"), CALLS)[1:] == [
        start(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="Let me"),
        delta(0, type="thinking_delta", thinking=" see."),
        delta(0, type="signature_delta", signature=proof("Let me see.")),
        {"type": "content_block_stop", "index": 0},
        start(1, type="text", text=""),
        delta(1, type="text_delta", text="\n\nI ask."),
        {"type": "content_block_stop", "index": 1},
        start(2, type="tool_use", id="c1", name="weather", input={}),
        delta(2, type="input_json_delta", partial_json='{"city":'),
        delta(2, type="input_json_delta", partial_json=' "Bergen"}'),
        {"type": "content_block_stop", "index": 2},
        start(3, type="tool_use", id="c2", name="clock", input={}),
        delta(3, type="input_json_delta", partial_json="{}"),
        {"type": "content_block_stop", "index": 3},
        *end("tool_use", thinking=3),
    ]


def test_a_whole_message() -> None:
    got = whole(Reply("mead", shows="summarized", id="msg_1"), CALLS)
    assert got["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": proof("Let me see.")},
        {"type": "text", "text": "\n\nI ask."},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bergen"}},
        {"type": "tool_use", "id": "c2", "name": "clock", "input": {}},
    ]
    assert (got["id"], got["type"], got["role"], got["model"]) == ("msg_1", "message", "assistant", "mead")
    assert (got["stop_reason"], got["stop_sequence"]) == ("tool_use", None)
    assert got["usage"]["output_tokens_details"] == {"thinking_tokens": 3}


def test_thoughts_that_nobody_asked_to_see() -> None:
    hidden = whole(Reply("mead"), CALLS)
    assert [block["type"] for block in hidden["content"]] == ["text", "tool_use", "tool_use"]
    assert hidden["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    omitted = whole(Reply("mead", shows="omitted"), CALLS)["content"][0]
    assert omitted == {"type": "thinking", "thinking": "", "signature": sealed("Let me see.")}


def test_space_before_a_call_is_no_block_and_before_a_text_is_kept() -> None:
    call = Delta("", tool_calls=(ToolPiece(0, "c", "clock", "{}", last=True),))
    got = whole(Reply("m"), [Delta("\n"), call, Finished("tool_calls", METRICS)])
    assert [block["type"] for block in got["content"]] == ["tool_use"]
    got = whole(Reply("m"), [Delta("\n"), Delta(" \n"), Delta("x"), Finished("stop", METRICS)])
    assert got["content"] == [{"type": "text", "text": "\n \nx"}]
    got = whole(Reply("m"), [Delta("\n"), Delta(" "), Finished("stop", METRICS)])
    assert got["content"] == [{"type": "text", "text": "\n "}]
    assert whole(Reply("m"), [Finished("stop", METRICS)])["content"] == []


def test_a_call_that_was_cut_off_has_no_input() -> None:
    events: list[Event] = [Delta("", tool_calls=(ToolPiece(0, "c", "f", '{"a": 1, "b'),))]
    got = whole(Reply("m", max_tokens=5), [*events, Finished("length", METRICS)])
    assert got["content"][0]["input"] == {} and got["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("finished", "reason", "sequence"),
    [
        (Finished("stop", METRICS), "end_turn", None),
        (Finished("stop", METRICS, stop_reason="END"), "stop_sequence", "END"),
        (Finished("stop", METRICS, stop_reason=7), "end_turn", None),
        (Finished("length", METRICS), "max_tokens", None),
        (Finished("length", replace(METRICS, n_generated=3)), "model_context_window_exceeded", None),
        (Finished("tool_calls", METRICS), "tool_use", None),
    ],
)
def test_why_it_ended(finished: Finished, reason: str, sequence: str | None) -> None:
    reply = Reply("mead", stops=["END"], max_tokens=5)
    got = whole(reply, [Delta("x"), finished])
    assert (got["stop_reason"], got["stop_sequence"]) == (reason, sequence)


def test_the_counts_of_a_prompt_add_up() -> None:
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    for n_cached, n_held, counts in (
        (0, 0, (60, 0, 0)),
        (16, 0, (44, 0, 16)),
        (0, 48, (12, 48, 0)),
        (16, 48, (12, 32, 16)),
        (48, 48, (12, 0, 48)),
        (48, 32, (12, 0, 48)),
    ):
        metrics = Metrics(n_prompt=60, n_cached=n_cached, n_held=n_held, n_generated=5)
        usage = whole(Reply("m"), [Delta("x"), Finished("stop", metrics)])["usage"]
        assert tuple(usage[name] for name in names) == counts and usage["output_tokens"] == 5


def test_max_tokens_0_makes_the_prompt_ready_and_writes_nothing() -> None:
    made = asked({"max_tokens": 0})
    assert made.params.max_tokens == 1
    reply = made.reply(FakeModel(), 0.0)
    got = whole(reply, [Delta("x", (1,)), Finished("length", METRICS)])
    assert got["content"] == [] and got["stop_reason"] == "max_tokens"
    assert got["usage"]["output_tokens"] == 0


def test_an_error_in_the_middle_and_a_long_silence() -> None:
    reply = Reply("m")
    silent = [reply.line(Delta("", (1,), thinking="x")) for _ in range(64)]
    assert silent.count(b'event: ping\ndata: {"type":"ping"}\n\n') == 2 and silent.count(b"") == 62
    raw = reply.broken(CapacityError("the cache is full", hint="ask for less")).decode()
    assert raw.startswith("event: error\ndata: ") and raw.endswith("\n\n")
    assert json.loads(raw.split("data: ")[1]) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "the cache is full (ask for less)"},
    }


ODD: list[Any] = [None, True, -1, 0.5, 1e308, 2**63, 2**70, "", "\0", "x" * 5000, [], {}, [[]], [{}], [None]]
ODD += [{"a": {}}, [{"type": "text"}], {"type": "x"}, "\U0001f600", [1, "a"]]


def test_odd_values_in_every_field_are_served_or_refused() -> None:
    model = FakeModel(info=ABLE)
    for name in MessagesBody.__struct_encode_fields__:
        for value in ODD:
            raw = json.dumps({"model": "mead", "max_tokens": 5, "messages": HELLO, name: value}).encode()
            for parse in (parse_messages, parse_count):
                try:
                    made = parse(Sent(raw))
                    (made if isinstance(made, Asked) else made.asked).requests(model)
                except UsageError as error:
                    assert error.message


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["type", "role", "content", "text", "name"]), inner, max_size=3)
        ),
    ),
    st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "output_config", "top_k"]),
)
def test_any_value_anywhere_is_served_or_refused(value: Any, name: str) -> None:
    body = {"model": "mead", "max_tokens": 5, "messages": HELLO, name: value}
    try:
        assert asked(body).requests(FakeModel(info=ABLE))
    except UsageError as error:
        assert error.message and decode(json.dumps(body).encode())
