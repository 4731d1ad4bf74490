"""Bodies, events and stamps for tests of OpenAI's formats."""

from __future__ import annotations

import json
from typing import Any

from kvasir.api.face import Sent
from kvasir.api.openai.parts import Stamp
from kvasir.chat import Delta, Event, Finished, Metrics, TokenLogprob, ToolPiece

STAMP = Stamp("x-1", 1_767_323_045)
HELLO = [{"role": "user", "content": "Hello"}]
METRICS = Metrics(n_prompt=7, n_cached=4, n_generated=3)
PLAIN: list[Event] = [Delta("He", (11,)), Delta("", (12,)), Delta("llo", (13,)), Finished("stop", METRICS)]
CALLING: list[Event] = [
    Delta("", (1,), thinking="It wants "),
    Delta("", (2,), thinking="the time."),
    Delta("One moment.", (3,)),
    Delta("", (4,), tool_calls=(ToolPiece(0, "call_1", "clock", '{"city": '),)),
    Delta("", (5,), tool_calls=(ToolPiece(0, arguments='"Bergen"}', last=True),)),
    Delta("", (6,), tool_calls=(ToolPiece(1, "call_2", "clock", "{}", last=True),)),
    Finished("tool_calls", Metrics(n_prompt=20, n_generated=6)),
]
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def sent(**body: Any) -> Sent:
    return Sent(json.dumps(body).encode())


def spell(token_id: int) -> bytes:
    return bytes((token_id,))


def logprob(token: str, value: float, *top: tuple[str, float]) -> TokenLogprob:
    return TokenLogprob(ord(token), value, tuple((ord(t), p) for t, p in top))


def streamed(reply: Any, events: list[Event]) -> list[Any]:
    """The data of the events that a reply sends."""
    raw = reply.begin() + b"".join(map(reply.line, events)) + reply.end()
    lines = [line for line in raw.decode().split("\n") if line.startswith("data: ")]
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def whole(reply: Any, events: list[Event]) -> dict[str, Any]:
    """The body of the answer that is not streamed."""
    for event in events:
        reply.take(event)
    return json.loads(reply.whole())
