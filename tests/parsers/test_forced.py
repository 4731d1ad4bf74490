"""An answer that must call a tool does so, whatever the logits say, and its arguments fit the schema."""

from __future__ import annotations

import json
import random
from functools import cache

import jsonschema
import pytest

from kvasir.chat import ChatRequest, Delta, Message
from kvasir.errors import UsageError
from kvasir.grammar.compile import Grammars
from kvasir.grammar.tools import tool_constraint
from kvasir.parsers.answer import Family
from kvasir.parsers.families import family_of
from kvasir.parsers.parts import tools_of
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from kvasir.structured import Constraint, StructuredOutputsParams
from kvasir.text.tokenizer import Tokenizer
from kvasir.text.vocab import byte_alphabet
from tests.parsers.taken import NOW, WEATHER, taken

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "kind": {"type": "string", "enum": ["file", "folder {x}"]},
        "lines": {"type": "integer", "minimum": 0, "maximum": 99},
        "deep": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["path", "lines"],
}
STRICT = {
    "type": "object",
    "properties": {"code": {"type": "string", "pattern": "^[a-c]{2}$"}},
    "required": ["code"],
}
TOOLS = [
    {"type": "function", "function": {"name": "write_file", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "unlock", "parameters": STRICT}},
    NOW,
]
SCHEMAS = {"write_file": SCHEMA, "unlock": STRICT, "now": {"type": "object", "maxProperties": 0}}
FAMILIES = [
    family_of("<tool_call>"),
    family_of("<function= <parameter="),
    family_of("<|python_tag|>"),
    family_of("[TOOL_CALLS]"),
    family_of("<｜tool▁call▁begin｜>"),
    family_of("<|channel|><|message|>"),
    family_of(""),
    family_of("[TOOL_CALLS]name[ARGS]"),
    family_of("[TOOL_CALLS]name[CALL_ID]id[ARGS]"),
    family_of("[TOOL_CALLS] [ {{ x }}"),
    family_of("<｜tool▁call▁begin｜>function<｜tool▁sep｜>\n```json"),
]
CLOSING = '"}>],/'


@cache
def vocabulary(marks: tuple[str, ...]) -> tuple[Tokenizer, Grammars]:
    """Every byte, and marks as special tokens."""
    letter_of = {byte: letter for letter, byte in byte_alphabet().items()}
    tokens = [letter_of[b] for b in range(256)] + ["<|eos|>", letter_of[97] + letter_of[98], *marks]
    made = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 256 + [3, 1] + [3] * len(marks),
            "tokenizer.ggml.merges": [f"{letter_of[97]} {letter_of[98]}"],
            "tokenizer.ggml.eos_token_id": 256,
        }
    )
    return made, Grammars(made, made.n_vocab, frozenset({256}))


