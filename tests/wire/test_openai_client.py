"""OpenAI's own Python client, unmodified, against a server: with mead, and with scripted answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import openai
import pydantic
import pytest
import requests
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from kvasir.chat import ChatRequest, Delta, Finished
from kvasir.errors import Bug, CapacityError
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from tests.wire import pages
from tests.wire.fake import INFO, FakeModel
from tests.wire.openai_events import CALLING, CLOCK, HELLO
from tests.wire.real import encoder, real_server
from tests.wire.test_server import serving

VLAN: list[Any] = [{"role": "user", "content": "What is a VLAN?"}]
ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
CALLS = [event for event in CALLING if isinstance(event, Delta)]


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = encoder(tmp_path_factory.mktemp("models") / "tiny")
    with real_server(aliases={"mead": "mead:latest", "tiny": str(folder)}) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return client_of(url)


def test_an_answer_and_the_same_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "mead", "messages": VLAN, "max_tokens": 40, "temperature": 0}
    got = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    (choice,) = got.choices
    assert choice.message.content and "VLAN" in choice.message.content and got.id.startswith("chatcmpl-")
    assert got.usage and got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert choice.logprobs and choice.logprobs.content
    assert len(choice.logprobs.content) == got.usage.completion_tokens
    assert "".join(e.token for e in choice.logprobs.content).startswith(choice.message.content)
    assert all(e.logprob == e.top_logprobs[0].logprob for e in choice.logprobs.content)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == choice.message.content and len(texts) > 10
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == got.usage.completion_tokens
    assert len({(c.id, c.created) for c in chunks}) == 1
    details = chunks[-1].usage.prompt_tokens_details
    assert details and details.cached_tokens is not None


def test_a_second_request_tells_what_was_cached(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "You answer in one short sentence. " * 4}, *VLAN]
    for _ in range(2):
        usage = client.chat.completions.create(model="mead", messages=messages, max_tokens=2).usage
    assert usage and usage.prompt_tokens_details
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= usage.prompt_tokens - 32


def test_several_answers_seeds_and_stops(client: openai.OpenAI) -> None:
    asked: Any = {"model": "mead", "messages": VLAN, "max_tokens": 12, "seed": 5}
    first, again = (client.chat.completions.create(**asked, n=3) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices] and len(set(texts)) > 1
    stopped = client.chat.completions.create(model="mead", messages=VLAN, temperature=0, stop=["LAN"])
    assert stopped.choices[0].finish_reason == "stop" and "LAN" not in (
        stopped.choices[0].message.content or ""
    )
    assert stopped.choices[0].model_extra == {"stop_reason": "LAN"}
    assert first.choices[0].finish_reason == "length"


class Host(pydantic.BaseModel):
    name: Literal["router", "switch"]
    up: bool


def test_structured_output(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="mead", messages=VLAN, response_format=Host, max_tokens=200)
    assert isinstance(parsed.choices[0].message.parsed, Host)
    got = client.chat.completions.create(
        model="mead", messages=VLAN, response_format={"type": "json_object"}, max_tokens=150, temperature=0
    )
    assert isinstance(json.loads(got.choices[0].message.content or ""), dict)
    got = client.chat.completions.create(
        model="mead", messages=VLAN, extra_body={"structured_outputs": {"choice": ["router", "switch"]}}
    )
    assert got.choices[0].message.content in ("router", "switch")


def test_completions(client: openai.OpenAI) -> None:
    asked: Any = {"model": "mead", "max_tokens": 6, "temperature": 0}
    got = client.completions.create(**asked, prompt=["A VLAN is", "DNS is"], echo=True, logprobs=1)
    assert [c.text[:7] for c in got.choices] == ["A VLAN ", "DNS is "] or got.choices[0].text.startswith(
        "A VLAN is"
    )
    told = got.choices[0].logprobs
    assert told and told.tokens and told.token_logprobs and told.text_offset
    assert told.token_logprobs[0] is None and all(p is not None and p <= 0 for p in told.token_logprobs[1:])
    assert "".join(told.tokens) == got.choices[0].text
    assert [
        got.choices[0].text[o : o + len(t)] for o, t in zip(told.text_offset, told.tokens, strict=True)
    ] == told.tokens
    chunks = list(client.completions.create(**asked, prompt="A VLAN is", echo=True, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == got.choices[0].text
    ids = requests.post(
        f"{client.base_url}../tokenize", json={"model": "mead", "prompt": "A VLAN is"}
    ).json()["tokens"]
    same = client.completions.create(**asked, prompt=[ids, ids], echo=True)
    assert {c.text for c in same.choices} == {got.choices[0].text}
    none = client.completions.create(**{**asked, "max_tokens": 0}, prompt="A VLAN is", echo=True, logprobs=0)
    assert none.choices[0].text == "A VLAN is" and none.usage and none.usage.completion_tokens == 0


def test_embeddings(client: openai.OpenAI) -> None:
    got = client.embeddings.create(model="tiny", input=["a b", "b"])
    plain = client.embeddings.create(model="tiny", input=["a b", "b"], encoding_format="float")
    assert len(got.data) == 2 and len(got.data[0].embedding) == 32
    for one, other in zip(got.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(x * x for x in one.embedding) == pytest.approx(1)
    short = client.embeddings.create(model="tiny", input="a b", dimensions=8).data[0].embedding
    assert len(short) == 8 and sum(x * x for x in short) == pytest.approx(1)
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="mead", input="a")
    with pytest.raises(openai.BadRequestError, match="embedding model"):
        client.chat.completions.create(model="tiny", messages=VLAN)


def test_models(client: openai.OpenAI) -> None:
    assert {"mead:latest", "mead"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("mead").id == "mead"
    with pytest.raises(openai.NotFoundError, match="'nope' not found"):
        client.models.retrieve("nope")


def test_what_vllm_has_beside_it(url: str) -> None:
    def post(path: str, **body: Any) -> Any:
        got = requests.post(url + path, json={"model": "mead", **body}, timeout=30)
        assert got.status_code == 200, got.text
        return got.json()

    tokens = post("/tokenize", prompt="A VLAN is", return_token_strs=True)
    assert "".join(tokens["token_strs"]) == "A VLAN is" and tokens["count"] == len(tokens["tokens"])
    assert post("/detokenize", tokens=tokens["tokens"]) == {"prompt": "A VLAN is"}
    assert post("/tokenize", messages=VLAN)["count"] > 5
    ranked = post("/v1/rerank", query="What is DNS?", documents=["It names hosts.", "Bread."])
    assert sorted(r["index"] for r in ranked["results"]) == [0, 1]
    assert all(0 < r["relevance_score"] < 1 for r in ranked["results"])
    near = requests.post(
        f"{url}/score", json={"model": "tiny", "text_1": "a b", "text_2": ["a b", "b"]}
    ).json()
    assert near["data"][0]["score"] == pytest.approx(1) and near["data"][1]["score"] < 0.999
    questions = [{"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "b"}]}]
    (answer,) = post("/v1/decisions", input="It is b.", questions=questions)["answers"]
    assert sum(p["probability"] for p in answer["probabilities"]) == pytest.approx(1)
    noul = post("/v1/systemone", state="s", questions={"q": {"type": "noul", "instructions": "Is it?"}})
    assert 0 < noul["answers"]["q"]["noul"] < 1 and noul["usage"]["output_tokens"] == 0
    assert requests.get(f"{url}/health").content == b"" and requests.get(f"{url}/v1/v1/models").ok


def test_errors_are_openais(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as lost:
        client.chat.completions.create(model="nope", messages=VLAN)
    assert lost.value.code == "model_not_found" and lost.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="mead", messages=VLAN, temperature=-1)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="tokens and the context holds"):
        client.chat.completions.create(model="mead", messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.BadRequestError, match="not in the vocabulary"):
        client.completions.create(model="mead", prompt=[10**8])
    bodies = (
        b"{",
        b"[]",
        b"\xff",
        b"",
        b"[" * 100_000,
        b'{"model":"mead"}',
        b'{"model":"mead","messages":NaN}',
    )
    for path in (
        "chat/completions",
        "completions",
        "embeddings",
        "rerank",
        "score",
        "decisions",
        "systemone",
    ):
        for raw in bodies:
            got = requests.post(f"{url}/v1/{path}", data=raw, timeout=10)
            assert got.status_code == 400 and set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert requests.get(f"{url}/v1/chat/completions").json()["error"]["message"] == "method not allowed"
    assert requests.post(f"{url}/v1/images", json={}).status_code == 404


def test_the_program_of_the_page(url: str) -> None:
    (printed,) = pages.output("openai.md", url)
    answer, counts, held = printed.strip().rsplit("\n", 2)
    assert "VLAN" in answer and int(counts.split()[0]) > 5 and held.split(": ")[1] in ("yes", "no")


def test_hostile_forms_are_refused_in_time(url: str) -> None:
    for form in (
        {"regex": "("},
        {"regex": "(?<=x)*"},
        {"grammar": 'root ::= root "a" |'},
        {"json": {"type": 5}},
    ):
        body = {"model": "mead", "messages": VLAN, "max_tokens": 2, "structured_outputs": form}
        got = requests.post(f"{url}/v1/chat/completions", json=body, timeout=10)
        assert got.status_code in (200, 400), (form, got.text)
    assert requests.get(f"{url}/health", timeout=1).ok


def test_calls_and_thoughts_reach_the_client() -> None:
    model = FakeModel(words=CALLS, info=ABLE)
    tools: Any = [CLOCK]
    with serving(model) as url:
        client = client_of(url)
        got = client.chat.completions.create(
            model="mead", messages=HELLO, tools=tools, tool_choice="required", reasoning_effort="high"
        )
        message = got.choices[0].message
        assert message.model_extra and message.model_extra["reasoning"] == "It wants the time."
        one, two = message.tool_calls or ()
        assert one.type == "function" and json.loads(one.function.arguments) == {"city": "Bergen"}
        with client.chat.completions.stream(model="mead", messages=HELLO, tools=tools) as stream:
            final = stream.get_final_completion().choices[0]
        assert [c.function.arguments for c in final.message.tool_calls or ()] == ['{"city": "Bergen"}', "{}"]
        assert final.finish_reason == "tool_calls" and final.message.content == "One moment."
        results: list[Any] = [{"role": "tool", "tool_call_id": c.id, "content": "noon"} for c in (one, two)]
        client.chat.completions.create(model="mead", messages=[*HELLO, message, *results], tools=tools)
    asked, _, then = model.requests
    assert (asked.tool_choice, asked.think) == ("required", "high")
    assert then.messages[1].thinking == "" or then.messages[1].thinking == "It wants the time."
    assert [m.tool_name for m in then.messages[2:]] == ["clock", "clock"]


def test_an_asynchronous_client_leaves_early_and_nothing_goes_on() -> None:
    model = FakeModel(words=["x"] * 1000, pace_s=0.01)

    async def leaving(url: str) -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="mead", messages=HELLO, stream=True)
            async with stream:
                async for chunk in stream:
                    if chunk.choices[0].delta.content:
                        return chunk.choices[0].delta.content
        return ""

    with serving(model) as url:
        assert asyncio.run(leaving(url)) == "x"
        for _ in range(500):
            if model.n_cancelled:
                break
            requests.get(f"{url}/health", timeout=5)
        assert model.n_cancelled == 1


def test_errors_before_and_after_the_first_piece() -> None:
    with serving(FakeModel(words=[CapacityError("the cache is full")])) as url:
        for stream in (True, False):
            with pytest.raises(openai.APIStatusError, match="the cache is full") as caught:
                client_of(url).chat.completions.create(model="mead", messages=HELLO, stream=stream)
            assert caught.value.status_code == 503
    with serving(FakeModel(words=["a", Bug("at 0x7f12 in /usr/lib/x.py")])) as url:
        with pytest.raises(openai.APIError, match="internal error") as broken:
            list(client_of(url).chat.completions.create(model="mead", messages=HELLO, stream=True))
        assert "usr/lib" not in str(broken.value)


def test_prompts_of_one_request_are_answered_together() -> None:
    model = FakeModel(words=["x", "y"])
    with serving(model) as url:
        got = client_of(url).completions.create(model="mead", prompt=["a", "bb", "ccc"])
        assert [(c.index, c.text) for c in got.choices] == [(0, "xy"), (1, "xy"), (2, "xy")]
        assert got.usage and (got.usage.prompt_tokens, got.usage.completion_tokens) == (6, 6)
    assert sorted(str(r.prompt) for r in model.requests) == ["a", "bb", "ccc"]
    full = FakeModel(words=["x", CapacityError("the cache is full")])
    with serving(full) as url, pytest.raises(openai.APIStatusError, match="the cache is full"):
        client_of(url).completions.create(model="mead", prompt=["a", "b"])


def test_prompts_of_one_request_are_streamed_side_by_side_and_left_together() -> None:
    model = FakeModel(words=["x"] * 1000, pace_s=0.01)
    with serving(model) as url:
        stream = client_of(url).completions.create(
            model="mead", prompt=["a", "b"], stream=True, max_tokens=900
        )
        seen: set[int] = set()
        while seen != {0, 1}:
            seen |= {choice.index for choice in next(stream).choices}
        stream.close()
        for _ in range(500):
            if model.n_cancelled == 2:
                break
            requests.get(f"{url}/health", timeout=5)
        assert model.n_cancelled == 2
    with serving(FakeModel(words=["x", "y"])) as url:
        chunks = list(client_of(url).completions.create(model="mead", prompt=["a", "b"], n=1, stream=True))
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.text for c in mine) == "xy" and mine[-1].finish_reason == "stop"


def test_without_a_name_the_only_model_in_memory_answers() -> None:
    with serving(FakeModel()) as url:
        got = requests.post(f"{url}/tokenize", json={"prompt": "a"})
        assert got.status_code == 400 and got.json()["error"]["param"] == "model"
        assert requests.post(f"{url}/tokenize", json={"model": "mead", "prompt": "a"}).ok
        assert requests.post(f"{url}/tokenize", json={"prompt": "ab"}).json()["tokens"] == [97, 98]
        assert requests.post(f"{url}/v1/completions", json={"prompt": "ab"}).json()["model"] == "mead:latest"


def test_fields_that_nobody_knows_are_told_in_a_header() -> None:
    with serving(FakeModel()) as url:
        raw = client_of(url).chat.completions.with_raw_response.create(
            model="mead", messages=HELLO, extra_body={"zap": 1}, user="u"
        )
        assert raw.headers["x-kvasir-warning"] == "unknown field 'zap'"
        assert raw.parse().choices[0].message.content == "Hello, world"


def test_a_response_and_the_same_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "mead", "input": "What is a VLAN?", "temperature": 0, "max_output_tokens": 60}
    got = client.responses.create(**asked)
    assert (
        "VLAN" in got.output_text and got.usage and got.usage.output_tokens > 5 and got.id.startswith("resp_")
    )
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == got.output_text and final.status == got.status
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    again = client.responses.create(**{**asked, "input": "And a router?"}, previous_response_id=got.id)
    assert again.previous_response_id == got.id and again.usage
    assert again.usage.input_tokens > got.usage.input_tokens + got.usage.output_tokens - 5
    assert client.responses.retrieve(got.id).output_text == got.output_text
    client.responses.delete(got.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(got.id)
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.create(**asked, previous_response_id=got.id)
    assert lost.value.param == "previous_response_id"


def test_a_response_held_to_a_form(client: openai.OpenAI) -> None:
    got = client.responses.parse(
        model="mead", input="What is a VLAN?", text_format=Host, max_output_tokens=100
    )
    assert isinstance(got.output_parsed, Host)


def test_calls_and_thoughts_in_a_response() -> None:
    flat: Any = {"type": "function", "strict": False, **CLOCK["function"]}
    model = FakeModel(words=CALLS, info=ABLE)
    with serving(model) as url:
        client = client_of(url)
        with client.responses.stream(model="mead", input="Hello", tools=[flat]) as stream:
            final = stream.get_final_response()
        assert [item.type for item in final.output] == [
            "reasoning",
            "message",
            "function_call",
            "function_call",
        ]
        call = final.output[2]
        assert (
            call.type == "function_call"
            and call.arguments == '{"city": "Bergen"}'
            and call.call_id == "call_1"
        )
        result: Any = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
        client.responses.create(model="mead", input=[result], previous_response_id=final.id, tools=[flat])
        sent: Any = [{"role": "user", "content": "Hello"}, *final.output, result]
        client.responses.create(model="mead", input=sent, tools=[flat], store=False)
    _, kept, whole = model.requests
    assert kept.messages == whole.messages and [m.role for m in kept.messages] == [
        "user",
        "assistant",
        "tool",
    ]
    assert kept.messages[1].thinking == "It wants the time." and kept.messages[2].tool_name == "clock"
    with serving(FakeModel(words=["a", Bug("x")])) as url:
        events = list(client_of(url).responses.create(model="mead", input="x", stream=True))
        assert events[-1].type == "response.failed"


def test_a_tool_that_must_be_called(client: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "set_port",
            "parameters": {
                "type": "object",
                "properties": {"port": {"type": "integer"}, "up": {"type": "boolean"}},
                "required": ["port", "up"],
                "additionalProperties": False,
            },
        },
    }
    asked: Any = {
        "model": "mead",
        "messages": VLAN,
        "tools": [tool],
        "tool_choice": "required",
        "temperature": 0,
    }
    got = client.chat.completions.create(**asked, max_tokens=200)
    (call,) = got.choices[0].message.tool_calls or ()
    assert call.type == "function" and call.function.name == "set_port" and call.id
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments["port"], int) and isinstance(arguments["up"], bool) and len(arguments) == 2
    assert got.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(**asked, max_tokens=200) as stream:
        final = stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls or ()
    assert streamed.function.arguments == call.function.arguments
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    messages: list[Any] = [*VLAN, got.choices[0].message, result]
    assert (
        client.chat.completions.create(model="mead", messages=messages, max_tokens=5)
        .choices[0]
        .message.content
    )


def test_the_program_of_langchains_page(url: str) -> None:
    (printed,) = pages.output("langchain-openai.md", url)
    answer, verdict = printed.strip().rsplit("\n", 1)
    assert answer and verdict in ("about_networks=True", "about_networks=False")


def test_a_chain_of_langchain(url: str) -> None:
    chat = ChatOpenAI(
        model="mead", base_url=f"{url}/v1", api_key=SecretStr("none"), temperature=0, max_tokens=40
    )
    said = chat.invoke("What is a VLAN?")
    assert isinstance(said, AIMessage) and "VLAN" in said.content and said.usage_metadata
    assert "".join(str(c.content) for c in chat.stream("What is a VLAN?")) == said.content
    held = chat.with_structured_output(Host, method="json_schema").invoke("What is a VLAN?")
    assert isinstance(held, Host)
    called = chat.bind_tools([Host], tool_choice="Host").invoke("What is a VLAN?")
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "Host" and Host(**call["args"])
    vectors = OpenAIEmbeddings(
        model="tiny", base_url=f"{url}/v1", api_key=SecretStr("none"), check_embedding_ctx_length=False
    )
    assert len(vectors.embed_query("a b")) == 32 and len(vectors.embed_documents(["a", "b"])) == 2


def test_what_an_evaluation_reads_is_what_the_model_says_in_process(client: openai.OpenAI) -> None:
    """Programs such as lm-eval send token ids with echo and logprobs, and add up those at the end."""
    model = Model.load("mead", threads=1)
    try:
        ids = model.tokenize(ChatRequest(SamplingParams(), prompt="A VLAN is a virtual network."))
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
        (*_, end) = list(model.submit(ChatRequest(params, prompt=tuple(ids))))
    finally:
        model.close()
    asked: Any = {
        "model": "mead",
        "prompt": [ids],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }
    told = client.completions.create(**asked).choices[0].logprobs
    assert isinstance(end, Finished) and told and told.token_logprobs and told.top_logprobs
    assert len(told.token_logprobs) == len(ids) + 1
    assert told.token_logprobs[1:-1] == [p.logprob for p in end.prompt_logprobs if p]
    greedy = [
        entry == max(top.values())
        for entry, top in zip(told.token_logprobs[1:-1], told.top_logprobs[1:-1], strict=True)
    ]
    assert greedy == [p.logprob == p.top[0][1] for p in end.prompt_logprobs if p]
