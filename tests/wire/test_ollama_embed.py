"""Ollama's embed and embeddings: bodies, numbers, and a real encoder behind a real server."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from kvasir.api.ollama_embed import parse_embed, parse_embeddings
from kvasir.errors import UsageError
from kvasir.runner.model import Model
from tests.wire.fake import INFO, FakeModel
from tests.wire.real import encoder, real_server

ENCODER = FakeModel(info=replace(INFO, capabilities=("embedding",)))


def asked(body: dict):
    return parse_embed(json.dumps({"model": "m", **body}).encode())


def answer(body: dict, load_s: float = 0.0) -> dict:
    return json.loads(asked(body).answer(ENCODER, load_s))


def test_one_text_or_many_normalized() -> None:
    # The fake gives [length, 3, 4].
    got = answer({"input": "x" * 12}, load_s=0.5)
    assert got["embeddings"] == [[12 / 13, 3 / 13, 4 / 13]] and got["model"] == "m"
    assert got["prompt_eval_count"] == 12 and got["load_duration"] == 500_000_000
    assert got["total_duration"] >= got["load_duration"] and "truncated_count" not in got
    assert len(answer({"input": ["a", "b", "c"]})["embeddings"]) == 3
    for nothing in ({}, {"input": None}, {"input": ""}, {"input": []}):
        assert answer(nothing)["embeddings"] == []


def test_dimensions_are_cut_and_normalized_again() -> None:
    assert answer({"input": "abcd", "dimensions": 2})["embeddings"] == [[0.8, 0.6]]
    with pytest.raises(UsageError, match="dimensions must be at most 3"):
        answer({"input": "abcd", "dimensions": 4})
    with pytest.raises(UsageError, match="dimensions must be at least 1"):
        asked({"input": "a", "dimensions": -1})


def test_what_is_too_long_is_cut_unless_told_otherwise() -> None:
    got = answer({"input": ["x" * 600, "y"]})
    assert (got["prompt_eval_count"], got["truncated_count"]) == (513, 88)
    with pytest.raises(UsageError, match="600 tokens and the context holds 512"):
        answer({"input": "x" * 600, "truncate": False})


def test_the_older_endpoint_gives_numbers_as_they_are() -> None:
    got = parse_embeddings(b'{"model": "m", "prompt": "abc", "keep_alive": "1m"}')
    assert json.loads(got.answer(ENCODER, 0.0)) == {"embedding": [3.0, 3.0, 4.0]} and got.keep_alive_s == 60
    assert json.loads(parse_embeddings(b'{"model": "m"}').answer(ENCODER, 0.0)) == {"embedding": []}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": 5}, "input must be of type string or array of strings, got a number"),
        ({"input": ["a", None]}, r"input\[1\] must be of type string, got null"),
        ({"input": ["a"] * 10_001}, "10,001 texts"),
        ({"model": ""}, "model is required"),
        ({"truncate": "yes"}, "truncate must be of type boolean"),
        ({"keep_alive": "5"}, "keep_alive"),
        ({"options": {"num_ctx": "big"}}, 'option "num_ctx"'),
    ],
)
def test_ill_typed_fields_are_named(body: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        asked(body)


def test_options_without_effect_are_told() -> None:
    got = asked({"input": "a", "options": {"temperature": 0}, "zap": 1})
    assert got.warnings == ("unknown field 'zap'", "option temperature has no effect on embeddings")


def test_a_real_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVASIR_MODELS", str(tmp_path))
    encoder(tmp_path / "tiny-embed")
    here = Model.load(str(tmp_path / "tiny-embed"), threads=1)
    plain = here.embed(["a b"])[0]
    here.close()
    with real_server() as url:
        got = requests.post(
            f"{url}/api/embed", json={"model": "tiny-embed", "input": ["a b", "b a b"]}
        ).json()
        one, other = got["embeddings"]
        length = math.sqrt(sum(v * v for v in plain))
        assert one == pytest.approx([v / length for v in plain]) and len(other) == 32 and one != other
        assert math.isclose(sum(v * v for v in other), 1, rel_tol=1e-6) and got["prompt_eval_count"] == 5
        old = requests.post(f"{url}/api/embeddings", json={"model": "tiny-embed", "prompt": "a b"}).json()
        assert old["embedding"] == plain
        long = {"model": "tiny-embed", "input": "a " * 100}
        assert requests.post(f"{url}/api/embed", json=long).json()["truncated_count"] == 36
        refused = requests.post(f"{url}/api/embed", json={**long, "truncate": False})
        assert refused.status_code == 400 and "100 tokens and the context holds 64" in refused.json()["error"]
        wrong = requests.post(f"{url}/api/embed", json={"model": "mead", "input": "x"})
        assert wrong.status_code == 400 and "does not support embeddings" in wrong.json()["error"]
