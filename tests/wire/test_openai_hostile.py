"""Whatever a body holds, a parser either takes it or names what is wrong: it never breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.api.face import Sent
from kvasir.api.openai import chat, completions, decisions, embeddings, rank, responses, tokens
from kvasir.api.openai.memory import Responses
from kvasir.errors import KvasirError
from tests.wire.fake import FakeModel

PARSERS: dict[str, tuple[Callable[[Sent], Any], type[msgspec.Struct], dict[str, Any]]] = {
    "chat": (chat.parse, chat.Body, {"messages": [{"role": "user", "content": "x"}]}),
    "completions": (completions.parse, completions.Body, {"prompt": "x"}),
    "responses": (partial(responses.parse, memory=Responses()), responses.Body, {"input": "x"}),
    "embeddings": (embeddings.parse, embeddings.Body, {"input": "x"}),
    "rerank": (rank.parse_rerank, rank.RerankBody, {"query": "x", "documents": ["y"]}),
    "score": (rank.parse_score, rank.ScoreBody, {"text_1": "x", "text_2": "y"}),
    "tokenize": (tokens.parse_tokenize, tokens.TokenizeBody, {"prompt": "x"}),
    "detokenize": (tokens.parse_detokenize, tokens.DetokenizeBody, {"tokens": [1]}),
    "decisions": (decisions.parse_decisions, decisions.DecisionsBody, {"input": "x"}),
    "systemone": (decisions.parse_systemone, decisions.SystemoneBody, {"state": "x"}),
}
WORDS = [
    "type", "text", "role", "content", "function", "name", "user", "assistant", "tool", "message", "choice",
    "score", "noul", "predicate", "instructions", "criteria", "json_schema", "json_object", "schema", "auto",
    "required", "allowed_tools", "tools", "mode", "reasoning", "summary", "function_call", "arguments",
    "call_id", "function_call_output", "output", "input_text", "a\0b", "\ud7ff", "é", "", "(", "{}",
]  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 20, 2**31, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308])
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_body_breaks_a_parser(name: str, data: st.DataObject) -> None:
    parse, shape, good = PARSERS[name]
    fields = st.sampled_from([*shape.__struct_encode_fields__, "suffix", "store", "zap"])
    body = {**good, **data.draw(st.dictionaries(fields, VALUES, max_size=3))}
    try:
        asked = parse(Sent(json.dumps(body).encode()))
        if hasattr(asked, "requests"):
            asked.requests(FakeModel())
    except KvasirError as error:
        assert str(error) and "Traceback" not in str(error)


@pytest.mark.parametrize("name", PARSERS)
def test_bodies_that_are_no_object_of_json(name: str) -> None:
    for raw in (
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
    ):
        with pytest.raises(KvasirError):
            PARSERS[name][0](Sent(raw))


@pytest.mark.parametrize("depth", [50, 900, 5000])
def test_nesting_everywhere(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for name, (parse, shape, good) in PARSERS.items():
        for field in shape.__struct_encode_fields__:
            rest = json.dumps({k: v for k, v in good.items() if k != field})[1:].encode()
            raw = b'{"' + field.encode() + b'":' + deep + (b"," if len(rest) > 1 else b"") + rest
            try:
                parse(Sent(raw))
            except KvasirError as error:
                assert len(str(error)) < 2000, (name, field)
