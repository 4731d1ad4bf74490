"""What brought other engines down, as requests to a real model (the numbers are issues' and CVEs').

Each is refused in its protocol's shape, or answered; none is a 5xx, takes long, or tells of the inside.
"""

from __future__ import annotations

import copy
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest
import requests

from tests.wire.api_fuzz import INSIDE, LONGEST_S
from tests.wire.real import real_server

HELLO = [{"role": "user", "content": "hi"}]
BASES: dict[str, dict[str, Any]] = {
    "/api/generate": {"model": "mead", "prompt": "hi", "stream": False, "options": {"num_predict": 2}},
    "/api/chat": {"model": "mead", "messages": HELLO, "stream": False, "options": {"num_predict": 2}},
    "/v1/chat/completions": {"model": "mead", "messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"model": "mead", "prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"model": "mead", "input": "hi", "max_output_tokens": 16},
    "/v1/messages": {"model": "mead", "messages": HELLO, "max_tokens": 2},
    "/v1beta/models/mead:generateContent": {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "generationConfig": {"maxOutputTokens": 2},
    },
    "/api/embed": {"model": "mead", "input": "hi"},
    "/v1/embeddings": {"model": "mead", "input": "hi"},
    "/tokenize": {"model": "mead", "prompt": "hi"},
    "/detokenize": {"model": "mead", "tokens": [5]},
    "/v1/rerank": {"model": "mead", "query": "hi", "documents": ["a"]},
}
CHAT, COMPLETE, OLLAMA = "/v1/chat/completions", "/v1/completions", "/api/generate"
MESSAGES, GEMINI = "/v1/messages", "/v1beta/models/mead:generateContent"
IMAGE_URLS = (
    "http://127.0.0.1:PORT/x.png",
    "http://[::ffff:127.0.0.1]:PORT/x",
    "http://0x7f.1:PORT/x",
    "http://a@127.0.0.1:PORT/x",
    "http:\\\\127.0.0.1:PORT\\x",
    "file:///etc/passwd",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with real_server() as address:
        yield address


def send(url: str, path: str, body: Any) -> requests.Response:
    """Asks, and sees that the answer is what it must be for any input."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    began = monotonic()
    r = requests.post(url + path, data=raw, headers={"Content-Type": "application/json"}, timeout=60)
    took_s = monotonic() - began
    shown = raw[:200]
    assert r.status_code < 500 or r.status_code in (501, 503), (path, shown, r.text)
    assert took_s < LONGEST_S, (path, shown, took_s)
    if r.status_code >= 400:
        assert "error" in r.json() and not INSIDE.search(r.text), (path, shown, r.text)
    return r


def merged(path: str, update: dict[str, Any]) -> dict[str, Any]:
    body = copy.deepcopy(BASES[path])
    for name, value in update.items():
        if isinstance(value, dict) and isinstance(body.get(name), dict):
            body[name] |= value
        else:
            body[name] = value
    return body


ODD_NUMBERS = (-1, 0, 1.5, 10**9, 2**63, -(2**63), 10**40, 1e308, True, "1", [], {}, None)
NUMBERS = {
    OLLAMA: (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repeat_penalty",
        "seed",
        "num_ctx",
        "num_predict",
        "num_keep",
        "n_discard",
    ),
    CHAT: (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "seed",
        "max_tokens",
        "top_logprobs",
        "logprobs",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "n_discard",
        "priority",
    ),
    COMPLETE: ("n", "best_of", "logprobs", "prompt_logprobs", "max_tokens", "min_tokens", "echo", "suffix"),
    MESSAGES: ("temperature", "top_p", "top_k", "max_tokens"),
    GEMINI: ("temperature", "topP", "topK", "candidateCount", "seed", "logprobs", "maxOutputTokens"),
}
WHERE = {OLLAMA: "options", GEMINI: "generationConfig"}


@pytest.mark.parametrize("path", NUMBERS)
def test_odd_numbers(url: str, path: str) -> None:
    """26, 27, 38: values out of range, of other types, larger than any integer of a processor."""
    for field in NUMBERS[path]:
        for value in ODD_NUMBERS:
            inside = {field: value, "num_predict": 2} if path == OLLAMA else {field: value}
            if path == OLLAMA and field == "num_predict":
                inside = {field: value, "num_ctx": 40}
            body = merged(path, {WHERE[path]: inside} if path in WHERE else inside)
            if field in ("max_tokens", "maxOutputTokens", "min_tokens"):  # an answer to the context's end
                continue
            r = send(url, path, body)
            if field in ("n", "candidateCount") and value in (10**9, 2**63, 10**40, -1):
                assert r.status_code == 400, (field, value, r.text)
    assert requests.get(f"{url}/api/version", timeout=1).ok


NAN = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-", b"0x10", b"1" * 5000, b"01")


@pytest.mark.parametrize("path", [OLLAMA, CHAT, MESSAGES, GEMINI])
def test_numbers_that_json_does_not_have(url: str, path: str) -> None:
    """62: and integers of thousands of digits."""
    for number in NAN:
        where = WHERE.get(path)
        raw = json.dumps(merged(path, {where: {"temperature": "@"}} if where else {"temperature": "@"}))
        assert send(url, path, raw.encode().replace(b'"@"', number)).status_code == 400, number


BODIES = (
    b"",
    b"null",
    b"[]",
    b"1",
    b'"x"',
    b"{",
    b"{}{}",
    b"\xff\xfe",
    b"\x00",
    b'{"a":"\\ud800"}',
    b'{"a":"\xed\xa0\x80"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model":{"a":1}}',
    b'{"model":"mead","model":5}',
    b"\xef\xbb\xbf{}",
    b'{"model":"' + b"m" * 10**6 + b'"}',
    b'{"model":"a\\u0000b","prompt":"x","messages":[],"input":"x"}',
)


@pytest.mark.parametrize("path", BASES)
def test_bodies_that_are_none(url: str, path: str) -> None:
    """62: JSON that is none, nested beyond sense, in no encoding."""
    for raw in BODIES:
        assert 400 <= send(url, path, raw).status_code < 500, raw[:60]


EMPTY: dict[str, tuple[dict[str, Any], ...]] = {
    "/api/generate": ({"prompt": " "}, {"prompt": "\0"}, {"raw": True, "prompt": ""}),
    "/api/chat": ({"messages": [{"role": "user", "content": ""}]}, {"messages": [{"role": "user"}]}),
    CHAT: (
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": None},
        {"messages": "x"},
    ),
    COMPLETE: (
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [""]},
        {"prompt": [[]]},
        {"prompt": " "},
        {"prompt": None},
        {"prompt": [None]},
        {"prompt": [[], "x"]},
        {"prompt": {}},
    ),
    MESSAGES: ({"messages": []}, {"messages": [{"role": "user", "content": []}]}),
    GEMINI: ({"contents": []}, {"contents": [{}]}, {"contents": [{"parts": []}]}),
    "/v1/embeddings": ({"input": ""}, {"input": []}, {"input": [[]]}),
    "/tokenize": ({"prompt": ""},),
    "/detokenize": ({"tokens": []},),
}


@pytest.mark.parametrize("path", EMPTY)
def test_nothing_to_answer(url: str, path: str) -> None:
    """37: empty prompts, empty lists, lists of nothing."""
    for update in EMPTY[path]:
        send(url, path, merged(path, update))


IDS = (-1, 999_999_999, 2**31, 2**63, 2**64, 10**30)


def test_token_ids_that_no_vocabulary_has(url: str) -> None:
    """56: in prompts, biases, stops, contexts."""
    for token in IDS:
        for path, update in (
            (COMPLETE, {"prompt": [token]}),
            (COMPLETE, {"prompt": [[5, token]]}),
            (COMPLETE, {"logit_bias": {str(token): 1}}),
            (CHAT, {"logit_bias": {str(token): 100}}),
            (CHAT, {"allowed_token_ids": [token]}),
            (OLLAMA, {"context": [token]}),
            ("/detokenize", {"tokens": [token]}),
            ("/v1/embeddings", {"input": [token]}),
        ):
            r = send(url, path, merged(path, update))
            assert r.status_code == 400, (path, update, r.text)
        send(url, CHAT, merged(CHAT, {"stop_token_ids": [token]}))
    for bias in ({"x": 1}, {"5": "a"}, {"5": 1e9}, [5], {"": 1}, {"5.5": 1}):
        assert send(url, CHAT, merged(CHAT, {"logit_bias": bias})).status_code == 400, bias


PATTERNS = (
    "^+[a-z]$",
    "^{2}x$",
    "(?<=x)*",
    "(" * 60_000,
    "((a+)+)+$",
    "[",
    "a{1000000000}",
    "(?P<x>a)(?P=x)",
    "\\",
    "(a{1,1000}){1,1000}",
    ".{0,100000}",
    "\x00",
    "(?R)",
    "x" * 300_000,
    "*",
)
SCHEMAS: tuple[Any, ...] = (
    {"$ref": "#"},
    {"$ref": "#/nowhere"},
    {"$ref": "http://127.0.0.1:PORT/x"},
    {"$ref": "file:///etc/passwd"},
    {"type": "nothing"},
    {"type": 5},
    {"enum": []},
    {"enum": ["x"] * 20_000},
    {"minItems": 10**9, "type": "array"},
    {"type": "string", "maxLength": -1},
    {"type": "string", "minLength": 10**9},
    {"anyOf": []},
    {"allOf": [1]},
    {"properties": {"a": {"$ref": "#/properties/a"}}},
    {"type": "object", "required": ["a" * 10_000]},
    [],
    5,
    "x",
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}},
)
GRAMMARS = (
    "",
    "root ::= root",
    "root ::= ",
    "start: start",
    "start: /(/",
    'root ::= ("a"*)*',
    "\x00" * 100,
    "root ::= " + "(" * 20_000,
    "".join(f"r{i} ::= r{i + 1}\n" for i in range(5000)),
)


def deep(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_forms_that_crash_compilers(url: str) -> None:
    """30, 39: patterns, schemas and grammars, in each way that they can be sent."""
    for pattern in PATTERNS:
        send(url, CHAT, merged(CHAT, {"structured_outputs": {"regex": pattern}}))
        schema = {
            "type": "object",
            "properties": {"a": {"type": "string", "pattern": pattern}},
            "required": ["a"],
        }
        send(url, OLLAMA, merged(OLLAMA, {"format": schema}))
    for grammar in GRAMMARS:
        send(url, CHAT, merged(CHAT, {"structured_outputs": {"grammar": grammar}}))
    assert requests.get(f"{url}/api/version", timeout=1).ok


def test_schemas_that_are_none_or_never_end(url: str) -> None:
    """39, 48: and what they point to is not fetched."""
    with listening() as (port, seen):
        for schema in (*SCHEMAS, deep(50), deep(300)):
            schema = json.loads(json.dumps(schema).replace("PORT", str(port)))
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            send(url, CHAT, merged(CHAT, {"response_format": form}))
            send(url, OLLAMA, merged(OLLAMA, {"format": schema}))
            tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
            send(url, CHAT, merged(CHAT, {"tools": [tool], "tool_choice": "required"}))
            tools = [{"name": "f", "input_schema": schema}]
            send(url, MESSAGES, merged(MESSAGES, {"tools": tools, "tool_choice": {"type": "any"}}))
        assert not seen()


@contextmanager
def listening() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A socket that nobody should knock at: its port, and whether somebody did."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def seen() -> bool:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield listener.getsockname()[1], seen


def test_no_address_in_a_request_is_fetched(url: str) -> None:
    """48: images and documents by their address are refused; in a text they are text."""
    with listening() as (port, seen):
        for address in (a.replace("PORT", str(port)) for a in IMAGE_URLS):
            openai = {"type": "image_url", "image_url": {"url": address}}
            message = {"role": "user", "content": [{"type": "text", "text": "hi"}, openai]}
            assert send(url, CHAT, merged(CHAT, {"messages": [message]})).status_code == 400
            item = {"role": "user", "content": [{"type": "input_image", "image_url": address}]}
            assert send(url, "/v1/responses", merged("/v1/responses", {"input": [item]})).status_code == 400
            for kind in ("image", "document"):
                block = {"type": kind, "source": {"type": "url", "url": address}}
                message = {"role": "user", "content": [block]}
                assert send(url, MESSAGES, merged(MESSAGES, {"messages": [message]})).status_code == 400
            part = {"fileData": {"fileUri": address, "mimeType": "image/png"}}
            assert send(url, GEMINI, merged(GEMINI, {"contents": [{"parts": [part]}]})).status_code == 400
            assert send(url, OLLAMA, merged(OLLAMA, {"images": [address]})).status_code == 400
            assert send(url, OLLAMA, merged(OLLAMA, {"prompt": f"![]({address})"})).status_code == 200
        assert not seen()


def test_images_that_are_none(url: str) -> None:
    """19, 49: broken, empty, of a kind that nobody knows."""
    for image in ("!!!", "AA==", "", "iVBORw0KGgo=", "PHN2Zy8+", "A" * 100_000):
        for path in ("/api/generate", "/api/chat"):
            message = {"role": "user", "content": "x", "images": [image]}
            update = {"images": [image]} if path == "/api/generate" else {"messages": [message]}
            assert send(url, path, merged(path, update)).status_code == 400


def test_templates_and_embeddings_of_requests(url: str) -> None:
    """33, 35, 36, 46: programs and pickles in a request do not run."""
    bomb = "{% for i in range(10**9) %}{{ i }}{% endfor %}"
    ssti = "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}"
    for text in (bomb, ssti, "{{ 'x' * 10**9 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"):
        for path in (CHAT, COMPLETE, "/tokenize"):
            r = send(url, path, merged(path, {"chat_template": text}))
            assert r.status_code == 400 or "x-kvasir-warning" in r.headers, (path, r.text)
        send(url, "/api/generate", merged("/api/generate", {"template": text}))
        send(url, "/api/create", {"model": "t", "from": "mead", "template": text, "stream": False})
    names = (
        "tokenize",
        "messages",
        "tools",
        "think",
        "self",
        "chat_template",
        "add_generation_prompt",
        "x" * 999,
    )
    for wrong in (*({name: bomb} for name in names), 5, []):
        assert send(url, CHAT, merged(CHAT, {"chat_template_kwargs": wrong})).status_code == 400, wrong
    r = send(url, COMPLETE, merged(COMPLETE, {"prompt_embeds": "gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU"}))
    assert r.status_code == 400 or "x-kvasir-warning" in r.headers


def test_long_texts_of_one_letter(url: str) -> None:
    """25, 29: a prompt of megabytes is refused, and the tokenizer's pattern does not run away."""
    size = 1000
    while size < 4_000_000:
        for text in ("a" * size, " " * size, "\n" * size, "0" * size, "é" * (size // 2)):
            if size > 100_000 and text[0] != "a":
                continue
            r = send(url, COMPLETE, merged(COMPLETE, {"prompt": text}))
            assert r.status_code in (200, 400)
        size *= 6
    assert "the limit is" in r.text


def test_stops_and_lists_without_end(url: str) -> None:
    for path, field in (
        (OLLAMA, "stop"),
        (CHAT, "stop"),
        (MESSAGES, "stop_sequences"),
        (GEMINI, "stopSequences"),
    ):
        for value in (["x"] * 1000, ["x" * 5000], [""], [5], {"a": 1}, 5):
            inside = {field: value}
            r = send(url, path, merged(path, {WHERE[path]: inside} if path in WHERE else inside))
            assert r.status_code == 400 and field.split("_")[0][:4] in r.text, (path, value, r.text)
    many = [{"role": "user", "content": "x"}] * 10_000
    for path in ("/api/chat", CHAT, MESSAGES):
        assert send(url, path, merged(path, {"messages": many})).status_code == 400
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {}}} for i in range(5000)]
    send(url, CHAT, merged(CHAT, {"tools": tools}))
    for prompt in (["x"] * 100_000, [[5]] * 100_000):
        assert send(url, COMPLETE, merged(COMPLETE, {"prompt": prompt})).status_code == 400
    assert send(url, "/v1/rerank", merged("/v1/rerank", {"documents": ["x"] * 100_000})).status_code == 400


def test_distinct_schemas_keep_memory_flat(url: str) -> None:
    """42: what is kept of compiled forms is bounded."""

    def ask(i: int) -> None:
        schema = {"type": "object", "properties": {f"p{i}": {"type": "integer"}}}
        send(url, OLLAMA, merged(OLLAMA, {"format": schema}))

    def memory() -> float:
        page = requests.get(f"{url}/metrics", timeout=5).text
        return sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith(("kvasir_model_memory_bytes{", "process_resident_memory_bytes "))
        )

    for i in range(20):
        ask(i)
    before = memory()
    for i in range(20, 120):
        ask(i)
    assert memory() - before < 64e6
