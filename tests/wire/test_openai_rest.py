"""Embeddings, tokens, scores, decisions: JSON in and out, with a scripted model."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from math import log
from typing import Any

import pytest

from kvasir.api.openai import decisions, embeddings, rank, tokens
from kvasir.api.openai.errors import error_body
from kvasir.api.openai.labels import Reader
from kvasir.api.openai.models import card
from kvasir.chat import Delta, Finished, Metrics, TokenLogprob
from kvasir.errors import UsageError
from tests.wire.fake import INFO, FakeModel
from tests.wire.openai_events import STAMP, sent, whole

ENCODER = FakeModel(info=replace(INFO, capabilities=("embedding",)))


def embedded(**body: Any) -> dict[str, Any]:
    return json.loads(embeddings.parse(sent(model="m", **body)).answer(ENCODER, 0))


def test_embeddings_have_length_one() -> None:
    body = embedded(input=["", "abcd"])
    assert [row["embedding"] for row in body["data"]] == [
        [0, 0.6, 0.8],
        pytest.approx([4 / 41**0.5, 3 / 41**0.5, 4 / 41**0.5]),
    ]
    assert [row["index"] for row in body["data"]] == [0, 1] and body["object"] == "list"
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4} and body["model"] == "m"


def test_embeddings_cut_and_in_base64() -> None:
    (row,) = embedded(input=[1, 2, 3, 4], dimensions=2)["data"]
    assert row["embedding"] == pytest.approx([0.8, 0.6])
    (row,) = embedded(input=[[1, 2, 3, 4]], encoding_format="base64")["data"]
    assert struct.unpack("<3f", base64.b64decode(row["embedding"])) == pytest.approx(
        [4 / 41**0.5, 3 / 41**0.5, 4 / 41**0.5]
    )
    (row,) = embedded(input="abcd", normalize=False)["data"]
    assert row["embedding"] == [4, 3, 4]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input must be"),
        ({"input": []}, "input must be"),
        ({"input": "a", "dimensions": 0}, "dimensions must be at least 1"),
        ({"input": "a", "dimensions": 4}, "dimensions must be between 1 and 3"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format must be"),
        ({"input": "x" * 600}, "600 tokens and the context holds 512"),
    ],
)
def test_embeddings_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        embedded(**body)
    assert message in str(caught.value)
    assert embedded(input="x" * 600, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 512


def test_tokens_and_their_text() -> None:
    model = FakeModel()
    body = json.loads(tokens.parse_tokenize(sent(prompt="ab", return_token_strs=True)).answer(model, 0))
    assert body == {"count": 2, "max_model_len": 512, "tokens": [97, 98], "token_strs": ["a", "b"]}
    chat = tokens.parse_tokenize(
        sent(messages=[{"role": "user", "content": "ab"}], add_generation_prompt=False)
    )
    assert chat.request.messages[0].content == "ab" and not chat.request.opens_turn
    assert json.loads(tokens.parse_detokenize(sent(tokens=[97, 98])).answer(model, 0)) == {"prompt": "ab"}
    assert json.loads(tokens.parse_detokenize(sent(tokens=[])).answer(model, 0)) == {"prompt": ""}
    for parse, bad in (
        (tokens.parse_tokenize, {}),
        (tokens.parse_tokenize, {"prompt": "a", "messages": []}),
        (tokens.parse_detokenize, {}),
        (tokens.parse_detokenize, {"tokens": [-1]}),
    ):
        with pytest.raises(UsageError):
            parse(sent(**bad))


def read(asked: Any, *shares: dict[str, float]) -> dict[str, Any]:
    """The answer when the questions' labels have these probabilities, of the whole vocabulary's."""
    labels = [tuple(ord(label[0]) for label in each) for each in shares]
    events: list[Any] = []
    for i, each in enumerate(shares):
        top = tuple((ord(label[0]), log(p)) for label, p in sorted(each.items(), key=lambda e: -e[1]))
        events.append(Delta("", (top[0][0],), (TokenLogprob(top[0][0], top[0][1], top),), i))
        events.append(
            Finished("length", Metrics(n_prompt=10, n_cached=8 if i else 0, n_generated=1), index=i)
        )
    kind = rank.Reply if isinstance(asked, rank.Asked) else decisions.Reply
    reply = kind(asked, STAMP, Reader(labels)) if kind is rank.Reply else kind(asked, Reader(labels), STAMP)
    return whole(reply, events)


def test_texts_are_ranked_by_how_likely_yes_is() -> None:
    asked = rank.parse_rerank(sent(model="m", query="q", documents=["a", {"text": "b"}, "c"], top_n=2))
    requests = asked.requests(FakeModel())
    assert len(requests) == 3 and "Query: q" in requests[1].messages[0].content
    assert requests[1].params.max_tokens == 1 and requests[1].params.logprob_token_ids == (121, 110)
    body = read(asked, {"y": 0.1, "n": 0.3}, {"y": 0.3, "n": 0.1}, {"y": 0.2, "n": 0.2})
    assert [(r["index"], r["relevance_score"], r["document"]) for r in body["results"]] == [
        (1, pytest.approx(0.75), {"text": "b"}),
        (2, pytest.approx(0.5), {"text": "c"}),
    ]
    assert body["usage"] == {"prompt_tokens": 30, "total_tokens": 30} and body["id"] == "x-1"


def test_texts_are_scored_by_their_vectors() -> None:
    for body in (
        {"text_1": "abcd", "text_2": ["abcd", "ab"]},
        {"queries": ["abcd", "abcd"], "documents": ["abcd", "ab"]},
        {
            "data_1": "abcd",
            "data_2": {"content": [{"type": "text", "text": "abcd"}, {"type": "text", "text": "ab"}]},
        },
    ):
        asked = rank.parse_score(sent(model="m", **body))
        assert asked.requests(ENCODER) == ()
        found = json.loads(asked.reply(ENCODER, 0).whole())
        assert [row["score"] for row in found["data"]] == pytest.approx([1, 33 / (41 * 29) ** 0.5])
        assert found["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize(
    ("parse", "body", "message"),
    [
        (rank.parse_rerank, {"documents": ["a"]}, "query is required"),
        (rank.parse_rerank, {"query": "q"}, "documents is required"),
        (rank.parse_rerank, {"query": "q", "documents": []}, "documents must hold at least one"),
        (rank.parse_rerank, {"query": "q", "documents": [5]}, "documents[0] must be a text"),
        (rank.parse_rerank, {"query": "q", "documents": ["a"] * 1025}, "documents must be at most 1024"),
        (rank.parse_score, {"text_1": "a"}, "text_1 and text_2 are required"),
        (rank.parse_score, {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 must hold one text"),
        (decisions.parse_decisions, {"questions": []}, "input is required"),
        (decisions.parse_decisions, {"input": "x", "questions": []}, "questions must hold 1 to 400"),
        (
            decisions.parse_decisions,
            {"input": "x", "questions": [{"type": "poem"}]},
            "questions[0].type must be",
        ),
        (
            decisions.parse_decisions,
            {"input": "x", "questions": [{"type": "predicate"}]},
            "questions[0].instructions",
        ),
        (decisions.parse_systemone, {"questions": {}}, "state is required"),
        (
            decisions.parse_systemone,
            {
                "state": "x",
                "questions": {"q": {"type": "choice", "instructions": "i", "criteria": {"a": None}}},
            },
            "questions.q.criteria must hold 2 to 62 options",
        ),
    ],
)
def test_what_is_refused_is_named(parse: Any, body: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(sent(**body))
    assert message in str(caught.value)


def test_decisions_in_a_list() -> None:
    asked = decisions.parse_decisions(
        sent(
            model="m",
            input=[{"role": "user", "content": "My port is dead."}],
            questions=[
                {"type": "predicate", "instructions": "Is it broken?"},
                {
                    "type": "choice",
                    "name": "who",
                    "instructions": "Who?",
                    "choices": [{"value": "net", "description": "cables"}, {"value": True}],
                },
                {
                    "type": "score",
                    "instructions": "How bad?",
                    "levels": [{"label": "low"}, {"label": "mid"}, {"label": "high"}],
                },
            ],
        )
    )
    requests = asked.requests(FakeModel())
    text = requests[1].messages[0].content
    assert text.startswith("user: My port is dead.\n\n---\nWho?\n\nA. net: cables\nB. true\n\nAnswer")
    assert requests[2].params.logprob_token_ids == (65, 66, 67)
    body = read(asked, {"A": 0.6, "B": 0.2}, {"A": 0.1, "B": 0.3}, {"A": 0.25, "B": 0.25, "C": 0.5})
    yes, who, bad = body["answers"]
    assert yes == {"type": "predicate", "name": None, "probability": pytest.approx(0.75)}
    assert who["name"] == "who" and who["choice"] is True and who["confidence"] == pytest.approx(0.5)
    assert who["probabilities"] == [
        {"value": "net", "probability": pytest.approx(0.25)},
        {"value": True, "probability": pytest.approx(0.75)},
    ]
    assert bad["score"] == pytest.approx(1.25) and bad["probabilities"][2]["label"] == "high"
    assert body["usage"]["input_tokens"] == 30 and body["usage"]["output_tokens"] == 0
    assert body["usage"]["input_tokens_details"] == {"cached_tokens": 16, "cache_write_tokens": 14}


def test_decisions_by_name() -> None:
    asked = decisions.parse_systemone(
        sent(
            model="m",
            state={"port": "down"},
            questions={
                "broken": {"type": "noul", "instructions": "Is it?", "criteria": {"true": "it is"}},
                "who": {"type": "choice", "instructions": "Who?", "criteria": {"net": "cables", "sys": None}},
                "bad": {"type": "score", "instructions": "How bad?", "criteria": ["low", "high"]},
            },
        )
    )
    text = asked.requests(FakeModel())[0].messages[0].content
    assert '"port": "down"' in text and "A. yes: it is\nB. no" in text
    body = read(asked, {"A": 0.2, "B": 0.2}, {"A": 0.6, "B": 0.2}, {"A": 0.25, "B": 0.75})
    assert body["answers"] == {
        "broken": {"type": "noul", "noul": pytest.approx(0.5)},
        "who": {
            "type": "choice",
            "choice": "net",
            "probabilities": {"net": pytest.approx(0.75), "sys": pytest.approx(0.25)},
            "confidence": pytest.approx(0.5),
        },
        "bad": {
            "type": "score",
            "score": pytest.approx(0.75),
            "legend": {"0": "low", "1": "high"},
            "probabilities": {"0": pytest.approx(0.25), "1": pytest.approx(0.75)},
            "confidence": pytest.approx(0.5),
        },
    }
    assert body["diagnostics"]["broken"] == {"label_mass": pytest.approx(0.4), "argmax_is_label": True}


def test_a_model_without_a_template_is_asked_in_plain_text() -> None:
    asked = decisions.parse_systemone(sent(state="s", questions={"q": {"type": "noul", "instructions": "i"}}))
    (request,) = asked.requests(FakeModel(has_template=False, prompter=Spaced()))
    assert isinstance(request.prompt, str) and request.prompt.endswith("Answer:")


class Spaced:
    """A token a character, but for the space before a label."""

    def tokens(self, request: Any, limit: int) -> tuple[list[int], int]:
        return [ord(c) for c in request.prompt.lstrip()], 0


def test_a_model_card() -> None:
    found = card(INFO, "m")
    assert (found["id"], found["object"], found["root"], found["max_model_len"]) == (
        "m",
        "model",
        "mead:latest",
        512,
    )
    assert found["created"] == 1_767_312_000 and "/secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("kind", "message", "param", "code"),
    [
        ("invalid", "temperature must be a number", "temperature", None),
        ("invalid", "messages[0].role must be one of", "messages[0].role", None),
        ("invalid", "logit_bias: token id 5 is not in the vocabulary", "logit_bias", None),
        ("invalid", "the prompt has 5 tokens", None, None),
        ("invalid", "this model is tired", None, None),
        ("not_found", "model 'x' not found", "model", "model_not_found"),
        ("not_found", "not found", None, None),
        ("limited", "too many", None, "rate_limit_exceeded"),
    ],
)
def test_errors_name_the_field(kind: str, message: str, param: str | None, code: str | None) -> None:
    error = json.loads(error_body(400, kind, message))["error"]
    assert (error["message"], error["param"], error["code"]) == (message, param, code)
