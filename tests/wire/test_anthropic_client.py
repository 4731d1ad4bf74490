"""Anthropic's own Python client, unmodified, against a server: with mead, and with scripted answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import anthropic
import pydantic
import pytest
import requests

from kvasir.api.keys import Keyring, add_key
from kvasir.chat import Delta, ToolPiece
from kvasir.errors import Bug, CapacityError
from tests.wire import pages
from tests.wire.fake import INFO, FakeModel
from tests.wire.real import real_server
from tests.wire.test_server import serving

VLAN: list[Any] = [{"role": "user", "content": "What is a VLAN?"}]
GREEDY = {"temperature": 0}  # since 2.12 the client has no name for it
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TEACHER = "You are a patient teacher of networks, and you answer every question in one short sentence."
CLOCK: Any = {
    "name": "clock",
    "description": "Tells the time in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
CALLING = [
    Delta("", (1,), thinking="It wants "),
    Delta("", (2,), thinking="the time."),
    Delta("One moment.", (3,)),
    Delta("", (4,), tool_calls=(ToolPiece(0, "call_1", "clock", '{"city": '),)),
    Delta("", (5,), tool_calls=(ToolPiece(0, arguments='"Bergen"}', last=True),)),
]


def client_of(url: str, **wishes: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, **wishes)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with real_server() as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> anthropic.Anthropic:
    return client_of(url)


def test_a_message_and_the_same_streamed(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="mead", max_tokens=120, extra_body=GREEDY, messages=VLAN)
    assert message.type == "message" and message.role == "assistant" and message.model == "mead"
    assert message.id.startswith("msg_") and message._request_id and message._request_id.startswith("req_")
    (block,) = message.content
    assert block.type == "text" and "VLAN" in block.text and message.stop_reason == "end_turn"
    with client.messages.stream(model="mead", max_tokens=120, extra_body=GREEDY, messages=VLAN) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == block.text and len(pieces) > 5
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == message.usage.output_tokens


def test_events_come_in_their_order(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(model="mead", max_tokens=8, messages=VLAN, stream=True)
    kinds = [event.type for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_an_answer_goes_on_from_what_the_assistant_said(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model="mead", max_tokens=60, extra_body=GREEDY, messages=VLAN)
    assert whole.content[0].type == "text"
    words = whole.content[0].text.split(" ")
    said = " ".join(words[:4])
    messages: list[Any] = [*VLAN, {"role": "assistant", "content": said}]
    rest = client.messages.create(model="mead", max_tokens=60, extra_body=GREEDY, messages=messages)
    assert rest.content[0].type == "text" and said + rest.content[0].text == whole.content[0].text


def test_what_ends_an_answer(client: anthropic.Anthropic) -> None:
    def ended(**wishes: Any) -> tuple[str | None, str | None]:
        got = client.messages.create(model="mead", messages=VLAN, **{"max_tokens": 60, **wishes})
        return got.stop_reason, got.stop_sequence

    assert ended(max_tokens=3) == ("max_tokens", None)
    assert ended(stop_sequences=["VLAN", "network"]) in [
        ("stop_sequence", "VLAN"),
        ("stop_sequence", "network"),
    ]
    assert ended(max_tokens=0) == ("max_tokens", None)


def test_system_and_counts(client: anthropic.Anthropic) -> None:
    asked: Any = {
        "model": "mead",
        "system": [{"type": "text", "text": TEACHER, "cache_control": {"type": "ephemeral"}}],
        "messages": [
            *VLAN,
            {"role": "assistant", "content": [{"type": "text", "text": "A network."}]},
            {"role": "user", "content": [{"type": "text", "text": "And a router, in a few words, please?"}]},
        ],
    }
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted > 30
    first = client.messages.create(**asked, max_tokens=4).usage
    again = client.messages.create(**asked, max_tokens=4).usage
    for usage in (first, again):
        read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        assert read is not None and written is not None
        assert usage.input_tokens + read + written == counted and usage.output_tokens == 4
    # Whole blocks of 16 tokens of the system prompt are held; the rest is found again while there is room.
    assert first.cache_creation_input_tokens and first.cache_creation_input_tokens % 16 == 0
    assert first.cache_creation_input_tokens < counted - 30 and again.cache_creation_input_tokens == 0
    assert again.cache_read_input_tokens and again.cache_read_input_tokens >= counted - 16


def test_a_stream_tells_the_prompts_tokens_at_its_start(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "mead", "messages": [{"role": "user", "content": f"{TEACHER} Is DNS old?"}]}
    counted = client.messages.count_tokens(**asked).input_tokens
    for known in (False, True):
        events = list(client.messages.create(**asked, max_tokens=2, stream=True))
        begun, ended = events[0], events[-2]
        assert begun.type == "message_start" and ended.type == "message_delta"
        usage, cached = begun.message.usage, ended.usage.cache_read_input_tokens or 0
        assert usage.cache_read_input_tokens == cached and usage.input_tokens == counted - cached
        assert (cached >= counted - 16) or not known


class Host(pydantic.BaseModel):
    kind: Literal["switch", "router"]  # the client leaves the lengths of texts out of the schema
    is_up: bool


def test_structured_output(client: anthropic.Anthropic) -> None:
    parsed = client.messages.parse(model="mead", max_tokens=200, messages=VLAN, output_format=Host)
    assert isinstance(parsed.parsed_output, Host)
    made = client.messages.create(
        model="mead",
        max_tokens=200,
        messages=VLAN,
        output_config={"format": {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}},
    )
    assert made.content[0].type == "text" and json.loads(made.content[0].text) in ("yes", "no")


def test_models(client: anthropic.Anthropic, url: str) -> None:
    listed = list(client.models.list(limit=1))
    mead = next(model for model in listed if model.id == "mead:latest")
    assert mead.max_input_tokens and mead.capabilities and mead.capabilities.structured_outputs.supported
    assert client.models.retrieve("mead").id == "mead"
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert isinstance(caught.value.body, dict) and caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="limit must be between"):
        client.models.list(limit=5000)
    seen = [m.id for page in client.models.list(limit=1).iter_pages() for m in page.data]
    assert seen == [model.id for model in listed]
    back = client.models.list(before_id=seen[-1], limit=100)
    assert [m.id for m in back.data] == seen[:-1]


def test_errors_are_anthropics(client: anthropic.Anthropic, url: str) -> None:
    with pytest.raises(anthropic.NotFoundError, match="'nope' not found"):
        client.messages.create(model="nope", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="temperature") as caught:
        client.messages.create(model="mead", max_tokens=5, messages=HELLO, extra_body={"temperature": 3})
    body = caught.value.body
    assert isinstance(body, dict) and body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    long: list[Any] = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(anthropic.BadRequestError, match="tokens and the context holds"):
        client.messages.create(model="mead", max_tokens=5, messages=long)
    assert client.messages.count_tokens(model="mead", messages=long).input_tokens > 3000
    for path in ("/v1/messages", "/v1/v1/messages", "/v1/messages/count_tokens", "/v1/messages?beta=true"):
        for raw in (b"{", b"[]", b"\xff", b"", b"[" * 100_000, b'{"model":"mead"}'):
            got = requests.post(url + path, data=raw, timeout=10)
            assert got.status_code == 400 and got.json()["type"] == "error", (path, raw[:9])
    assert requests.get(f"{url}/v1/messages", timeout=10).json()["error"]["type"] == "invalid_request_error"


def test_the_program_of_the_page(url: str) -> None:
    (printed,) = pages.output("anthropic.md", url)
    answer, ended, counted = printed.strip().rsplit("\n", 2)
    assert "VLAN" in answer and ended.startswith(("end_turn ", "max_tokens "))
    assert int(counted.split()[3]) > 5


WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


KIND: Any = {
    "name": "kind",
    "description": "Says what kind of thing it is",
    "input_schema": {
        "type": "object",
        "properties": {"kind": {"enum": ["switch", "router"]}, "is_up": {"type": "boolean"}},
        "required": ["kind", "is_up"],
        "additionalProperties": False,
    },
}


def test_mead_calls_a_tool(client: anthropic.Anthropic) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    with client.messages.stream(
        model="mead", max_tokens=60, tools=[WEATHER], messages=asked, extra_body=GREEDY
    ) as stream:
        first = stream.get_final_message()
    (call,) = first.content
    assert call.type == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Rome"})
    assert first.stop_reason == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
    then = client.messages.create(
        model="mead",
        max_tokens=60,
        tools=[WEATHER],
        messages=[*asked, first.to_param(), {"role": "user", "content": [result]}],
        extra_body=GREEDY,
    )
    assert then.content[0].type == "text" and then.stop_reason == "end_turn"
    assert then.usage.cache_read_input_tokens


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "clock"}])
def test_mead_is_made_to_call_a_tool(client: anthropic.Anthropic, choice: Any) -> None:
    tools = [KIND] if choice["type"] == "any" else [WEATHER, {**KIND, "name": "clock"}]
    got = client.messages.create(
        model="mead", max_tokens=600, tools=tools, tool_choice=choice, messages=VLAN, extra_body=GREEDY
    )
    (call,) = [block for block in got.content if block.type == "tool_use"]
    assert call.name == tools[-1]["name"] and got.stop_reason == "tool_use"
    assert set(call.input) == {"kind", "is_up"}  # always what the schema says
    assert call.input["kind"] in ("switch", "router") and isinstance(call.input["is_up"], bool)


def test_a_call_of_a_tool_and_its_result() -> None:
    model = FakeModel(words=CALLING, info=ABLE)
    with serving(model) as url:
        client = client_of(url)
        first = client.messages.create(
            model="mead",
            max_tokens=2000,
            tools=[CLOCK],
            tool_choice={"type": "any"},
            thinking={"type": "enabled", "budget_tokens": 1024},
            messages=HELLO,
        )
        thought, text, call = first.content
        assert thought.type == "thinking" and thought.thinking == "It wants the time."
        assert text.type == "text" and text.text == "One moment."
        assert call.type == "tool_use" and call.name == "clock" and call.input == {"city": "Bergen"}
        assert first.stop_reason == "tool_use" and first.usage.output_tokens_details is not None
        assert first.usage.output_tokens_details.thinking_tokens == 2
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "12:30"}
        messages: list[Any] = [*HELLO, first.to_param(), {"role": "user", "content": [result]}]
        client.messages.create(model="mead", max_tokens=50, tools=[CLOCK], messages=messages)
    asked, then = model.requests
    assert asked.tool_choice == "required" and asked.think is True and asked.parse
    assert [m.role for m in then.messages] == ["user", "assistant", "tool"]
    assert then.messages[1].thinking == "It wants the time." and then.messages[1].content == "One moment."
    assert then.messages[1].tool_calls[0].arguments == {"city": "Bergen"}
    assert then.messages[2].tool_name == "clock" and then.messages[2].tool_call_id == call.id


def test_a_streamed_call_is_put_together_by_the_client() -> None:
    with serving(FakeModel(words=CALLING, info=ABLE)) as url:
        thinking: Any = {"type": "adaptive"}

        async def streamed() -> anthropic.types.Message:
            async with (
                anthropic.AsyncAnthropic(base_url=url, api_key="none") as client,
                client.messages.stream(
                    model="mead", max_tokens=50, tools=[CLOCK], thinking=thinking, messages=HELLO
                ) as stream,
            ):
                return await stream.get_final_message()

        final = asyncio.run(streamed())
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[0].type == "thinking" and final.content[0].signature
    assert final.content[2].type == "tool_use" and final.content[2].input == {"city": "Bergen"}
    assert final.stop_reason == "tool_use" and final.usage.output_tokens == 5


def test_errors_before_and_after_the_first_event() -> None:
    with serving(FakeModel(words=[CapacityError("the cache is full")])) as url:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client_of(url).messages.create(model="mead", max_tokens=5, messages=HELLO)
        assert caught.value.status_code == 503 and "the cache is full" in str(caught.value)
    with serving(FakeModel(words=["a", Bug("at 0x7f12 in /usr/lib/x.py")])) as url:
        with pytest.raises(anthropic.APIStatusError, match="internal error") as caught:
            list(client_of(url).messages.create(model="mead", max_tokens=5, messages=HELLO, stream=True))
        assert "usr/lib" not in str(caught.value)


def test_a_key_is_known_or_the_error_is_anthropics(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys.json", always=True)
    key = add_key(ring.path, "me")
    with serving(FakeModel(), keyring=ring) as url:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            client_of(url).messages.create(model="mead", max_tokens=5, messages=HELLO)
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"]["type"] == "authentication_error"
        for wish in ({"api_key": key}, {"auth_token": key}):
            client = anthropic.Anthropic(base_url=url, max_retries=0, **wish)
            assert client.messages.create(model="mead", max_tokens=5, messages=HELLO).content


def test_fields_that_nobody_knows_are_told_in_a_header() -> None:
    with serving(FakeModel()) as url:
        raw = client_of(url).messages.with_raw_response.create(
            model="mead", max_tokens=5, messages=HELLO, extra_body={"zap": 1}, metadata={"user_id": "u"}
        )
        assert raw.headers["x-kvasir-warning"] == "unknown field 'zap'" and raw.parse().content
