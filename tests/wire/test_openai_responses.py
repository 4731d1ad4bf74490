"""/v1/responses as JSON in and events out: no server, no model."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from kvasir.api import seal
from kvasir.api.face import Sent
from kvasir.api.openai.memory import Responses
from kvasir.api.openai.responses import Asked, parse
from kvasir.api.openai.responses_reply import Reply
from kvasir.chat import Delta, Event, Finished, Message, Metrics, ToolCall
from kvasir.errors import Busy, UsageError
from tests.wire.fake import INFO, FakeModel
from tests.wire.openai_events import CALLING, CLOCK, PLAIN, STAMP, logprob, sent, spell, whole

ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
FLAT = {"type": "function", **CLOCK["function"]}


def asked(memory: Responses | None = None, **body: Any) -> Asked:
    return parse(sent(model="m", **{"input": "Hello", **body}), memory or Responses())


def reply(memory: Responses | None = None, **body: Any) -> Reply:
    numbers = count(1)
    got = asked(memory, **body)
    return Reply(got.told, got.messages, spell, STAMP, got._keep, got.seals, lambda: str(next(numbers)))


def streamed(made: Reply, events: list[Event]) -> list[dict[str, Any]]:
    """The events of a stream; as in the server, its beginning is made after its first event."""
    rest = b"".join(map(made.line, events))
    raw = (made.begin() + rest + made.end()).decode().strip().split("\n\n")
    found = []
    for each in raw:
        name, data = each.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_input_of_every_kind() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Time?"}]},
        thought,
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
    ]
    (request,) = asked(input=items, instructions="You know clocks.").requests(FakeModel())
    assert request.messages == (
        Message("system", "You know clocks.\n\nBe brief."),
        Message("user", "Time?"),
        Message("assistant", "Wait.", "hm", (ToolCall("clock", {"city": "Oslo"}, "c1"),)),
        Message("tool", "noon", tool_name="clock", tool_call_id="c1"),
    )
    assert asked().requests(FakeModel())[0].messages == (Message("user", "Hello"),)
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": seal.sealed("deep")}
    assert asked(input=[sealed]).messages[0].thinking == "deep"


def test_parameters() -> None:
    got = asked(
        temperature=0.5, top_p=0.9, max_output_tokens=9, top_logprobs=3, truncation="auto", stream=True,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        tools=[FLAT], tool_choice={"type": "function", "name": "clock"}, parallel_tool_calls=False,
        reasoning={"effort": "high"}, metadata={"a": "b"}, top_k=4,
    )  # fmt: skip
    p = got.params
    assert (p.temperature, p.top_p, p.max_tokens, p.logprobs, p.top_k) == (0.5, 0.9, 9, 3, 4)
    assert p.constraint.kind == "schema" and got.stream and got.media_type == "text/event-stream"
    (request,) = got.requests(FakeModel(info=ABLE))
    assert request.tools == (CLOCK,) and request.tool_choice == "clock" and not request.parallel_tool_calls
    assert request.truncate and request.think == "high" and got.warnings == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": None}, "input must be"),
        ({"input": []}, "input must be"),
        ({"input": [5]}, "input[0] must be an object"),
        ({"input": [{"type": "message", "role": "king", "content": "x"}]}, "input[0].role must be"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads text only"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type is not supported"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": "c"}]}, "input[0].arguments must be"),
        ({"previous_response_id": "resp_0"}, "previous_response_id: there is no response 'resp_0'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type must be function, got 'web_search'"),
        ({"include": ["file_search_call.results"]}, "include must hold"),
        ({"truncation": "none"}, "truncation must be"),
        ({"background": True}, "background is not supported"),
        ({"conversation": "c"}, "conversation is not supported"),
        ({"prompt": {"id": "p"}}, "prompt is not supported"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type must be"),
        ({"n": 2}, "n must be 1"),
        ({"max_output_tokens": 0}, "max_tokens must be between"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(**body)
    assert message in str(caught.value)


def test_a_text_opens_grows_and_closes() -> None:
    events = streamed(reply(stream=True), PLAIN)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[2]["item"] == {**item, "status": "in_progress", "content": []}
    assert events[3]["part"] == {**part, "text": ""} and at.items() <= events[3].items()
    assert events[4]["delta"] == "He" and at.items() <= events[4].items()
    assert events[6]["text"] == "Hello" and events[7]["part"] == part and events[8]["item"] == item
    final = events[9]["response"]
    assert final["output"] == [item] and final["status"] == "completed" and final["error"] is None
    assert final["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }


def test_thoughts_and_calls_are_items_of_their_own() -> None:
    events = streamed(reply(stream=True), CALLING)
    kinds = [event["type"].removeprefix("response.") for event in events]
    call = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        *call[:2], *call[1:], *call, "completed",
    ]  # fmt: skip
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["summary"] == [{"type": "summary_text", "text": "It wants the time."}]
    assert (output[2]["call_id"], output[2]["name"]) == ("call_1", "clock")
    assert output[2]["arguments"] == '{"city": "Bergen"}' and output[3]["arguments"] == "{}"
    assert [e["output_index"] for e in events if e["type"].endswith("item.done")] == [0, 1, 2, 3]
    assert events[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert whole(reply(), CALLING)["output"] == output


def test_an_answer_that_is_cut_off_and_one_that_says_nothing() -> None:
    body = whole(reply(), [Delta("He", (1,)), Finished("length", Metrics(n_generated=1))])
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"
    events = streamed(reply(stream=True), [Finished("length", Metrics())])
    assert events[-1]["type"] == "response.incomplete"
    (item,) = whole(reply(), [Finished("stop", Metrics())])["output"]
    assert item["content"][0]["text"] == ""


def test_what_a_response_repeats() -> None:
    body = whole(reply(instructions="i", metadata={"a": "b"}, temperature=0.5, tools=[FLAT]), PLAIN)
    told = {
        name: body[name]
        for name in ("instructions", "metadata", "temperature", "tools", "tool_choice", "text")
    }
    assert told == {
        "instructions": "i", "metadata": {"a": "b"}, "temperature": 0.5, "tools": [FLAT],
        "tool_choice": "auto", "text": {"format": {"type": "text"}},
    }  # fmt: skip
    assert (body["id"], body["object"], body["created_at"], body["model"]) == (
        "x-1",
        "response",
        STAMP.created,
        "m",
    )


def test_log_probabilities() -> None:
    events: list[Event] = [Delta("a", (97,), (logprob("a", -0.5, ("a", -0.5)),)), Finished("stop", Metrics())]
    body = whole(reply(include=["message.output_text.logprobs"]), events)
    (told,) = body["output"][0]["content"][0]["logprobs"]
    assert (told["token"], told["logprob"], told["bytes"]) == ("a", -0.5, [97])


def test_a_response_is_kept_and_gone_on_from() -> None:
    memory = Responses()
    whole(reply(memory, instructions="Be brief.", input="Time?"), CALLING)
    result = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
    (request,) = asked(memory, previous_response_id="x-1", input=[result]).requests(FakeModel())
    user, said, told = request.messages
    assert user == Message("user", "Time?") and told == Message(
        "tool", "noon", tool_name="clock", tool_call_id="call_1"
    )
    assert (
        said.content == "One moment." and said.thinking == "It wants the time." and len(said.tool_calls) == 2
    )
    with pytest.raises(UsageError, match="there is no response"):
        parse(Sent(b'{"input": "x", "previous_response_id": "x-1"}', tenant="other"), memory)
    kept = memory.get("", "x-1")
    assert kept and kept.response["id"] == "x-1" and memory.drop("", "x-1") and not memory.drop("", "x-1")
    whole(reply(memory, store=False), PLAIN)
    assert memory.get("", "x-1") is None


def test_the_oldest_responses_go_first() -> None:
    memory = Responses(max_responses=2, max_bytes=5000)
    for name in "abc":
        memory.keep("", name, {}, (Message("user", "x"),))
    assert memory.get("", "a") is None and memory.get("", "b") and memory.get("", "c")
    memory.keep("", "d", {}, (Message("user", "x" * 4800),))
    assert memory.get("", "b") is None and memory.get("", "c") is None and memory.get("", "d")
    memory.keep("", "e", {}, (Message("user", "x" * 5000),))
    assert memory.get("", "d") is None and memory.get("", "e") is None


def test_a_thought_can_be_sealed() -> None:
    body = whole(reply(include=["reasoning.encrypted_content"]), CALLING)
    assert seal.opened(body["output"][0]["encrypted_content"]) == "It wants the time."


def test_a_stream_that_breaks() -> None:
    made = reply(stream=True)
    made.line(Delta("He", (1,)))
    raw = made.broken(Busy("the answer was cut off")).decode()
    event = json.loads(raw.split("data: ")[1])
    assert event["type"] == "response.failed" and event["response"]["status"] == "failed"
    assert event["response"]["error"]["message"] == "the answer was cut off" and event["sequence_number"] == 5