def by_chance(
    family: Family, choice: str, parallel: bool, seed: int, form: Constraint | None = None, prompt: str = ""
) -> str | None:
    """An answer of tokens that chance picks among those that are allowed; None if it comes to no end."""
    tokenizer, grammars = vocabulary(tuple(sorted(family.marks)))
    constraint = tool_constraint(family, tools_of(TOOLS), choice, parallel, tokenizer.token_id, form)
    assert constraint is not None
    guide = grammars.guide(constraint, tokenizer.encode(prompt, False), None, family.syntax.thinks_within)
    draw, text = random.Random(seed), b""
    likely = {i for i in range(256) if tokenizer.token_bytes(i).decode("latin-1") in CLOSING}
    for _ in range(700):
        allowed = [int(i) for i in guide.allowed().nonzero()[0]]
        token = draw.choice(
            ([i for i in allowed if i in likely or i >= 256] if draw.random() < 0.4 else []) or allowed
        )
        if draw.random() < 0.1:  # going back over what drafts said changes nothing
            drafts = []
            for _ in range(3):
                drafts.append(draw.choice([int(i) for i in guide.allowed().nonzero()[0]]))
                guide.accept(drafts[-1])
            guide.rollback(3)
            assert guide.valid_prefix(drafts) == [*drafts, 256].index(256), drafts
            assert [int(i) for i in guide.allowed().nonzero()[0]] == allowed
        if token == 256:
            return text.decode("utf-8", "replace")
        guide.accept(token)
        text += tokenizer.token_bytes(token)
    return None


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_chance_calls_tools(family, parallel):
    n_ended = 0
    for seed in range(12):
        choice = ["required", "write_file", "now", "required"][seed % 4]
        text = by_chance(family, choice, parallel, seed)
        if text is None:
            continue
        n_ended += 1
        found = [part for part in taken(family, [text], tools=TOOLS) if part[0] != "thinking"]
        assert found and all(part[0] == "call" for part in found), text
        for _, name, arguments in found:
            assert choice in ("required", name)
            jsonschema.validate(arguments, SCHEMAS[name])
        assert len(found) == 1 or (parallel and choice == "required")
    assert n_ended >= 6


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_thought_comes_first_and_is_free(family):
    if family.syntax.thinks_within:
        texts = [by_chance(family, "now", True, seed) or "" for seed in range(30)]
        assert any(taken(family, [text], tools=TOOLS)[0][0] == "thinking" for text in texts if text)
        return
    text = by_chance(family, "now", True, 3, prompt=family.pair.open)
    for seed in range(4, 20):
        text = text or by_chance(family, "now", True, seed, prompt=family.pair.open)
    assert text is not None and family.pair.close in text
    assert taken(family, [text], tools=TOOLS, state="open")[-1][:2] == ("call", "now")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_json_or_calls(family):
    form = Constraint(
        "schema", '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    )
    kinds = set()
    for seed in range(40):
        text = by_chance(family, "auto", True, seed, form)
        if text is None:
            continue
        last = [part for part in taken(family, [text], tools=TOOLS) if part[0] != "thinking"][-1]
        kinds.add(last[0])
        if last[0] == "text":
            assert json.loads(last[1]).keys() == {"a"}
        else:
            jsonschema.validate(last[2], SCHEMAS[last[1]])
    assert kinds == {"text", "call"}


# -- mead ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mead():
    made = Model.load("mead", threads=1)
    yield made
    made.close()


def ask(model: Model, text: str, seed: int = 0, **more):
    params = SamplingParams(**{"temperature": 1.5, "seed": seed, "max_tokens": 300, **more.pop("params", {})})
    request = ChatRequest(
        params, messages=(Message("user", text),), **{"parse": True, "tools": tuple(TOOLS), **more}
    )
    *deltas, end = model.submit(request)
    calls: dict[int, list[str]] = {}
    for piece in (p for d in deltas if isinstance(d, Delta) for p in d.tool_calls):
        calls.setdefault(piece.number, [piece.name, ""])[1] += piece.arguments
    return "".join(d.text for d in deltas), [(n, json.loads(a)) for n, a in calls.values()], end


def test_mead_is_made_to_call(mead):
    for seed in range(6):
        choice = ("required", "write_file", "unlock")[seed % 3]
        text, calls, end = ask(mead, "Hello!", seed, tool_choice=choice, parallel_tool_calls=False)
        assert (text, end.reason, len(calls)) == ("", "tool_calls", 1)
        jsonschema.validate(calls[0][1], SCHEMAS[calls[0][0]])
        assert choice in ("required", calls[0][0])


def test_no_more_than_one_call_where_one_is_allowed(mead):
    _, calls, end = ask(mead, "Hello!", tool_choice="now")
    assert calls == [("now", {})] and end.reason == "tool_calls"
    weather = {"tools": (WEATHER,), "params": {"temperature": 0}}
    _, calls, end = ask(mead, "What is the weather in Rome?", parallel_tool_calls=False, **weather)
    assert calls == [("get_weather", {"city": "Rome"})] and end.reason == "tool_calls"


def test_json_or_a_call(mead):
    form = StructuredOutputsParams(json={"type": "object", "properties": {"port": {"type": "integer"}}})
    params = {"temperature": 0, "structured_outputs": form}
    text, calls, _ = ask(mead, "What is the weather in Rome?", tools=(WEATHER,), params=params)
    assert calls == [("get_weather", {"city": "Rome"})] and text == ""
    text, calls, _ = ask(mead, "Which port has HTTPS?", tools=(WEATHER,), tool_choice="none", params=params)
    assert not calls and "port" in json.loads(text)


def test_what_cannot_be_is_refused(mead):
    for choice, says in (("nothing", "none of the tools"), ("required", "there are no tools")):
        tools = () if choice == "required" else tuple(TOOLS)
        with pytest.raises(UsageError, match=says):
            ask(mead, "Hello!", tool_choice=choice, tools=tools)
    for schema in (
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        {"properties": {"a": {"type": "text"}}},
        {"$ref": "#/nope"},
        {"properties": 5},
    ):
        bad = {"type": "function", "function": {"name": "bad", "parameters": schema}}
        with pytest.raises(UsageError, match="what the tools take"):
            ask(mead, "Hello!", tool_choice="required", tools=(bad,))
        assert ask(mead, "Hello!", tools=(bad,), params={"max_tokens": 3})[2].reason in ("length", "stop")
