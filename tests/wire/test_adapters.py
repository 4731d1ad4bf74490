"""Adapters over HTTP: MODEL:NAME is the model with its adapter, beside the model alone and in one batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from kvasir.api.house import Lending
from kvasir.cli.main import main
from kvasir.cli.served import Served, served
from kvasir.errors import KvasirError
from kvasir.runner.registry import Models
from kvasir.store.names import BUILT_IN
from tests.adapter_files import mead, pairs, write_peft
from tests.wire.fake import FakeModel
from tests.wire.real import real_server
from tests.wire.test_server import serving

ALIASES = {"mead:pirate": "mead:latest", "bard": "mead:latest", "other": "mead:latest"}
ADAPTERS = {"mead:pirate": "pirate", "bard": "pirate"}


def post(url: str, path: str, **body) -> requests.Response:
    return requests.post(f"{url}{path}", json=body, timeout=60)


def said(url: str, model: str) -> str:
    wish = {"temperature": 0.8, "seed": 4, "num_predict": 12}
    got = post(url, "/api/generate", model=model, prompt="What is DNS?", stream=False, options=wish).json()
    return got["response"]


def test_a_name_chooses_the_adapter_of_the_request() -> None:
    model = FakeModel()
    with serving(model, aliases=ALIASES, adapters=ADAPTERS) as url:
        for name, adapter in (
            ("mead:pirate", "pirate"),
            ("bard:latest", "pirate"),
            ("mead", ""),
            ("other", ""),
        ):
            answer = post(url, "/api/generate", model=name, prompt="x", stream=False).json()
            assert answer["model"] == name and model.requests[-1].adapter == adapter
        messages = [{"role": "user", "content": "x"}]
        post(url, "/api/chat", model="mead:pirate", messages=messages, stream=False)
        assert model.requests[-1].adapter == "pirate"
        post(url, "/v1/messages", model="mead:pirate", messages=messages, max_tokens=5)
        assert model.requests[-1].adapter == "pirate" and len(model.requests) == 6
        post(url, "/v1/chat/completions", model="mead:pirate", messages=messages)
        assert model.requests[-1].adapter == "pirate" and len(model.requests) == 7
        parts = [{"parts": [{"text": "x"}]}]
        post(url, "/v1beta/models/bard:generateContent", contents=parts)
        assert model.requests[-1].adapter == "pirate" and len(model.requests) == 8


def test_lists_have_adapters_and_nothing_is_made_or_deleted_through_them() -> None:
    with serving(FakeModel(), aliases=ALIASES, adapters=ADAPTERS) as url:
        listed = {m["name"]: m["digest"] for m in requests.get(f"{url}/api/tags").json()["models"]}
        assert {"mead:latest", "mead:pirate", "bard"} <= set(listed) and "other" not in listed
        assert len(set(listed.values())) == len(listed)
        cards = {m["id"] for m in requests.get(f"{url}/v1/models").json()["data"]}
        assert {"mead:latest", "mead:pirate", "bard"} <= cards
        assert post(url, "/api/show", model="mead:pirate").json()["details"]["family"] == "qwen3"
        for path, body in (
            ("/api/create", {"model": "new", "from": "mead:pirate", "stream": False}),
            ("/api/copy", {"source": "mead:pirate", "destination": "new"}),
        ):
            refused = post(url, path, **body)
            assert refused.status_code == 400 and "with an adapter" in refused.json()["error"]
        gone = requests.delete(f"{url}/api/delete", json={"model": "mead:pirate"}, timeout=60)
        assert gone.status_code == 400 and BUILT_IN["mead"].exists()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("adapters")
    given = [f"mead:{i}={mead(folder / f'{i}.gguf', i)}" for i in (1, 2)]
    return served(["second=mead:2", "short=mead"], given)


@pytest.fixture(scope="module")
def url(names: Served) -> Iterator[str]:
    with real_server(names) as address:
        yield address


def test_a_server_answers_with_all_of_them_at_once(url: str) -> None:
    asked = ["mead", "mead:1", "mead:2", "second", "short"]
    alone = [said(url, name) for name in asked]
    assert alone[0] == alone[4] and alone[2] == alone[3] and len(set(alone)) == 3
    with ThreadPoolExecutor(10) as clients:
        assert list(clients.map(lambda name: said(url, name), asked * 2)) == alone * 2
    (running,) = requests.get(f"{url}/api/ps").json()["models"]
    assert running["name"] == "mead:latest", "one process for all"


def test_names_are_understood_before_the_server_starts(names: Served, tmp_path: Path) -> None:
    path = names.paths[BUILT_IN["mead"].resolve()]["mead:1"]
    assert names.aliases["mead:1"] == "mead:latest" and names.adapters["second"] == "mead:2"
    assert names.of("mead").keys() == names.of(str(BUILT_IN["mead"])).keys() == {"mead:1", "mead:2"}
    assert served(["m=mead"], [f"m:x={path}"]).of("mead") == {"m:x": path}
    for given, words in (
        ("pirate=/x", "write MODEL:NAME=PATH"),
        (f"mead:={path}", "write MODEL:NAME=PATH"),
        (f"nobody:x={path}", "model 'nobody' not found"),
        (f"mead:x={tmp_path}/none", "no such file"),
        (f"mead:latest={path}", "that name is taken"),
    ):
        with pytest.raises(KvasirError, match=words):
            served([], [given])


def test_their_memory_counts(names: Served) -> None:
    alone, beside = Models().size("mead"), Models(bytes_beside=names.bytes_beside).size("mead")
    total = sum(Path(path).stat().st_size for path in names.of("mead").values())
    assert 0 < total - (beside - alone) < 40_000


def test_an_adapter_that_does_not_fit_is_told_to_the_client(tmp_path: Path) -> None:
    path = write_peft(tmp_path / "peft", pairs("qwen3"))
    with real_server(served([], [f"mead:x={path}"])) as url:
        refused = post(url, "/api/generate", model="mead", prompt="x", stream=False)
        assert refused.status_code == 400 and "does not fit the model" in refused.json()["error"]
        assert str(tmp_path) not in json.dumps(refused.json())


def test_serve_refuses_a_wrong_adapter(capsys) -> None:
    assert main(["serve", "--port", "0", "--adapter", "mead:x=/nope"]) == 1
    assert "/nope: no such file" in capsys.readouterr().err


def test_clients_load_and_unload_what_lies_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "lent"
    folder.mkdir()
    path = mead(folder / "one.gguf", 1)
    names = served([], [])
    with real_server(names, lending=Lending(folder, names.remember)) as url:
        bare = said(url, "mead")
        wish = {"lora_name": "mead:one", "lora_path": "one.gguf"}
        for _ in range(2):
            assert post(url, "/v1/load_lora_adapter", **wish).status_code == 200
        sql = {"lora_name": "sql", "lora_path": str(path), "base_model_name": "mead"}
        assert post(url, "/v1/load_lora_adapter", **sql).status_code == 200
        adapted = said(url, "mead:one")
        assert adapted != bare and said(url, "sql") == adapted and said(url, "mead") == bare
        mead(path, 2)
        taken = post(url, "/v1/load_lora_adapter", **wish)
        assert taken.status_code == 400 and "another adapter" in taken.json()["error"]["message"]
        assert post(url, "/v1/load_lora_adapter", **wish, load_inplace=True).status_code == 200
        assert said(url, "mead:one") not in (adapted, bare) and said(url, "sql") == adapted
        assert names.of("mead") == {"mead:one": str(path), "sql": str(path)}
        assert post(url, "/v1/unload_lora_adapter", lora_name="mead:one").status_code == 200
        assert post(url, "/v1/unload_lora_adapter", lora_name="mead:one").status_code == 404
        gone = post(url, "/api/generate", model="mead:one", prompt="x")
        assert gone.status_code == 404 and said(url, "sql") == adapted
        path.unlink()
        assert names.of("mead") == {} and names.bytes_beside(BUILT_IN["mead"]) == 0


def test_clients_load_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "lent"
    folder.mkdir()
    outside = mead(tmp_path / "outside.gguf", 1)
    (folder / "link.gguf").symlink_to(outside)
    (folder / "text").write_text("x")
    model = FakeModel()
    lending = Lending(folder, lambda *_: None)
    with serving(model, aliases=ALIASES, adapters=ADAPTERS, lending=lending) as url:
        told = set()
        for path in ("../outside.gguf", str(outside), "link.gguf", "none", "/etc/passwd", ".", "a\0b", ""):
            answer = post(url, "/v1/load_lora_adapter", lora_name="mead:x", lora_path=path)
            told.add((answer.status_code, answer.json()["error"]["message"]))
        assert len(told) == 1 and next(iter(told))[0] == 400
        (folder / "good").write_text("x")
        for name, words in (("plain", "of which model"), ("mead:pirate", "taken"), ("mead:latest", "taken")):
            answer = post(url, "/v1/load_lora_adapter", lora_name=name, lora_path="good")
            assert answer.status_code == 400 and words in answer.json()["error"]["message"]
        assert post(url, "/v1/load_lora_adapter", lora_name="none:x", lora_path="good").status_code == 404
        assert post(url, "/v1/unload_lora_adapter", lora_name="mead:pirate").status_code == 404
        assert post(url, "/v1/load_lora_adapter", lora_name="mead:y").status_code == 400
        assert model.adapters == {}
    with serving(model) as url:
        answer = post(url, "/v1/load_lora_adapter", lora_name="mead:x", lora_path="good")
        assert answer.status_code == 400 and "--adapters-from" in answer.json()["error"]["message"]
