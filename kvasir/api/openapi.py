"""The OpenAPI document of everything that is served, made from the types of the bodies and the routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

import kvasir
from kvasir.api import adapters, catalog, ollama, ollama_embed, ollama_models
from kvasir.api.anthropic import body as anthropic
from kvasir.api.gemini import body as gemini
from kvasir.api.openai import chat, completions, decisions, embeddings, rank, responses, tokens
from kvasir.api.shapes import SHAPES

NDJSON, SSE, JSON, TEXT, BYTES = (
    "application/x-ndjson", "text/event-stream", "application/json", "text/plain", "application/octet-stream",
)  # fmt: skip
PROTOCOLS = ("Ollama", "Anthropic", "Gemini", "OpenAI")  # in the order of SHAPES
PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
DOUBLED = re.compile(r"^/v1/v1/|.*:\{action\}$")  # a /v1 too many, or an action that nobody knows

# What each path does, the type of its body, and what it answers with beside JSON.
Row = tuple[str, type[msgspec.Struct] | None, str]
TABLE: dict[str, Row] = {
    "/": ("Says that the server is there", None, TEXT),
    "/health": ("Whether the server is alive", None, TEXT),
    "/ping": ("Whether the server is alive", None, TEXT),
    "/version": ("The server's version", None, ""),
    "/metrics": ("Counts and times, for Prometheus", None, TEXT),
    "/openapi.json": ("This document", None, ""),
    "/kvasir/top": ("What each model is doing", None, ""),
    "/kvasir/debug/state": ("Blocks, queues and open files, for tests", None, ""),
    "/api/version": ("The server's version", None, ""),
    "/api/tags": ("The models there are", None, ""),
    "/api/ps": ("The models in memory", None, ""),
    "/api/status": ("Whether there is a cloud: there is none", None, ""),
    "/api/show": ("What a model is", catalog.ShowBody, ""),
    "/api/generate": ("Goes on from a prompt", ollama.GenerateBody, NDJSON),
    "/api/chat": ("Answers a conversation", ollama.ChatBody, NDJSON),
    "/api/embed": ("Embeds texts", ollama_embed.EmbedBody, ""),
    "/api/embeddings": ("Embeds a text", ollama_embed.EmbeddingsBody, ""),
    "/api/create": ("Makes a model of another", ollama_models.CreateBody, NDJSON),
    "/api/copy": ("Copies a model", ollama_models.CopyBody, ""),
    "/api/delete": ("Deletes a model", ollama_models.NameBody, ""),
    "/api/pull": ("Fetches a model", ollama_models.NameBody, NDJSON),
    "/api/push": ("Sends a model", ollama_models.NameBody, NDJSON),
    "/api/me": ("Who is signed in: nobody can be", None, ""),
    "/api/signout": ("Signs out", None, ""),
    "/api/blobs/{digest}": ("A file of weights", None, ""),
    "/v1/messages": ("Answers a conversation", anthropic.MessagesBody, SSE),
    "/v1/messages/count_tokens": ("Counts a conversation's tokens", anthropic.CountBody, ""),
    "/v1/models": ("The models there are", None, ""),
    "/v1/models/{name}": ("One model", None, ""),
    "/v1/models/{model}": ("One model", None, ""),
    "/v1/chat/completions": ("Answers a conversation", chat.Body, SSE),
    "/v1/completions": ("Goes on from prompts", completions.Body, SSE),
    "/v1/responses": ("Answers what was put in", responses.Body, SSE),
    "/v1/responses/{id}": ("An answer that was kept", None, ""),
    "/v1/embeddings": ("Embeds texts", embeddings.Body, ""),
    "/v1/score": ("How well texts fit each other", rank.ScoreBody, ""),
    "/score": ("How well texts fit each other", rank.ScoreBody, ""),
    "/v1/rerank": ("Orders documents by a question", rank.RerankBody, ""),
    "/v2/rerank": ("Orders documents by a question", rank.RerankBody, ""),
    "/rerank": ("Orders documents by a question", rank.RerankBody, ""),
    "/v1/decisions": ("How likely each of several labels is", decisions.DecisionsBody, ""),
    "/v1/systemone": ("How likely each of several labels is", decisions.SystemoneBody, ""),
    "/tokenize": ("The tokens of a text", tokens.TokenizeBody, ""),
    "/detokenize": ("The text of tokens", tokens.DetokenizeBody, ""),
    "/tokenizer_info": ("The marks and the chat template of a model", None, ""),
    "/v1/load_lora_adapter": ("Loads an adapter", adapters.LoadWish, TEXT),
    "/v1/unload_lora_adapter": ("Unloads an adapter", adapters.UnloadWish, TEXT),
}
for _version in ("v1", "v1beta", "v1alpha"):
    _base = f"/{_version}/models"
    TABLE |= {
        _base: ("The models there are", None, ""),
        f"{_base}/{{model}}": ("One model", None, ""),
        f"{_base}/{{model}}:generateContent": ("Answers a conversation", gemini.GenerateBody, ""),
        f"{_base}/{{model}}:streamGenerateContent": ("Answers, in pieces", gemini.GenerateBody, SSE),
        f"{_base}/{{model}}:countTokens": ("Counts a conversation's tokens", gemini.CountBody, ""),
        f"{_base}/{{model}}:embedContent": ("Embeds a text", gemini.EmbedBody, ""),
        f"{_base}/{{model}}:batchEmbedContents": ("Embeds texts", gemini.BatchEmbedBody, ""),
    }

_STRING, _NUMBER = {"type": "string"}, {"type": "integer"}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_MAYBE = {"type": ["string", "null"]}
ERRORS: dict[str, dict[str, Any]] = {
    "Ollama": _object(error=_STRING),
    "Anthropic": _object(type={"const": "error"}, error=_object(type=_STRING, message=_STRING)),
    "Gemini": _object(error=_object(code=_NUMBER, message=_STRING, status=_STRING)),
    "OpenAI": _object(error=_object(message=_STRING, type=_STRING, param=_MAYBE)),
}


def document(routes: Iterable[BaseRoute]) -> bytes:
    """The document, as JSON.  Paths that only repeat others for odd clients, or only refuse, are left out."""
    bodies = sorted({row[1] for row in TABLE.values() if row[1]}, key=lambda t: (t.__module__, t.__name__))
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route) and not DOUBLED.match(route.path):
            path = PARAMETER.sub(r"{\1}", route.path)
            for method in sorted(route.methods or ()):
                if method != "HEAD" or "GET" not in (route.methods or ()):
                    operation = _operation(path, method, schema_of)
                    paths.setdefault(path, {}).setdefault(method.lower(), operation)
    paths.pop("/v1/models/{name}", None)  # the same place under another protocol's name for it
    errors = {f"{name}Error": schema for name, schema in ERRORS.items()}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Kvasir", "version": kvasir.__version__, "license": {"name": "Apache-2.0"}},
            "paths": paths,
            "components": {
                "schemas": {**components, **errors},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "anthropic": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                    "google": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
                },
            },
            "security": [{}, {"bearer": []}, {"anthropic": []}, {"google": []}],
        }
    )


def _operation(
    path: str, method: str, schema_of: dict[type[msgspec.Struct], dict[str, Any]]
) -> dict[str, Any]:
    summary, body, beside = TABLE[path]
    index = next(i for i, (pattern, _) in enumerate(SHAPES) if pattern.match(path))
    protocol = PROTOCOLS[index]
    error = {JSON: {"schema": {"$ref": f"#/components/schemas/{protocol}Error"}}}
    kinds = [beside] if beside == TEXT else [JSON, beside] if beside else [JSON]
    found: dict[str, Any] = {
        "summary": summary,
        "tags": [protocol],
        "responses": {
            "200": {"description": "The answer", "content": {kind: {} for kind in kinds}},
            "default": {"description": "What went wrong, and what to do", "content": error},
        },
    }
    if names := PARAMETER.findall(path):
        found["parameters"] = [{"name": n, "in": "path", "required": True, "schema": _STRING} for n in names]
    if body and method in ("POST", "DELETE"):
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of[body]}}}
    elif "/blobs/" in path and method == "POST":
        found["requestBody"] = {"required": True, "content": {BYTES: {}}}
    return found
