"""Gemini's wire format without HTTP: bodies to requests, events to responses and streams."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.api.face import Sent
from kvasir.api.gemini.body import GenerateBody, GenerationConfig, Part, camel
from kvasir.api.gemini.embed import parse_batch, parse_embed
from kvasir.api.gemini.reply import Reply
from kvasir.api.gemini.request import Asked, parse_count, parse_generate, parse_stream
from kvasir.api.gemini.schema import json_schema
from kvasir.api.seal import sealed
from kvasir.chat import (
    ChatRequest,
    Delta,
    Event,
    Finished,
    Message,
    Metrics,
    TokenLogprob,
    ToolCall,
    ToolPiece,
)
from kvasir.errors import CapacityError, UsageError
from kvasir.structured import Constraint
from tests.wire.fake import INFO, FakeModel

HELLO = [{"role": "user", "parts": [{"text": "Hello"}]}]
ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
ENCODER = replace(INFO, capabilities=("embedding",))
CLOCK = {
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]},
}
DICE = {"name": "dice", "parametersJsonSchema": {"type": "object", "properties": {"n_sides": {}}}}
METRICS = Metrics(n_prompt=20, n_cached=16, n_generated=5)


def sent(body: dict[str, Any], **query: str) -> Sent:
    return Sent(json.dumps(body).encode(), {"model": "mead"}, query)


def asked(body: dict[str, Any]) -> Asked:
    return parse_generate(sent({"contents": HELLO, **body}))


def request(body: dict[str, Any], info: Any = ABLE) -> ChatRequest:
    (made,) = asked(body).requests(FakeModel(info=info))
    return made


def config(**fields: Any) -> dict[str, Any]:
    return {"generationConfig": fields}


def test_a_plain_question() -> None:
    got = request({})
    assert got.messages == (Message("user", "Hello"),) and got.parse and got.think is True
    p = got.params
    assert (p.temperature, p.top_p, p.top_k, p.max_tokens, p.n) == (1.0, 0.95, 64, None, 1)
    made = asked({})
    assert (made.model, made.stream, made.warnings) == ("mead", False, ())
    assert request({}, INFO).think is None


def test_every_parameter_arrives_in_either_spelling() -> None:
    fields = {
        "temperature": 0.5,
        "topP": 0.25,
        "topK": 7.0,
        "maxOutputTokens": 9,
        "stopSequences": ["END"],
        "candidateCount": 2,
        "seed": 5,
        "presencePenalty": 0.5,
        "frequencyPenalty": 0.25,
        "responseLogprobs": True,
        "logprobs": 3,
    }
    snake = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "max_output_tokens": 9,
        "stop_sequences": ["END"],
        "candidate_count": 2,
        "seed": 5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "response_logprobs": True,
        "logprobs": 3,
    }
    p = asked({**config(**fields), "systemInstruction": {"parts": [{"text": "s"}]}}).params
    other = asked({"generation_config": snake, "system_instruction": {"parts": [{"text": "s"}]}})
    assert other.params == p and other.warnings == () and other.messages[0] == Message("system", "s")
    assert (p.temperature, p.top_p, p.top_k, p.max_tokens, p.stops) == (0.5, 0.25, 7, 9, ("END",))
    assert (p.n, p.seed, p.presence_penalty, p.frequency_penalty, p.logprobs) == (2, 5, 0.5, 0.25, 3)


def test_names_that_are_the_clients_stay() -> None:
    body = {
        "function_call": {"name": "f", "args": {"city_name": {"a_b": 1}}},
        "parameters": {
            "properties": {"city_name": {"any_of": [], "max_items": "3"}},
            "property_ordering": [],
        },
        "response_json_schema": {"properties": {"a_b": {"x_y": 1}}},
    }
    assert camel(body) == {
        "functionCall": {"name": "f", "args": {"city_name": {"a_b": 1}}},
        "parameters": {"properties": {"city_name": {"anyOf": [], "maxItems": "3"}}, "propertyOrdering": []},
        "responseJsonSchema": {"properties": {"a_b": {"x_y": 1}}},
    }


def test_a_conversation_with_functions() -> None:
    contents = [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True},
                {"text": "let me "},
                {"text": "see"},
                {"functionCall": {"name": "clock", "args": {"city": "Bergen"}}},
                {"functionCall": {"name": "clock", "args": {"city": "Oslo"}, "id": "x"}},
                {"functionCall": {"name": "dice"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "clock", "id": "x", "response": {"result": 11}}},
                {"functionResponse": {"name": "clock", "response": {"hour": 12, "minute": 0}}},
                {"functionResponse": {"name": "dice", "response": {"output": "six"}}},
                {"text": "and now?"},
            ],
        },
        {"parts": [{"text": "please"}]},
    ]
    got = request({"contents": contents, "tools": [{"functionDeclarations": [CLOCK, DICE]}]})
    assert got.messages == (
        Message("user", "a\n\nb"),
        Message(
            "assistant",
            "let me see",
            "hm",
            (
                ToolCall("clock", {"city": "Bergen"}, "call_1"),
                ToolCall("clock", {"city": "Oslo"}, "x"),
                ToolCall("dice", {}, "call_3"),
            ),
        ),
        Message("tool", "11", tool_name="clock", tool_call_id="x"),
        Message("tool", '{"hour": 12, "minute": 0}', tool_name="clock", tool_call_id="call_1"),
        Message("tool", "six", tool_name="dice", tool_call_id="call_3"),
        Message("user", "and now?\n\nplease"),
    )
    assert [tool["function"] for tool in got.tools] == [
        {
            "name": "clock",
            "description": "Tells the time.",
            "parameters": {
                "required": ["city"],
                "type": "object",
                "properties": {"city": {"type": "string"}},
            },
        },
        {"name": "dice", "parameters": DICE["parametersJsonSchema"]},
    ]


def test_a_thought_comes_back_in_its_signature() -> None:
    def thought(*parts: dict[str, Any]) -> str:
        contents = [*HELLO, {"role": "model", "parts": list(parts)}, *HELLO]
        return request({"contents": contents}).messages[1].thinking

    kept = sealed("why – so")
    assert thought({"text": "x", "thoughtSignature": kept}) == "why – so"
    assert thought({"functionCall": {"name": "f"}, "thought_signature": kept.replace("/", "_")}) == "why – so"
    assert thought({"text": "why", "thought": True}, {"text": "x", "thoughtSignature": kept}) == "why"
    assert thought({"text": "x", "thoughtSignature": "bm90IG91cnM="}) == ""
    assert thought({"text": "x", "thoughtSignature": "!"}) == ""


def test_an_answer_goes_on_from_a_last_content_of_the_model() -> None:
    contents = [*HELLO, {"role": "model", "parts": [{"text": "Well,"}]}]
    assert request({"contents": contents}).continues and request({"contents": contents}).think is False
    assert not request({}).continues


@pytest.mark.parametrize(
    ("calling", "choice", "left"),
    [
        ({}, "auto", 2),
        ({"mode": "AUTO"}, "auto", 2),
        ({"mode": "none"}, "none", 2),
        ({"mode": "ANY"}, "required", 2),
        ({"mode": "ANY", "allowedFunctionNames": ["dice"]}, "dice", 1),
        ({"mode": "ANY", "allowed_function_names": ["dice", "clock"]}, "required", 2),
        ({"mode": "VALIDATED", "allowedFunctionNames": ["dice"]}, "auto", 1),
    ],
)
def test_modes_of_calling(calling: dict[str, Any], choice: str, left: int) -> None:
    tools = [{"functionDeclarations": [CLOCK]}, {"function_declarations": [DICE]}]
    got = request({"tools": tools, "toolConfig": {"functionCallingConfig": calling}})
    assert (got.tool_choice, len(got.tools)) == (choice, left)


@pytest.mark.parametrize(
    ("wish", "think", "shown"),
    [
        ({}, True, False),
        ({"includeThoughts": True}, True, True),
        ({"thinkingBudget": 0}, False, False),
        ({"thinkingBudget": -1}, True, False),
        ({"thinkingBudget": 500}, True, False),
        ({"thinkingLevel": "MINIMAL"}, False, False),
        ({"thinkingLevel": "low"}, "low", False),
        ({"thinking_level": "XHIGH"}, "high", False),
    ],
)
def test_thinking(wish: dict[str, Any], think: bool | str, shown: bool) -> None:
    body = config(thinkingConfig=wish)
    assert request(body).think == think and asked(body).thoughts.shown is shown
    assert request(body, INFO).think is None


def test_forms() -> None:
    schema = {"type": "OBJECT", "properties": {"b": {"type": "INTEGER"}, "a": {"type": "STRING"}}}
    schema["propertyOrdering"] = ["a", "b"]

    def form(**fields: Any) -> Constraint | None:
        return asked(config(**fields)).params.constraint

    assert form(responseMimeType="application/json") == Constraint("json")
    made = form(responseMimeType="application/json", responseSchema=schema)
    assert made is not None and json.loads(made.text) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
    }
    assert made.text.index('"a"') < made.text.index('"b"')
    plain = {"type": "object", "properties": {"a_b": {}}}
    assert form(responseMimeType="application/json", responseJsonSchema=plain) == Constraint(
        "schema", json.dumps(plain)
    )
    new = [{"text": {"mimeType": "APPLICATION_JSON", "schema": plain}}]
    assert form(responseFormat=new) == Constraint("schema", json.dumps(plain))
    enum = {"type": "STRING", "enum": ["yes", "no"]}
    assert form(responseMimeType="text/x.enum", responseSchema=enum) == Constraint("choice", '["yes", "no"]')
    assert form(responseMimeType="text/plain") is None and form() is None


def test_googles_schema() -> None:
    given = {
        "type": "OBJECT",
        "properties": {
            "when": {"type": "STRING", "format": "date-time", "nullable": True},
            "n": {"type": "INTEGER", "format": "int32", "minimum": 1, "example": 3},
            "kind": {"type": "STRING", "enum": ["a"], "format": "enum", "nullable": True},
            "list": {"type": "ARRAY", "items": {"ref": "#/$defs/x"}, "minItems": "1", "maxItems": 3},
            "any": {"anyOf": [{"type": "NUMBER"}, {"type": "BOOLEAN"}], "nullable": True},
            "free": {"type": "TYPE_UNSPECIFIED", "additionalProperties": False},
        },
        "defs": {"x": {"type": "NULL"}},
        "required": ["when"],
    }
    assert json_schema(given, "s") == {
        "type": "object",
        "required": ["when"],
        "properties": {
            "when": {"type": ["string", "null"], "format": "date-time"},
            "n": {"type": "integer", "minimum": 1},
            "kind": {"type": ["string", "null"], "enum": ["a", None]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1, "maxItems": 3},
            "any": {"anyOf": [{"anyOf": [{"type": "number"}, {"type": "boolean"}]}, {"type": "null"}]},
            "free": {"additionalProperties": False},
        },
        "$defs": {"x": {"type": "null"}},
    }


DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"items": DEEP}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"contents": []}, "contents must hold at least one part"),
    ({"contents": None}, "contents must hold at least one part"),
    ({"contents": [{"role": "wizard", "parts": [{"text": "x"}]}]}, r"contents\[0\].role"),
    ({"contents": [{"parts": [{}]}]}, r"contents\[0\].parts\[0\] is empty"),
    ({"contents": [{"parts": [{"text": 5}]}]}, r"contents\[0\].parts\[0\].text must be of type string"),
    ({"contents": [{"parts": [{"inlineData": {"data": "aGk="}}]}]}, "inlineData is not supported"),
    ({"contents": [{"parts": [{"file_data": {"fileUri": "gs://x"}}]}]}, "fileData is not supported"),
    ({"contents": [{"parts": [{"text": "x", "functionCall": {"name": "f"}}]}]}, "one of text"),
    ({"contents": [{"parts": [{"functionCall": {"name": "f"}}]}]}, "cannot stand in a user's content"),
    ({"contents": [{"parts": [{"functionResponse": {"name": "f"}}]}]}, "no functionCall before it has"),
    (
        {"contents": [*HELLO, {"role": "model", "parts": [{"functionCall": {"name": "f"}}]}]},
        "calls functions",
    ),
    (config(temperature=2.5), "generationConfig.temperature must be between 0 and 2"),
    (config(temperature="hot"), "generationConfig.temperature must be of type number"),
    (config(topP=1.5), "generationConfig.topP must be between"),
    (config(topK=1.5), "generationConfig.topK must be a whole number"),
    (config(candidateCount=9), "generationConfig.candidateCount must be between 1 and 8"),
    (config(maxOutputTokens=0), "generationConfig.maxOutputTokens must be between"),
    (config(stopSequences=[""]), "generationConfig.stopSequences"),
    (config(logprobs=3), "needs generationConfig.responseLogprobs"),
    (config(responseLogprobs=True, logprobs=21), "generationConfig.logprobs must be between"),
    (config(responseSchema={"type": "STRING"}), "needs responseMimeType application/json"),
    (config(responseMimeType="text/xml"), "generationConfig.responseMimeType must be"),
    (config(responseMimeType="text/x.enum"), "needs a responseSchema with an enum"),
    (config(responseMimeType="application/json", responseSchema={"type": "THING"}), "responseSchema.type"),
    (config(responseMimeType="application/json", responseSchema=DEEP), "nested over 64 levels"),
    (config(responseModalities=["IMAGE"]), "responseModalities: models write text"),
    (config(speechConfig={"x": 1}), "speechConfig is not supported"),
    (config(thinkingConfig={"thinkingLevel": "MEGA"}), "thinkingLevel must be one of"),
    (config(thinkingConfig={"thinkingBudget": -5}), "thinkingBudget must be -1 or more"),
    ({"tools": [{"googleSearch": {}}]}, r"tools\[0\].googleSearch is not supported: it runs at Google"),
    ({"tools": [{"functionDeclarations": [CLOCK, CLOCK]}]}, "must be a name of its own, got 'clock'"),
    ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "mode ANY needs functions"),
    ({"toolConfig": {"functionCallingConfig": {"mode": "MAYBE"}}}, "mode must be one of"),
    ({"cachedContent": "cachedContents/1"}, "cachedContent is not supported"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=[words for _, words in BAD])
def test_what_is_wrong_is_named(body: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        request(body)


def test_functions_that_a_mode_names_must_be_there() -> None:
    def calling(**fields: Any) -> None:
        tools = [{"functionDeclarations": [CLOCK]}]
        request({"tools": tools, "toolConfig": {"functionCallingConfig": fields}})

    with pytest.raises(UsageError, match="allowedFunctionNames: 'nope' is not declared"):
        calling(mode="ANY", allowedFunctionNames=["nope"])
    with pytest.raises(UsageError, match="needs mode ANY or VALIDATED"):
        calling(allowedFunctionNames=["clock"])
    with pytest.raises(UsageError, match="knows no tools"):
        request({"tools": [{"functionDeclarations": [CLOCK]}]}, INFO)


def test_what_nobody_knows_is_told() -> None:
    body = {
        "zap": 1,
        "safetySettings": [{"category": "X"}],
        **config(zip=1, thinkingConfig={"thinkingBudget": 9}),
    }
    told = asked({**body, "labels": {"a_b": "c"}}).warnings
    assert told[:3] == (
        "unknown field 'zap'",
        "unknown field 'zip' of generationConfig",
        "safetySettings has no effect",
    )
    assert "thinkingBudget has no effect" in told[3] and len(told) == 4


def test_counts_and_deep_bodies() -> None:
    model = FakeModel()
    assert json.loads(parse_count(sent({"contents": HELLO})).answer(model, 0.0))["totalTokens"] == 5
    whole = {"generateContentRequest": {"contents": HELLO, "systemInstruction": {"parts": [{"text": "ab"}]}}}
    assert json.loads(parse_count(sent(whole)).answer(model, 0.0))["totalTokens"] == 7
    with pytest.raises(UsageError, match="not both"):
        parse_count(sent({**whole, "contents": HELLO}))
    deep = b'{"contents": ' + b'[{"a":' * 450 + b"1" + b"}]" * 450 + b"}"
    for parse in (parse_generate, parse_count, parse_embed):
        with pytest.raises(UsageError):
            parse(Sent(deep, {"model": "mead"}))


def test_embeddings() -> None:
    model = FakeModel(info=ENCODER)
    content = {"parts": [{"text": "x" * 12}]}
    one = json.loads(parse_embed(sent({"content": content})).answer(model, 0.0))
    assert one == {
        "embedding": {"values": [12 / 13, 3 / 13, 4 / 13]},
        "usageMetadata": {"promptTokenCount": 12},
    }
    batch = {
        "requests": [
            {"content": content},
            {"content": {"parts": [{"text": "abcd"}]}, "outputDimensionality": 2},
        ]
    }
    got = json.loads(parse_batch(sent(batch)).answer(model, 0.0))
    assert [each["values"] for each in got["embeddings"]] == [[12 / 13, 3 / 13, 4 / 13], [0.8, 0.6]]
    told = parse_batch(sent({"requests": [{"content": content, "taskType": "X", "zap": 1}]})).warnings
    assert told == ("unknown field 'zap'", "taskType has no effect")
    for body, words in (
        ({"requests": []}, "requests must hold 1 to"),
        ({"requests": [{"content": {"parts": []}}]}, r"requests\[0\].content has no text"),
        ({"requests": [{"content": content, "output_dimensionality": 0}]}, "must be at least 1"),
        ({"requests": [{"content": content, "output_dimensionality": 4}]}, "must be at most 3"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_batch(sent(body)).answer(model, 0.0)


# -- answers ----------------------------------------------------------------------------------------

CALLS: list[Event] = [
    Delta("", (1, 2), thinking="Let me"),
    Delta("", (3,), thinking=" see."),
    Delta("I ", (4,)),
    Delta("ask.", (5,)),
    Delta("", tool_calls=(ToolPiece(0, "c1", "clock"),)),
    Delta("", tool_calls=(ToolPiece(0, arguments='{"city":'), ToolPiece(0, arguments=' "Bergen"}'))),
    Delta("", tool_calls=(ToolPiece(0, last=True), ToolPiece(1, "c2", "dice", "{}", last=True))),
    Finished("tool_calls", METRICS),
]
USAGE = {
    "promptTokenCount": 20,
    "candidatesTokenCount": 2,
    "totalTokenCount": 25,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}],
    "cachedContentTokenCount": 16,
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 16}],
    "thoughtsTokenCount": 3,
}


def whole(reply: Reply, events: list[Event]) -> dict[str, Any]:
    for event in events:
        reply.take(event)
    return json.loads(reply.whole())


def streamed(reply: Reply, events: list[Event]) -> list[dict[str, Any]]:
    raw = reply.begin() + b"".join(reply.line(event) for event in events) + reply.end()
    chunks = raw.decode().split("\r\n\r\n")
    assert chunks.pop() == "" and all(chunk.startswith("data: {") for chunk in chunks)
    return [json.loads(chunk[6:]) for chunk in chunks]


def test_a_whole_response() -> None:
    got = whole(Reply("mead", shown=True, id="r"), CALLS)
    assert got == {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": "Let me see.", "thought": True},
                        {"text": "I ask."},
                        {
                            "functionCall": {"name": "clock", "id": "c1", "args": {"city": "Bergen"}},
                            "thoughtSignature": sealed("Let me see."),
                        },
                        {"functionCall": {"name": "dice", "id": "c2", "args": {}}},
                    ],
                },
                "index": 0,
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": USAGE,
        "modelVersion": "mead",
        "responseId": "r",
    }
    hidden = whole(Reply("mead"), CALLS)["candidates"][0]["content"]["parts"]
    assert hidden[0] == {"text": "I ask."} and len(hidden) == 3


def test_a_stream() -> None:
    chunks = streamed(Reply("mead", id="r"), [*CALLS[:4], Finished("length", METRICS)])
    parts = [chunk["candidates"][0]["content"]["parts"] for chunk in chunks]
    assert parts == [
        [{"text": "I "}],
        [{"text": "ask."}],
        [{"text": "", "thoughtSignature": sealed("Let me see.")}],
    ]
    assert ["finishReason" in chunk["candidates"][0] for chunk in chunks] == [False, False, True]
    assert chunks[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert chunks[-1]["usageMetadata"] == USAGE and "usageMetadata" not in chunks[0]
    assert {chunk["responseId"] for chunk in chunks} == {"r"}
    calls = streamed(Reply("mead"), CALLS)
    names = [
        p["functionCall"]["name"]
        for c in calls
        for p in c["candidates"][0]["content"]["parts"]
        if "functionCall" in p
    ]
    assert names == ["clock", "dice"]


def test_a_stream_without_sse_is_one_array() -> None:
    reply = Reply("mead", events=False)
    raw = reply.begin() + b"".join(reply.line(e) for e in CALLS) + reply.end()
    texts = [p.get("text") for c in json.loads(raw) for p in c["candidates"][0]["content"]["parts"]]
    assert texts[:2] == ["I ", "ask."]
    reply = Reply("mead", events=False)
    raw = reply.begin() + reply.line(Delta("a")) + reply.broken(CapacityError("full"))
    assert json.loads(raw)[1] == {"error": {"code": 503, "message": "full", "status": "UNAVAILABLE"}}
    assert parse_stream(sent({"contents": HELLO})).media_type.startswith("application/json")
    made = parse_stream(sent({"contents": HELLO}, alt="sse"))
    assert made.stream and made.events and made.media_type.startswith("text/event-stream")


def test_several_candidates_with_logprobs() -> None:
    def piece(index: int, token_id: int, logprob: float) -> Delta:
        top = ((token_id, logprob), (66, -3.0))
        return Delta(chr(token_id), (token_id,), (TokenLogprob(token_id, logprob, top),), index)

    events: list[Event] = [
        piece(0, 65, -0.5),
        piece(1, 67, -1.0),
        piece(0, 68, -1.5),
        Finished("stop", METRICS, index=1),
        Finished("length", METRICS, index=0),
    ]
    reply = Reply("mead", n_answers=2, token_bytes=lambda i: bytes((i,)))
    got = whole(reply, events)
    first, second = got["candidates"]
    assert first["content"]["parts"] == [{"text": "AD"}] and first["finishReason"] == "MAX_TOKENS"
    assert second["content"]["parts"] == [{"text": "C"}] and second["index"] == 1
    assert first["avgLogprobs"] == -1.0 and second["avgLogprobs"] == -1.0
    assert first["logprobsResult"]["chosenCandidates"][1] == {
        "token": "D",
        "tokenId": 68,
        "logProbability": -1.5,
    }
    assert first["logprobsResult"]["topCandidates"][0]["candidates"][1]["token"] == "B"
    assert (
        got["usageMetadata"]["candidatesTokenCount"] == 10 and got["usageMetadata"]["totalTokenCount"] == 30
    )
    chunks = streamed(Reply("mead", n_answers=2), events)
    assert ["usageMetadata" in chunk for chunk in chunks] == [False, False, False, False, True]
    assert [chunk["candidates"][0]["index"] for chunk in chunks] == [0, 1, 0, 1, 0]


def test_an_answer_of_nothing_and_a_call_that_was_cut_off() -> None:
    assert whole(Reply("m"), [Finished("stop", METRICS)])["candidates"][0]["content"]["parts"] == [
        {"text": ""}
    ]
    begun = Delta("", tool_calls=(ToolPiece(0, "c", "f", '{"a": 1'),))
    got = whole(Reply("m"), [Delta("x"), begun, Finished("length", METRICS)])["candidates"][0]
    assert got["content"]["parts"] == [{"text": "x"}] and got["finishReason"] == "MAX_TOKENS"


ODD: list[Any] = [None, True, -1, 0.5, 1e308, 2**63, 2**70, "", "\0", "x" * 5000, [], {}, [[]], [{}], [None]]
ODD += [{"a": {}}, [{"type": "text"}], {"type": "x"}, "\U0001f600", [1, "a"]]


def test_odd_values_in_every_field_are_served_or_refused() -> None:
    bodies = [
        {"contents": HELLO, name: value} for name in GenerateBody.__struct_encode_fields__ for value in ODD
    ]
    for name in GenerationConfig.__struct_encode_fields__:
        kind = {"responseMimeType": "application/json"} if "Schema" in name else {}
        bodies += [{"contents": HELLO, **config(**kind, **{name: value})} for value in ODD]
    bodies += [
        {"contents": [{"role": "model", "parts": [{name: value}]}]}
        for name in Part.__struct_encode_fields__
        for value in ODD
    ]
    for body in bodies:
        try:
            assert request(body).params
        except UsageError as error:
            assert error.message
    for value in ODD:
        for body in ({"content": value}, {"requests": value}, {"requests": [{"content": value}]}):
            for parse in (parse_embed, parse_batch):
                with contextlib.suppress(UsageError):
                    parse(sent(body))


NAMES = ["role", "parts", "text", "name", "args", "type", "items", "functionDeclarations", "functionCall"]


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
        ),
    ),
    st.sampled_from(["contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "labels"]),
)
def test_any_value_anywhere_is_served_or_refused(value: Any, name: str) -> None:
    try:
        assert request({"contents": HELLO, name: value})
    except UsageError as error:
        assert error.message
