"""/v1/completions as JSON in and out: no server, no model."""

from __future__ import annotations

from typing import Any

import pytest

from kvasir.api.openai.completions import Asked, Reply, parse
from kvasir.chat import Delta, Finished, Metrics
from kvasir.errors import UsageError
from tests.wire.fake import FakeModel
from tests.wire.openai_events import PLAIN, STAMP, logprob, sent, spell, streamed, whole


def asked(**body: Any) -> Asked:
    return parse(sent(model="m", **{"prompt": "Hi", **body}))


def reply(echoed: tuple[str, ...] = (), **body: Any) -> Reply:
    return Reply(asked(**body), echoed, spell, STAMP)


HEAD = {"id": "x-1", "object": "text_completion", "created": 1_767_323_045, "model": "m"}
HEAD["system_fingerprint"] = "kvasir"
SCORED = Finished(
    "length",
    Metrics(n_prompt=2, n_generated=1),
    prompt_token_ids=(72, 105),
    prompt_logprobs=(None, logprob("i", -1.5, ("o", -0.5))),
)
AFTER = Delta("!", (33,), (logprob("!", -0.25, ("!", -0.25)),))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hi", ("Hi",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_prompts_of_every_kind(prompt: Any, prompts: tuple[Any, ...]) -> None:
    requests = asked(prompt=prompt).requests(FakeModel())
    assert tuple(request.prompt for request in requests) == prompts
    assert requests[0].params.max_tokens == 16 and not requests[0].parse


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": None}, "prompt must be"),
        ({"prompt": []}, "prompt must be"),
        ({"prompt": [[]]}, "prompt[0] must hold token ids"),
        ({"prompt": ["a", 1]}, "prompt must hold texts alone"),
        ({"prompt": [-1]}, "prompt must hold token ids"),
        ({"prompt": [2**40]}, "prompt must hold token ids"),
        ({"prompt": ["x"] * 513}, "prompt must hold at most"),
        ({"prompt": ["x"] * 512, "n": 3}, "n is 3 for 512 prompts"),
        ({"suffix": "x"}, "suffix is not supported"),
        ({"best_of": 3}, "best_of must be n"),
        ({"logprobs": 21}, "logprobs must be between"),
        ({"max_tokens": -1}, "max_tokens must be between"),
        ({"echo": True, "logprobs": 1, "stream": True, "n": 2}, "echo with logprobs"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(**body)
    assert message in str(caught.value)


def test_a_stream() -> None:
    chunks = streamed(reply(stream=True, stream_options={"include_usage": True}), PLAIN)
    assert [c["choices"][0]["text"] for c in chunks[:3]] == ["He", "llo", ""]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:3]] == [None, None, "stop"]
    assert chunks[3]["choices"] == [] and chunks[3]["usage"]["total_tokens"] == 10 and chunks[4] == "[DONE]"
    assert all({k: c[k] for k in HEAD} == HEAD for c in chunks[:4])


def test_a_whole_answer() -> None:
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    body = whole(reply(), PLAIN)
    assert {k: body[k] for k in (*HEAD, "choices")} == {**HEAD, "choices": [choice]}


def test_answers_of_several_prompts_are_counted_through() -> None:
    ends = [Finished("stop", Metrics(n_prompt=5 + i // 2, n_generated=1), index=i) for i in range(4)]
    events = [Delta("abcd"[i], (i,), index=i) for i in (2, 0, 3, 1)] + ends
    body = whole(reply(("P", "Q"), prompt=["P", "Q"], n=2, echo=True), events)
    assert [c["text"] for c in body["choices"]] == ["Pa", "Pb", "Qc", "Qd"]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (11, 4)


def test_log_probabilities_side_by_side() -> None:
    told = whole(reply(logprobs=1), [AFTER, AFTER, SCORED])["choices"][0]["logprobs"]
    assert told == {
        "tokens": ["!", "!"],
        "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{"!": -0.25}, {"!": -0.25}],
        "text_offset": [0, 1],
    }
    chunks = streamed(reply(logprobs=1, stream=True), [AFTER, AFTER, SCORED])
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks[:2]] == [[0], [1]]


def test_an_echo_with_the_prompts_own() -> None:
    wish: dict[str, Any] = {"logprobs": 1, "echo": True}
    assert asked(**wish).params.prompt_logprobs == 1
    want = {
        "tokens": ["H", "i", "!"],
        "token_logprobs": [None, -1.5, -0.25],
        "top_logprobs": [None, {"o": -0.5, "i": -1.5}, {"!": -0.25}],
        "text_offset": [0, 1, 2],
    }
    (choice,) = whole(reply(("Hi",), **wish), [AFTER, SCORED])["choices"]
    assert choice["text"] == "Hi!" and choice["logprobs"] == want and "prompt_logprobs" not in choice
    (chunk, done) = streamed(reply(("Hi",), **wish, stream=True), [AFTER, SCORED])
    assert chunk["choices"][0]["text"] == "Hi!" and chunk["choices"][0]["logprobs"] == want
    assert done == "[DONE]"


def test_no_token_asked_for_none_given() -> None:
    got = asked(max_tokens=0, echo=True, logprobs=0)
    assert got.only_prompt and got.params.max_tokens == 1
    body = whole(reply(("Hi",), max_tokens=0, echo=True, logprobs=0), [AFTER, SCORED])
    (choice,) = body["choices"]
    assert choice["text"] == "Hi" and choice["logprobs"]["tokens"] == ["H", "i"]
    assert choice["finish_reason"] == "length" and body["usage"]["completion_tokens"] == 0


def test_what_vllm_adds() -> None:
    body = whole(reply(prompt_logprobs=1, return_token_ids=True), [AFTER, SCORED])
    (choice,) = body["choices"]
    assert choice["token_ids"] == [33] and choice["prompt_token_ids"] == [72, 105]
    assert choice["prompt_logprobs"][1]["111"] == {"logprob": -0.5, "rank": 1, "decoded_token": "o"}
