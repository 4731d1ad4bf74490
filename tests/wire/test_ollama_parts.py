"""Thoughts and calls in Ollama's lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from kvasir.api.ollama import Reply, parse_chat, parse_generate, to_request
from kvasir.chat import Delta, Finished, ToolPiece

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
CHAT = parse_chat(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
EVENTS = [
    Delta("", (1,), thinking="hm"),
    Delta("", (2,)),
    Delta("So: ", (3,), tool_calls=(ToolPiece(0, "call_a", "f", '{"b": 1, "a'),)),
    Delta("", (4,), tool_calls=(ToolPiece(0, arguments='": "\\u00e9"}', last=True),)),
    Delta("", (5,), tool_calls=(ToolPiece(1, "call_b", "now", "{}", last=True),)),
    Finished("tool_calls"),
]
CALLS = [
    {"id": "call_a", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": "é"}}},
    {"id": "call_b", "function": {"index": 1, "name": "now", "arguments": {}}},
]


def test_a_stream_of_parts():
    reply = Reply(CHAT, now=lambda: AT)
    lines = [json.loads(line) for line in map(reply.line, EVENTS) if line]
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "So: "},
        {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
        {"role": "assistant", "content": "", "tool_calls": CALLS[1:]},
        {"role": "assistant", "content": ""},
    ]
    assert list(lines[2]["message"]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    assert lines[-1]["done_reason"] == "stop"


def test_a_whole_answer():
    reply = Reply(CHAT, now=lambda: AT)
    for event in EVENTS:
        reply.take(event)
    message = json.loads(reply.whole())["message"]
    assert message == {"role": "assistant", "content": "So: ", "thinking": "hm", "tool_calls": CALLS}


def test_generate_has_thoughts_too():
    reply = Reply(parse_generate(b'{"model": "m", "prompt": "p"}'), now=lambda: AT)
    (line,) = [json.loads(reply.line(EVENTS[0]))]
    assert line["thinking"] == "hm" and line["response"] == ""


def test_a_call_that_is_cut_off_is_told():
    for streamed in (True, False):
        reply = Reply(CHAT, now=lambda: AT)
        for event in EVENTS[:3]:
            _ = reply.line(event) if streamed else reply.take(event)
        end = Finished("length")
        if not streamed:
            reply.take(end)
        last = json.loads(reply.line(end) if streamed else reply.whole())
        assert last["message"]["content"].endswith('f({"b": 1, "a') and last["done_reason"] == "length"


def test_who_is_asked_for_parts():
    can = ("completion", "tools", "thinking")
    assert to_request(CHAT, can, True).parse
    assert to_request(parse_generate(b'{"model": "m", "prompt": "p"}'), can, True).parse
    assert not to_request(parse_generate(b'{"model": "m", "prompt": "p", "raw": true}'), can, True).parse
