"""Parameters of a model made of another apply in every protocol, where a request says nothing of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kvasir.api.anthropic.request import parse_messages
from kvasir.api.face import Asked, Sent
from kvasir.api.gemini.request import parse_generate
from kvasir.api.openai import chat, completions, responses
from kvasir.api.openai.memory import Responses
from kvasir.chat import ChatRequest
from kvasir.store.made import Made
from tests.wire.fake import INFO, FakeModel

OWN = {"temperature": 0.25, "top_k": 7, "num_predict": 5, "stop": ["END"], "seed": 3, "num_ctx": 64}
MADE = FakeModel(info=replace(INFO, made=Made("mead", parameters=OWN)))
HELLO = [{"role": "user", "content": "Hello"}]


def request(protocol: str, model: FakeModel, **said: Any) -> ChatRequest:
    """What a body that says so becomes; names are SamplingParams'."""
    asked: Asked
    if protocol == "gemini":
        names = {"temperature": "temperature", "max_tokens": "maxOutputTokens", "stop": "stopSequences"}
        config = {names[name]: value for name, value in said.items()}
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
        raw = json.dumps({**body, "generationConfig": config}).encode()
        asked = parse_generate(Sent(raw, {"model": "m"}))
    elif protocol == "anthropic":
        names = {"stop": "stop_sequences"}
        body = {"model": "m", "messages": HELLO, "max_tokens": 9}
        body |= {names.get(name, name): value for name, value in said.items()}
        asked = parse_messages(Sent(json.dumps(body).encode()))
    elif protocol == "responses":
        names = {"max_tokens": "max_output_tokens"}
        body = {"model": "m", "input": "Hello", **{names.get(k, k): v for k, v in said.items()}}
        asked = responses.parse(Sent(json.dumps(body).encode()), Responses())
    else:
        begin = {"messages": HELLO} if protocol == "chat" else {"prompt": "Hello"}
        parse = chat.parse if protocol == "chat" else completions.parse
        asked = parse(Sent(json.dumps({"model": "m", **begin, **said}).encode()))
    (made,) = asked.requests(model)
    return made


@pytest.mark.parametrize("protocol", ["chat", "completions", "responses", "anthropic", "gemini"])
def test_what_a_request_says_wins_and_the_rest_is_the_models(protocol: str) -> None:
    silent = request(protocol, MADE)
    params = silent.params
    assert (params.temperature, params.top_k, params.seed, params.stops) == (0.25, 7, 3, ("END",))
    assert params.max_tokens == (9 if protocol == "anthropic" else 5)  # Anthropic's bodies always say it
    assert silent.max_context == 64
    loud = request(protocol, MADE, temperature=1, max_tokens=8, stop=["X"]).params
    assert (loud.temperature, loud.max_tokens, loud.stops, loud.top_k) == (1, 8, ("X",), 7)
    plain = request(protocol, FakeModel()).params
    assert plain.temperature == 1 and plain.stops == () and plain.seed is None
