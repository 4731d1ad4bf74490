"""LiteLLM, unmodified, over its main flows by each of its providers: `python litellm_client.py ADDRESS`."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

QUESTION = [{"role": "user", "content": "What is DNS?"}]
WHEN = [{"role": "user", "content": "What time is it in Bergen?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": CITY}}
PORT = {"type": "object", "properties": {"port": {"type": "integer"}}, "required": ["port"]}
FORM = {"type": "json_schema", "json_schema": {"name": "host", "schema": PORT, "strict": True}}


def raises(kind: type[Exception], says: str, **wishes: Any) -> None:
    try:
        litellm.completion(**wishes)
    except kind as error:
        assert says in str(error), error
    else:
        raise AssertionError(f"{wishes['model']} answered instead of {kind.__name__}")


def flows(name: str, base: str, forces: bool) -> None:
    """The flows of one provider.  `forces`: it passes tool_choice on."""
    common: dict[str, Any] = {"model": name, "api_base": base, "api_key": "none", "temperature": 0}
    asked: dict[str, Any] = {**common, "messages": QUESTION, "max_tokens": 40}
    whole = litellm.completion(**asked)
    said = whole.choices[0].message.content
    assert said and whole.choices[0].finish_reason == "stop", whole
    assert whole.usage.prompt_tokens > 0 and 0 < whole.usage.completion_tokens <= 40
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    assert "".join(pieces) == said and len(pieces) > 3, pieces
    if not name.startswith("ollama/"):  # there LiteLLM always says "stop", and has no tools
        assert litellm.completion(**{**asked, "max_tokens": 2}).choices[0].finish_reason == "length"
        tools: dict[str, Any] = {**common, "messages": WHEN, "tools": [CLOCK]}
        tools |= {"tool_choice": "required"} if forces else {}
        (call,) = litellm.completion(**tools).choices[0].message.tool_calls
        assert isinstance(json.loads(call.function.arguments), dict)
        assert not forces or call.function.name == "clock"
        chunks = list(litellm.completion(**tools, stream=True))
        rebuilt = litellm.stream_chunk_builder(chunks, messages=WHEN).choices[0].message.tool_calls
        assert [(c.function.name, c.function.arguments) for c in rebuilt] == [
            (call.function.name, call.function.arguments)
        ]

    held = litellm.completion(**common, messages=QUESTION, response_format=FORM, max_tokens=60)
    found = json.loads(held.choices[0].message.content)
    assert isinstance(found, dict) and (name.startswith("gemini/") or isinstance(found["port"], int))
    nothing = name.replace("mead", "nothing")
    raises(litellm.NotFoundError, "not found", **{**asked, "model": nothing})
    raises(litellm.BadRequestError, "temperature", **{**asked, "temperature": -1})


def main() -> None:
    address = sys.argv[1]
    flows("openai/mead", f"{address}/v1", forces=True)
    flows("anthropic/mead", address, forces=True)
    flows("gemini/mead", f"{address}/v1beta", forces=True)
    flows("ollama_chat/mead", address, forces=False)
    flows("ollama/mead", address, forces=False)
    print("all is well")


if __name__ == "__main__":
    main()
