"""Google's own Python client, unmodified, against a server: with mead, an encoder, and scripted answers."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
import pytest
import requests
from google import genai
from google.genai import errors, types

from kvasir.api.keys import Keyring, add_key
from kvasir.chat import Delta, ToolPiece
from kvasir.errors import Bug, CapacityError
from tests.wire import pages
from tests.wire.fake import INFO, FakeModel
from tests.wire.real import encoder, real_server
from tests.wire.test_server import serving

VLAN = "What is a VLAN?"
ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
CALLING = [
    Delta("", (1,), thinking="It wants "),
    Delta("", (2,), thinking="the time."),
    Delta("One moment.", (3,)),
    Delta("", (4,), tool_calls=(ToolPiece(0, "call_1", "clock", '{"city": '),)),
    Delta("", (5,), tool_calls=(ToolPiece(0, arguments='"Bergen"}', last=True),)),
]
GREEDY = types.GenerateContentConfig(temperature=0, max_output_tokens=120)


def client_of(url: str) -> genai.Client:
    return genai.Client(api_key="none", http_options=types.HttpOptions(base_url=url))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with real_server() as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> genai.Client:
    return client_of(url)


def test_an_answer_and_the_same_streamed(client: genai.Client) -> None:
    got = client.models.generate_content(model="mead", contents=VLAN, config=GREEDY)
    assert got.text and "VLAN" in got.text and got.model_version == "mead" and got.response_id
    assert got.candidates and got.candidates[0].finish_reason is types.FinishReason.STOP
    usage = got.usage_metadata
    assert usage and usage.prompt_token_count and usage.candidates_token_count and usage.total_token_count
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    chunks = list(client.models.generate_content_stream(model="mead", contents=VLAN, config=GREEDY))
    assert "".join(chunk.text or "" for chunk in chunks) == got.text and len(chunks) > 5
    last = chunks[-1]
    assert last.candidates and last.candidates[0].finish_reason is types.FinishReason.STOP
    assert last.usage_metadata and last.usage_metadata.candidates_token_count == usage.candidates_token_count

    async def streamed() -> str:
        chunks = await client.aio.models.generate_content_stream(model="mead", contents=VLAN, config=GREEDY)
        return "".join([chunk.text or "" async for chunk in chunks])

    assert asyncio.run(streamed()) == got.text


def test_a_stream_without_sse_is_one_array(url: str) -> None:
    body = {"contents": [{"parts": [{"text": VLAN}]}], "generationConfig": {"temperature": 0}}
    raw = requests.post(f"{url}/v1beta/models/mead:streamGenerateContent", json=body, timeout=20)
    assert raw.headers["content-type"].startswith("application/json") and len(raw.json()) > 5
    one = requests.post(f"{url}/v1beta/models/mead:generateContent", json=body, timeout=20).json()
    texts = [part["text"] for each in raw.json() for part in each["candidates"][0]["content"]["parts"]]
    assert "".join(texts) == one["candidates"][0]["content"]["parts"][0]["text"]


def test_a_chat_goes_on_and_finds_its_beginning_again(client: genai.Client) -> None:
    chat = client.chats.create(
        model="mead",
        config=types.GenerateContentConfig(
            system_instruction="Answer in one sentence.", max_output_tokens=40
        ),
    )
    chat.send_message(VLAN)
    usage = chat.send_message("And what is a router?").usage_metadata
    assert len(chat.get_history()) == 4
    assert usage and usage.cached_content_token_count and usage.prompt_token_count
    assert usage.cached_content_token_count < usage.prompt_token_count


def test_what_ends_an_answer(client: genai.Client) -> None:
    def config(**fields: Any) -> types.GenerateContentConfig:
        return types.GenerateContentConfig(temperature=0, **fields)

    got = client.models.generate_content(model="mead", contents=VLAN, config=config(max_output_tokens=3))
    assert got.candidates and got.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    whole = client.models.generate_content(model="mead", contents=VLAN, config=GREEDY).text or ""
    stop = whole.split()[3]
    got = client.models.generate_content(model="mead", contents=VLAN, config=config(stop_sequences=[stop]))
    assert got.text == whole[: whole.index(stop)]
    assert got.candidates and got.candidates[0].finish_reason is types.FinishReason.STOP


def test_candidates_and_logprobs(client: genai.Client) -> None:
    config = types.GenerateContentConfig(
        candidate_count=2, seed=7, max_output_tokens=5, response_logprobs=True, logprobs=2
    )
    got = client.models.generate_content(model="mead", contents=VLAN, config=config)
    assert got.candidates and [c.index for c in got.candidates] == [0, 1]
    again = client.models.generate_content(model="mead", contents=VLAN, config=config)
    for first, second in zip(got.candidates, again.candidates or [], strict=True):
        assert first.content == second.content
        assert first.logprobs_result and first.avg_logprobs is not None and first.avg_logprobs < 0
        chosen, top = first.logprobs_result.chosen_candidates, first.logprobs_result.top_candidates
        assert chosen and top and len(chosen) == len(top) == 5
        assert first.content and first.content.parts
        assert (
            "".join(each.token or "" for each in chosen).strip()
            == (first.content.parts[0].text or "").strip()
        )
        assert all(each.candidates and len(each.candidates) == 2 for each in top)


class Kind(enum.Enum):
    SWITCH = "switch"
    ROUTER = "router"


class Host(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    flags: list[bool] = pydantic.Field(max_length=2)
    kind: Kind
    spare: bool | None


def test_structured_output(client: genai.Client) -> None:
    def answer(**form: Any) -> types.GenerateContentResponse:
        config = types.GenerateContentConfig(max_output_tokens=200, temperature=0, **form)
        return client.models.generate_content(model="mead", contents=VLAN, config=config)

    assert isinstance(answer(response_mime_type="application/json", response_schema=Host).parsed, Host)
    plain = answer(response_mime_type="application/json", response_json_schema=Host.model_json_schema())
    assert Host.model_validate_json(plain.text or "")
    assert answer(response_mime_type="text/x.enum", response_schema=Kind).parsed in Kind
    assert isinstance(json.loads(answer(response_mime_type="application/json").text or ""), dict)


def test_counting_and_models(client: genai.Client) -> None:
    counted = client.models.count_tokens(model="mead", contents=VLAN).total_tokens
    usage = client.models.generate_content(model="mead", contents=VLAN, config=GREEDY).usage_metadata
    assert usage and counted == usage.prompt_token_count
    listed = {model.name: model for model in client.models.list(config={"page_size": 1})}
    mead = listed["models/mead:latest"]
    assert mead.input_token_limit and mead.supported_actions and "generateContent" in mead.supported_actions
    assert client.models.get(model="mead:latest").name == "models/mead:latest"


def test_errors_are_googles(client: genai.Client, url: str) -> None:
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="nope", contents=VLAN)
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    with pytest.raises(errors.ClientError, match=r"generationConfig\.temperature must be between") as caught:
        client.models.generate_content(
            model="mead", contents=VLAN, config=types.GenerateContentConfig(temperature=5)
        )
    assert caught.value.status == "INVALID_ARGUMENT"
    with pytest.raises(errors.ClientError, match="tokens and the context holds"):
        list(client.models.generate_content_stream(model="mead", contents="word " * 3000))
    image = types.Part.from_bytes(data=b"x", mime_type="image/png")
    with pytest.raises(errors.ClientError, match="inlineData is not supported"):
        client.models.generate_content(model="mead", contents=[image])
    with pytest.raises(errors.ClientError, match="gives no embeddings"):
        client.models.embed_content(model="mead", contents=VLAN)
    actions = (
        "generateContent",
        "streamGenerateContent",
        "countTokens",
        "embedContent",
        "batchEmbedContents",
    )
    for action in actions:
        for raw in (b"{", b"[]", b"\xff", b"", b"[" * 100_000, b"{}"):
            got = requests.post(f"{url}/v1beta/models/mead:{action}", data=raw, timeout=10)
            assert got.status_code == 400 and got.json()["error"]["code"] == 400, (action, raw[:9])
    got = requests.post(f"{url}/v1beta/models/mead:fly", json={}, timeout=10)
    assert got.status_code == 404 and got.json()["error"]["status"] == "NOT_FOUND"
    assert set(got.json()["error"]) == {"code", "message", "status"}
    got = requests.get(f"{url}/v1beta/models?pageSize=x", timeout=10)
    assert got.status_code == 400 and "pageSize" in got.json()["error"]["message"]


def test_embeddings(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "bert")
    with real_server(aliases={"bert": str(folder)}) as url:
        client = client_of(url)
        got = client.models.embed_content(model="bert", contents=["a b", "b"]).embeddings
        assert got and len(got) == 2
        for each in got:
            assert each.values and len(each.values) == 32 and abs(sum(v * v for v in each.values) - 1) < 1e-5
        config = types.EmbedContentConfig(output_dimensionality=8)
        short = client.models.embed_content(model="bert", contents="a b", config=config).embeddings
        assert short and short[0].values and len(short[0].values) == 8
        body = {"content": {"parts": [{"text": "a b"}]}}
        raw = requests.post(f"{url}/v1beta/models/bert:embedContent", json=body, timeout=10).json()
        assert raw["embedding"]["values"] == got[0].values


def get_weather(city: str) -> str:
    """Get the current weather for a city"""
    return f"Rain in {city}."


def test_mead_calls_a_function(client: genai.Client) -> None:
    config = types.GenerateContentConfig(tools=[get_weather], temperature=0, max_output_tokens=60)
    chat = client.chats.create(model="mead", config=config)
    chat.send_message("What is the weather in Rome?")
    parts = [part for content in chat.get_history() for part in content.parts or []]
    (call,) = [part.function_call for part in parts if part.function_call]
    (response,) = [part.function_response for part in parts if part.function_response]
    assert (call.name, call.args) == ("get_weather", {"city": "Rome"})
    assert response.name == "get_weather" and response.response == {"result": "Rain in Rome."}


def test_mead_is_made_to_call_a_function(client: genai.Client) -> None:
    kind = types.FunctionDeclaration(
        name="kind",
        description="Says what kind of thing it is",
        parameters=types.Schema(
            type=types.Type.OBJECT,
            properties={"kind": types.Schema(type=types.Type.STRING, enum=["switch", "router"])},
            required=["kind"],
        ),
    )
    other = kind.model_copy(update={"name": "other"})
    calling = types.FunctionCallingConfig(
        mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["kind"]
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[other, kind])],
        tool_config=types.ToolConfig(function_calling_config=calling),
        temperature=0,
        max_output_tokens=600,
    )
    got = client.models.generate_content(model="mead", contents=VLAN, config=config)
    (call,) = got.function_calls or []
    assert call.name == "kind" and call.args and call.args["kind"] in ("switch", "router")


def clock(city: str) -> str:
    """Tells the time in a city.

    Args:
        city: its name
    """
    return f"half past twelve in {city}"


def test_a_call_of_a_function_and_its_response() -> None:
    model = FakeModel(words=CALLING, info=ABLE)
    with serving(model) as url:
        client = client_of(url)
        config = types.GenerateContentConfig(
            tools=[clock],
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            tool_config=types.ToolConfig(
                function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
            ),
            thinking_config=types.ThinkingConfig(include_thoughts=True),
        )
        first = client.models.generate_content(model="mead", contents="Hello", config=config)
        assert first.candidates and first.candidates[0].content and first.candidates[0].content.parts
        thought, text, call = first.candidates[0].content.parts
        assert thought.thought and thought.text == "It wants the time." and text.text == "One moment."
        assert call.function_call and call.function_call.args == {"city": "Bergen"} and call.thought_signature
        usage = first.usage_metadata
        assert usage and usage.thoughts_token_count == 2 and usage.candidates_token_count == 3
        answered = types.Part.from_function_response(name="clock", response={"result": "12:30"})
        contents = [
            types.UserContent(parts=[types.Part.from_text(text="Hello")]),
            first.candidates[0].content,
            types.UserContent(parts=[answered]),
        ]
        client.models.generate_content(model="mead", contents=contents, config=config)  # type: ignore[arg-type]
    asked, then = model.requests
    assert asked.tool_choice == "clock" and asked.think is True
    assert asked.tools[0]["function"]["parameters"]["properties"]["city"]["type"] == "string"
    assert [m.role for m in then.messages] == ["user", "assistant", "tool"]
    assert then.messages[1].thinking == "It wants the time." and then.messages[2].content == "12:30"
    assert then.messages[2].tool_call_id == then.messages[1].tool_calls[0].id == "call_1"


def test_the_client_calls_functions_by_itself() -> None:
    class Twice(FakeModel):
        def submit(self, request: Any) -> Any:
            self.words = ["It is ", "half past."] if self.requests else CALLING
            return super().submit(request)

    model = Twice(info=ABLE)
    with serving(model) as url:
        client = client_of(url)
        config = types.GenerateContentConfig(tools=[clock])
        got = client.chats.create(model="mead", config=config).send_message("Hello")
    assert got.text == "It is half past."
    said = model.requests[1].messages
    assert said[-1].content == "half past twelve in Bergen"
    assert said[1].thinking == "It wants the time."  # it came back in the signature of the call


def test_a_key_is_known_or_the_error_is_googles(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys.json", always=True)
    key = add_key(ring.path, "me")
    with serving(FakeModel(), keyring=ring) as url:
        client = client_of(url)
        with pytest.raises(errors.ClientError) as caught:
            client.models.generate_content(model="mead", contents="Hello")
        assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
        for version in ("v1", "v1beta"):
            options = types.HttpOptions(base_url=url, api_version=version)
            known = genai.Client(api_key=key, http_options=options)
            assert known.models.generate_content(model="mead", contents="Hello").text == "Hello, world"


def test_errors_before_and_after_the_first_piece() -> None:
    with serving(FakeModel(words=[CapacityError("the cache is full")])) as url:
        client = client_of(url)
        with pytest.raises(errors.ServerError, match="the cache is full") as caught:
            client.models.generate_content(model="mead", contents="Hello")
        assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")
    with serving(FakeModel(words=["a", Bug("at 0x7f12 in /usr/lib/x.py")])) as url:
        client = client_of(url)
        with pytest.raises(errors.APIError, match="internal error") as failed:
            list(client.models.generate_content_stream(model="mead", contents="Hello"))
        assert "usr/lib" not in str(failed.value)


def test_the_program_of_the_page(url: str) -> None:
    (printed,) = pages.output("gemini.md", url)
    answer, counted = printed.strip().rsplit("\n", 1)
    assert "VLAN" in answer and int(counted.split()[3]) > 5
