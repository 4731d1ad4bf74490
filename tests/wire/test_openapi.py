"""The OpenAPI document: it is one, it names everything that is served, and what it describes does no harm."""

from __future__ import annotations

import json
import re

import jsonschema
import requests
from starlette.routing import Route

from kvasir.api.house import House
from kvasir.api.openapi import DOUBLED, TABLE
from kvasir.api.server import PROTOCOLS
from tests.wire.api_fuzz import fuzz
from tests.wire.fake import FakeModel, FakeModels
from tests.wire.test_server import models_folder, serving

__all__ = ["models_folder"]  # a fixture for all tests here


def routes() -> list[Route]:
    house = House(FakeModels(FakeModel()), debug_state=True)
    house.close()
    return [route for protocol in PROTOCOLS for route in protocol(house)]


def test_it_names_every_path_that_is_served_and_no_other() -> None:
    served = {re.sub(r"\{(\w+)(:\w+)?\}", r"{\1}", r.path) for r in routes() if not DOUBLED.match(r.path)}
    assert served == set(TABLE)
    with serving(FakeModel(), debug_state=True) as url:
        document = requests.get(f"{url}/openapi.json").json()
    assert document["openapi"].startswith("3.1") and set(document["paths"]) == served - {"/v1/models/{name}"}
    assert set(document["paths"]["/api/blobs/{digest}"]) == {"head", "post"}
    assert set(document["paths"]["/v1/responses/{id}"]) == {"get", "delete"}


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    with serving(FakeModel()) as url:
        text = requests.get(f"{url}/openapi.json").text
    document = json.loads(text)
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in schemas
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            names = {p["name"] for p in operation.get("parameters", ())}
            assert names == set(re.findall(r"\{(\w+)\}", path)) and operation["summary"]


def test_errors_have_the_shape_that_it_says() -> None:
    with serving(FakeModel()) as url:
        document = requests.get(f"{url}/openapi.json").json()
        for path, methods in document["paths"].items():
            if "post" not in methods or path in ("/ping", "/api/me", "/api/signout"):
                continue
            said = methods["post"]["responses"]["default"]["content"]["application/json"]["schema"]["$ref"]
            schema = document["components"]["schemas"][said.rsplit("/", 1)[1]]
            answer = requests.post(url + re.sub(r"\{\w+\}", "x", path), data=b"{")
            assert 400 <= answer.status_code < 502, path
            jsonschema.validate(answer.json(), schema)


FUZZED = ("/api/generate", "/v1/messages", "/v1/completions", "/v1beta/models/{model}:generateContent")


def test_a_few_good_and_bad_requests() -> None:
    """`make api-fuzz` does it with many, to every path and a real model."""
    with serving(FakeModel()) as url:
        assert list(fuzz(url, n_examples=4, paths=FUZZED)) == []
