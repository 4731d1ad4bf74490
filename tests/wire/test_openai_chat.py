"""/v1/chat/completions as JSON in and out: no server, no model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvasir.api.openai.chat import Asked, Reply, parse
from kvasir.chat import Delta, Finished, Message, Metrics, ToolCall
from kvasir.errors import Busy, UsageError
from kvasir.structured import Constraint
from tests.wire.fake import INFO, FakeModel
from tests.wire.openai_events import (
    CALLING,
    CLOCK,
    HELLO,
    PLAIN,
    STAMP,
    logprob,
    sent,
    spell,
    streamed,
    whole,
)

ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))


def asked(**body: Any) -> Asked:
    return parse(sent(model="m", **{"messages": HELLO, **body}))


def reply(**body: Any) -> Reply:
    return Reply(asked(**body), spell, STAMP)


def test_defaults_are_those_of_vllm() -> None:
    got = asked()
    p = got.params
    assert (p.temperature, p.top_p, p.top_k, p.max_tokens, p.n, p.logprobs, p.seed) == (
        1,
        1,
        0,
        None,
        1,
        None,
        None,
    )
    assert p.repeat_last_n == -1 and not got.stream and got.warnings == () and got.keep_alive_s is None
    (request,) = got.requests(FakeModel())
    assert request.messages == (Message("user", "Hello"),) and request.parse and request.think is None


def test_every_parameter_arrives() -> None:
    got = asked(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=7,
        stop="END",
        n=2,
        max_completion_tokens=9,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.2,
        logit_bias={"5": -100},
        min_tokens=2,
        stop_token_ids=[3],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=4,
        priority=3,
        cache_salt="s",
        allowed_token_ids=[1, 2],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        prompt_logprobs=1,
        chat_template_kwargs={"a": 1},
        add_generation_prompt=False,
        keep_alive="5m",
        user="u",
        truncate_prompt_tokens=-1,
    )
    p = got.params
    assert (p.temperature, p.top_p, p.top_k, p.min_p, p.seed, p.stops, p.n) == (
        0.5,
        0.9,
        5,
        0.1,
        7,
        ("END",),
        2,
    )
    assert (p.max_tokens, p.presence_penalty, p.frequency_penalty, p.repetition_penalty) == (9, 1, -1, 1.2)
    assert (p.logit_bias, p.min_tokens, p.stop_token_ids, p.ignore_eos) == ({5: -100}, 2, (3,), True)
    assert (p.logprobs, p.prompt_logprobs, p.allowed_token_ids) == (4, 1, (1, 2))
    assert p.include_stop_str_in_output and not p.skip_special_tokens
    (request,) = got.requests(FakeModel())
    assert (request.priority, request.tenant, request.truncate) == (-3, "s", True)
    assert request.template_values == {"a": 1} and not request.opens_turn
    assert got.keep_alive_s == 300 and got.warnings == ()


def test_ollamas_options_are_understood_where_nothing_else_is_said() -> None:
    got = asked(
        options={"temperature": 0.1, "num_predict": 5, "num_ctx": 64, "stop": ["x"], "seed": -1}, top_p=0.5
    )
    assert (got.params.temperature, got.params.max_tokens, got.params.top_p) == (0.1, 5, 0.5)
    assert got.max_context == 64 and got.params.stops == ("x",) and got.params.seed is None
    assert asked(options={"temperature": 0.1}, temperature=0.7).params.temperature == 0.7


def test_messages_of_every_role() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"city": "Oslo"}'}}
    got = asked(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "time?"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ]
    )
    assert got.messages == (
        Message("system", "Be brief."),
        Message("user", "What time?"),
        Message("assistant", "", "hm", (ToolCall("clock", {"city": "Oslo"}, "c1"),)),
        Message("tool", "noon", tool_name="clock", tool_call_id="c1"),
    )


def test_forms() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert asked(response_format=wanted).params.constraint.kind == "schema"
    assert asked(response_format={"type": "json_object"}).params.constraint == Constraint("json")
    assert asked(response_format={"type": "text"}).params.constraint is None
    assert asked(structured_outputs={"regex": "a+"}).params.constraint == Constraint("regex", "a+")
    assert asked(guided_choice=["a", "b"]).params.constraint.choices == ["a", "b"]
    assert asked(guided_json=schema).params.constraint.kind == "schema"


def test_tools() -> None:
    got = asked(tools=[CLOCK], tool_choice="required", parallel_tool_calls=False)
    (request,) = got.requests(FakeModel(info=ABLE))
    assert request.tools == (CLOCK,) and request.tool_choice == "required" and not request.parallel_tool_calls
    named = {"type": "function", "function": {"name": "clock"}}
    assert asked(tools=[CLOCK], tool_choice=named).tools.choice == "clock"
    other = {"type": "function", "function": {"name": "other"}}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    got = asked(tools=[CLOCK, other], tool_choice=some)
    assert got.tools.tools == (CLOCK,) and got.tools.choice == "required"
    with pytest.raises(UsageError, match="does not support tools"):
        asked(tools=[CLOCK]).requests(FakeModel())
    assert asked(tools=[CLOCK], tool_choice="none").requests(FakeModel())[0].tools == ()


def test_how_hard_to_think() -> None:
    thinker = FakeModel(info=ABLE)
    for effort, think in {
        "none": False,
        "minimal": "low",
        "high": "high",
        "xhigh": "max",
        None: None,
    }.items():
        assert asked(reasoning_effort=effort).requests(thinker)[0].think == think
    assert asked(reasoning={"effort": "low"}).requests(thinker)[0].think == "low"
    assert asked(think=False).requests(thinker)[0].think is False
    switched = asked(chat_template_kwargs={"enable_thinking": False, "a": 1})
    assert switched.requests(thinker)[0].think is False and switched.template_values == {"a": 1}
    assert switched.requests(FakeModel())[0].think is None
    assert asked(reasoning_effort="none").requests(FakeModel())[0].think is None
    with pytest.raises(UsageError, match="reasoning_effort: this model does not think"):
        asked(reasoning_effort="low").requests(FakeModel())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages must hold"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role must be one of"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be of type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text must be",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id is required"),
        ({"temperature": -1}, "temperature must be between"),
        ({"temperature": "hot"}, "temperature must be of type number"),
        ({"n": 0}, "n must be between 1 and 128"),
        ({"n": 129}, "n must be between 1 and 128"),
        ({"max_tokens": 0}, "max_tokens must be between"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens and max_completion_tokens differ"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be between"),
        ({"top_logprobs": 2}, "top_logprobs is only told with logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias must have token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias: 1: 101.0"),
        ({"stop": [""]}, "stop must hold"),
        ({"stop": ["x"] * 65}, "stop must hold"),
        ({"stream_options": {"include_usage": True}}, "stream_options is only for a stream"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs is not told in a stream"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format: the JSON schema",
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "response_format and guided_regex",
        ),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag is not"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type must be function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name must be"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice is 'x'",
        ),
        ({"tool_choice": "required"}, "tool_choice is required, and there are no tools"),
        ({"tool_choice": "always"}, "tool_choice must be"),
        ({"tool_choice": "function"}, "tool_choice must be"),
        ({"tool_choice": "allowed_tools"}, "tool_choice must be"),
        ({"tool_choice": {"type": "allowed_tools", "mode": {}}}, "tool_choice.allowed_tools.tools must be"),
        ({"reasoning_effort": "hard"}, "reasoning_effort must be one of"),
        ({"functions": [{"name": "f"}]}, "functions is not supported"),
        ({"modalities": ["audio"]}, "modalities is not supported"),
        ({"store": True}, "store is not supported"),
        ({"use_beam_search": True}, "use_beam_search is not supported"),
        ({"bad_words": ["x"]}, "bad_words is not supported"),
        ({"chat_template": "{{ x }}"}, "chat_template is not supported"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message and"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens must be -1"),
        ({"options": {"zap": 1}}, "options.zap is unknown"),
        ({"allowed_token_ids": list(range(2000))}, "allowed_token_ids must hold at most"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(**body)
    assert message in str(caught.value)


def test_harmless_values_pass_and_unknown_fields_are_told() -> None:
    got = asked(
        modalities=["text"],
        store=False,
        suffix="",
        length_penalty=1.0,
        metadata={"a": "b"},
        zap=1,
        verbosity="low",
    )
    assert got.warnings == ("unknown field 'zap'", "verbosity has no effect")


HEAD = {"id": "x-1", "created": 1_767_323_045, "model": "m", "system_fingerprint": "kvasir"}
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], **more}


def test_a_stream() -> None:
    assert streamed(reply(stream=True), PLAIN) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "He"}),
        chunk({"content": "llo"}),
        chunk({}, "stop"),
        "[DONE]",
    ]


def test_a_stream_with_its_usage() -> None:
    chunks = streamed(reply(stream=True, stream_options={"include_usage": True}), PLAIN)
    assert all(c["usage"] is None for c in chunks[:-2])
    assert chunks[-2] == {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    chunks = streamed(reply(stream=True, stream_options={"continuous_usage_stats": True}), PLAIN)
    assert [c["usage"]["completion_tokens"] for c in chunks[:-1]] == [0, 1, 3, 3]


def test_a_whole_answer() -> None:
    assert whole(reply(), PLAIN) == {
        **HEAD,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": USAGE,
    }


def test_thoughts_and_calls_in_a_stream() -> None:
    deltas = [c["choices"][0]["delta"] for c in streamed(reply(stream=True), CALLING)[1:-1]]
    assert deltas == [
        {"reasoning": "It wants ", "reasoning_content": "It wants "},
        {"reasoning": "the time.", "reasoning_content": "the time."},
        {"content": "One moment."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "clock", "arguments": '{"city": '},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Bergen"}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call_2",
                    "type": "function",
                    "function": {"name": "clock", "arguments": "{}"},
                }
            ]
        },
        {},
    ]
    assert streamed(reply(stream=True), CALLING)[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_thoughts_and_calls_in_a_whole_answer() -> None:
    body = whole(reply(), CALLING)
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "One moment.",
        "refusal": None,
        "annotations": [],
        "reasoning": "It wants the time.",
        "reasoning_content": "It wants the time.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "clock", "arguments": '{"city": "Bergen"}'},
            },
            {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    only_calls = whole(reply(), CALLING[3:])["choices"][0]["message"]
    assert only_calls["content"] is None and len(only_calls["tool_calls"]) == 2
    assert "reasoning" not in whole(reply(include_reasoning=False), CALLING)["choices"][0]["message"]


def test_log_probabilities() -> None:
    events = [
        Delta("a", (97,), (logprob("a", -0.5, ("a", -0.5), ("b", -1.0)),)),
        Finished("length", Metrics(1)),
    ]
    told = [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -1.0, "bytes": [98]},
            ],
        }
    ]
    wish = {"logprobs": True, "top_logprobs": 2}
    assert whole(reply(**wish), events)["choices"][0]["logprobs"] == {"content": told, "refusal": None}
    chunks = streamed(reply(stream=True, **wish), events)
    assert chunks[1]["choices"][0]["logprobs"] == {"content": told, "refusal": None}


def test_several_answers_share_their_prompt() -> None:
    events = [
        Delta("a", (1,)),
        Delta("b", (2,), index=1),
        Finished("stop", Metrics(n_prompt=7, n_generated=1)),
    ]
    events.append(Finished("length", Metrics(n_prompt=7, n_generated=2), index=1))
    body = whole(reply(n=2), events)
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (7, 3)
    roles = [c["choices"][0]["index"] for c in streamed(reply(n=2, stream=True), events)[:2]]
    assert roles == [0, 1]


def test_what_vllm_adds() -> None:
    entries = (None, logprob("b", -1.5, ("a", -0.5), ("b", -1.5)))
    end = Finished("stop", Metrics(2), "END", prompt_token_ids=(97, 98), prompt_logprobs=entries)
    body = whole(reply(prompt_logprobs=2, return_token_ids=True), [Delta("x", (120,)), end])
    assert body["choices"][0]["stop_reason"] == "END" and body["choices"][0]["token_ids"] == [120]
    assert body["prompt_token_ids"] == [97, 98]
    assert body["prompt_logprobs"] == [
        None,
        {
            "98": {"logprob": -1.5, "rank": 2, "decoded_token": "b"},
            "97": {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
        },
    ]
    begun = [*HELLO, {"role": "assistant", "content": "He"}]
    echoing = {
        "messages": begun,
        "continue_final_message": True,
        "echo": True,
        "add_generation_prompt": False,
    }
    assert whole(reply(**echoing), PLAIN[2:])["choices"][0]["message"]["content"] == "Hello"
    assert streamed(reply(**echoing, stream=True), PLAIN[2:])[0]["choices"][0]["delta"]["content"] == "He"


def test_a_stream_that_breaks() -> None:
    raw = reply(stream=True).broken(Busy("the answer was cut off", hint="ask again"))
    assert raw == (
        b'data: {"error":{"message":"the answer was cut off (ask again)","type":"overloaded_error",'
        b'"param":null,"code":"overloaded"}}\n\ndata: [DONE]\n\n'
    )
