"""The server with API keys: who comes in, in which shape the others are told, what each key may use."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path

import pytest
import requests
from starlette.applications import Starlette

from kvasir.api.house import House
from kvasir.api.keys import Keyring, add_key, remove_key
from kvasir.api.server import application, server
from tests.wire.fake import FakeModel, FakeModels
from tests.wire.real import real_server
from tests.wire.test_server import models_folder, serving

__all__ = ["models_folder"]  # a fixture for all tests here

PUBLIC = {"/", "/health", "/ping", "/api/version"}


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys.json", always=True)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes() -> list[tuple[str, str]]:
    """Every method and path of the server, parameters filled in."""
    house = House(FakeModels(FakeModel()))
    app = application(house)
    while not isinstance(app, Starlette):
        app = app._app
    house.close()
    found = [
        (m, r.path.split("{")[0] + ("x" if "{" in r.path else "")) for r in app.routes for m in r.methods
    ]
    assert len(found) > 15
    return found


def test_every_route_needs_a_key_but_a_short_list(ring: Keyring) -> None:
    key = add_key(ring.path, "a")
    with serving(FakeModel(), keyring=ring) as url, requests.Session() as session:
        for method, path in routes():
            for headers in ({}, bearer("kv-wrong"), bearer(""), {"x-api-key": key[:-1]}):
                r = session.request(method, url + path, headers=headers, json={})
                if path in PUBLIC and method in ("GET", "HEAD"):
                    assert r.status_code in (200, 404), path
                else:
                    assert r.status_code == 401, (method, path)
                    assert r.headers["www-authenticate"].startswith("Bearer")
            r = session.request(method, url + path, headers=bearer(key), json={})
            assert r.status_code != 401, (method, path)


def test_no_way_around(ring: Keyring) -> None:
    key = add_key(ring.path, "a")
    with serving(FakeModel(), keyring=ring) as url:
        for path in (f"/api/tags?key={key}", "//api/tags", "/API/tags", "/api/tags/", "/./api/tags",
                     "/nothing", "/health/../api/tags", "/api/version/../tags", "/health/", "//health",
                     "/%2e/api/tags", "/metrics", "/openapi.json", "/kvasir/debug/state"):  # fmt: skip
            assert requests.get(url + path).status_code == 401, path
        for headers in ({"X-HTTP-Method-Override": "GET"}, {"X-Original-URL": "/health"},
                        {"X-Forwarded-For": "127.0.0.1"}, {"Cookie": f"key={key}"},
                        {"Authorization": key}, {"Authorization": f"Basic {key}"}):  # fmt: skip
            assert requests.post(f"{url}/api/chat", json={}, headers=headers).status_code == 401
        assert requests.post(f"{url}/health", json={}).status_code == 401
        many = "&".join(f"key=kv-{i}" for i in range(100)) + f"&key={key}"
        assert requests.get(f"{url}/v1beta/models?{many}").status_code == 401


CHANGING = ("/api/create", "/api/copy", "/api/delete", "/api/pull", "/api/push", "/api/blobs/x")


def test_only_keys_for_it_change_models(ring: Keyring) -> None:
    asks, changes = add_key(ring.path, "asks"), add_key(ring.path, "changes", admin=True)
    with serving(FakeModel(), keyring=ring) as url:
        changing = [(m, path) for m, path in routes() if path in CHANGING or "lora_adapter" in path]
        assert {path for _, path in changing} > set(CHANGING)
        for method, path in changing:
            refused = requests.request(method, url + path, headers=bearer(asks), json={})
            assert refused.status_code == 403, path
            assert method == "HEAD" or "the key asks may not change models" in refused.text
            assert requests.request(method, url + path, headers=bearer(changes), json={}).status_code != 403
        assert requests.get(f"{url}/api/tags", headers=bearer(asks)).status_code == 200


def test_each_protocol_brings_its_key_and_is_told_in_its_shape(ring: Keyring) -> None:
    key = add_key(ring.path, "a")
    with serving(FakeModel(), keyring=ring) as url:
        for headers in (bearer(key), {"Authorization": f"bearer  {key} "}, {"x-api-key": key},
                        {"x-goog-api-key": key},
                        {"Authorization": "Bearer none", "x-api-key": key}):  # fmt: skip
            assert requests.get(f"{url}/api/tags", headers=headers).status_code == 200, headers
        assert requests.get(f"{url}/v1beta/nothing?alt=sse&key={key}").status_code == 404
        assert set(requests.get(f"{url}/api/tags").json()) == {"error"}
        r = requests.post(f"{url}/v1/messages", json={}).json()
        assert r["type"] == "error" and r["error"]["type"] == "authentication_error"
        r = requests.post(f"{url}/v1/chat/completions", json={}).json()
        assert r["error"]["code"] == "invalid_api_key"


def test_a_page_of_an_allowed_origin_may_read_the_refusal_and_ask_first(ring: Keyring) -> None:
    add_key(ring.path, "a")
    with serving(FakeModel(), keyring=ring) as url:
        origin = {"Origin": "http://localhost:3000"}
        asks = {**origin, "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        r = requests.options(f"{url}/api/chat", headers=asks)
        assert r.status_code == 204 and "authorization" in r.headers["access-control-allow-headers"]
        r = requests.post(f"{url}/api/chat", headers=origin, json={})
        assert r.status_code == 401 and r.headers["access-control-allow-origin"] == origin["Origin"]


def test_a_key_in_the_address_is_kept_out_of_the_log(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_key(ring.path, "a")
    monkeypatch.setattr("tests.wire.test_server.server", partial(server, access_log=True))
    with serving(FakeModel(), keyring=ring) as url:
        caplog.set_level(logging.INFO, "uvicorn.access")
        for path in (f"/v1beta/models?key={key}", f"/v1beta/models?pageSize=5&key={key}"):
            assert requests.get(url + path).status_code == 200
    assert "pageSize=5" in caplog.text and key not in caplog.text


def test_keys_come_and_go_while_it_runs(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys.json")
    with serving(FakeModel(), keyring=ring) as url:
        assert requests.get(f"{url}/api/tags", headers=bearer("any")).status_code == 200
        key = add_key(ring.path, "a")
        assert requests.get(f"{url}/api/tags", headers=bearer("any")).status_code == 401
        assert requests.get(f"{url}/api/tags", headers=bearer(key)).status_code == 200
        remove_key(ring.path, "a")
        assert requests.get(f"{url}/api/tags").status_code == 200


def test_what_is_known_of_one_keys_prompts_is_not_for_another(ring: Keyring) -> None:
    one, two = add_key(ring.path, "one"), add_key(ring.path, "two")
    model = FakeModel()
    with serving(model, keyring=ring) as url:
        for key in (one, two, one):
            requests.post(f"{url}/api/generate", json={"model": "mead", "prompt": "x"}, headers=bearer(key))
    first, second, third = (request.tenant for request in model.requests)
    assert first == third and first != second and len(first) > 30


def test_another_key_finds_nothing_in_the_cache(ring: Keyring) -> None:
    """With a real model: the second time the same key has its prompt cached, another one has not."""
    one, two = add_key(ring.path, "one"), add_key(ring.path, "two")
    body = {"model": "mead", "prompt": "What is a VLAN? " * 8, "stream": False, "options": {"num_predict": 1}}
    with real_server(keyring=ring) as url:
        asked = [
            requests.post(f"{url}/api/generate", json=body, headers=bearer(k)) for k in (one, one, two, two)
        ]
    cached = [r.json().get("cached_count", 0) for r in asked]
    assert cached[0] == cached[2] == 0 and cached[1] == cached[3] > 0


def test_requests_a_minute(ring: Keyring) -> None:
    key = add_key(ring.path, "a", requests_per_minute=3)
    free = add_key(ring.path, "b")
    with serving(FakeModel(), keyring=ring) as url:
        body = {"model": "mead", "prompt": "x", "stream": False}
        got = [requests.post(f"{url}/api/generate", json=body, headers=bearer(key)) for _ in range(4)]
        assert [r.status_code for r in got] == [200, 200, 200, 429]
        assert 15 <= int(got[3].headers["retry-after"]) <= 20 and "3 times a minute" in got[3].json()["error"]
        r = requests.post(f"{url}/v1/messages", json={}, headers={"x-api-key": key})
        assert r.status_code == 429 and r.json()["error"]["type"] == "rate_limit_error"
        assert requests.get(f"{url}/api/tags", headers=bearer(key)).status_code == 200
        assert requests.post(f"{url}/api/generate", json=body, headers=bearer(free)).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_a_minute(ring: Keyring, stream: bool) -> None:
    key = add_key(ring.path, "a", tokens_per_minute=20)
    body = {"model": "mead", "prompt": "x" * 20, "stream": stream}
    with serving(FakeModel(), keyring=ring) as url:
        assert requests.post(f"{url}/api/generate", json=body, headers=bearer(key)).status_code == 200
        r = requests.post(f"{url}/api/generate", json=body, headers=bearer(key))
        # 20 of the prompt and 3 of the answer: three are owed, and one must be there
        assert r.status_code == 429 and 9 <= int(r.headers["retry-after"]) <= 12


def test_a_client_that_leaves_has_used_its_prompt(ring: Keyring) -> None:
    key = add_key(ring.path, "a", tokens_per_minute=20)
    model = FakeModel(words=["x"] * 1000, pace_s=0.05)
    body = {"model": "mead", "prompt": "x" * 30}
    with serving(model, keyring=ring) as url:
        with requests.post(f"{url}/api/generate", json=body, headers=bearer(key), stream=True) as r:
            next(r.iter_lines())
        r = requests.post(f"{url}/api/generate", json=body, headers=bearer(key))
        assert r.status_code == 429


def test_embeddings_count_too(ring: Keyring) -> None:
    key = add_key(ring.path, "a", tokens_per_minute=4)
    info = FakeModel().info
    model = FakeModel(info=type(info)(**{**info.__dict__, "capabilities": ("embedding",)}))
    with serving(model, keyring=ring) as url:
        body = {"model": "mead", "input": "hello"}
        assert requests.post(f"{url}/api/embed", json=body, headers=bearer(key)).status_code == 200
        assert requests.post(f"{url}/api/embed", json=body, headers=bearer(key)).status_code == 429


def test_many_at_once_share_one_allowance(ring: Keyring) -> None:
    key = add_key(ring.path, "a", requests_per_minute=5)
    codes: list[int] = []
    with serving(FakeModel(), keyring=ring) as url:
        body = {"model": "mead", "prompt": "x"}

        def ask() -> None:
            codes.append(requests.post(f"{url}/api/generate", json=body, headers=bearer(key)).status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert sorted(codes) == [200] * 5 + [429] * 7
