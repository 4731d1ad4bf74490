"""Models that come and go over Ollama's API, with a real server and mead."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from kvasir.store.names import DATA
from tests.wire.real import encoder, real_server

MEAD = (DATA / "mead.gguf").read_bytes()
DIGEST = f"sha256:{hashlib.sha256(MEAD).hexdigest()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("models")
        patch.setenv("KVASIR_MODELS", str(path))
        yield path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with real_server(aliases={"other": "mead:latest"}) as address:
        yield address


def post(url: str, path: str, **body) -> requests.Response:
    return requests.post(f"{url}/api/{path}", json=body, timeout=60)


def make(url: str, name: str, **body) -> list[str]:
    lines = [json.loads(line) for line in post(url, "create", model=name, **body).text.splitlines()]
    return [line.get("status") or line["error"] for line in lines]


def remove(url: str, name: str) -> requests.Response:
    return requests.delete(f"{url}/api/delete", json={"model": name}, timeout=60)


def names(url: str) -> list[str]:
    return [model["name"] for model in requests.get(f"{url}/api/tags").json()["models"]]


def said(url: str, name: str, **body) -> str:
    options = {"temperature": 0, "num_predict": 8, **body.pop("options", {})}
    got = post(url, "chat", model=name, stream=False, options=options, **body).json()
    return got["message"]["content"]


HELLO = [{"role": "user", "content": "What is DNS?"}]


def test_a_model_is_made_of_another_and_says_what_it_is(url: str, folder: Path) -> None:
    steps = make(
        url, "pirate:2", **{"from": "mead"}, system="Talk like a pirate.", license="none",
        parameters={"temperature": 0.5, "stop": ["END"], "num_ctx": 256},
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr."}],
    )  # fmt: skip
    assert steps == ["writing manifest", "success"] and "pirate:2" in names(url)
    shown = post(url, "show", model="Pirate:2").json()
    assert shown["system"] == "Talk like a pirate." and shown["license"] == "none"
    assert shown["details"]["parent_model"] == "mead:latest"
    assert shown["messages"][1] == {"role": "assistant", "content": "Arr."}
    assert "temperature                    0.5" in shown["parameters"]
    assert 'PARAMETER stop "END"' in shown["modelfile"] and "FROM mead:latest" in shown["modelfile"]
    manifest = json.loads((folder / "manifests" / "pirate" / "2.json").read_text())
    assert manifest["weights"] == "mead:latest" and manifest["parameters"]["num_ctx"] == 256
    assert remove(url, "pirate:2").status_code == 200 and "pirate:2" not in names(url)
    assert not (folder / "manifests" / "pirate").exists()


def test_what_is_added_goes_before_every_conversation(url: str) -> None:
    assert make(url, "brief", **{"from": "mead"}, system="Be brief.", messages=HELLO)[-1] == "success"
    turns = [{"role": "system", "content": "Be brief."}, *HELLO, *HELLO]
    assert said(url, "brief", messages=HELLO) == said(url, "mead", messages=turns)
    own = [{"role": "system", "content": "Own."}]
    turns = [*own, *HELLO, *HELLO]
    assert said(url, "brief", messages=[*own, *HELLO]) == said(url, "mead", messages=turns)
    plain = post(
        url, "generate", model="mead", prompt="DNS", raw=True, stream=False, options={"seed": 1}
    ).json()
    same = post(
        url, "generate", model="brief", prompt="DNS", raw=True, stream=False, options={"seed": 1}
    ).json()
    assert plain["response"] == same["response"]
    running = requests.get(f"{url}/api/ps").json()["models"]
    assert len(running) == 1, "models that share weights share a process"
    remove(url, "brief")


def test_parameters_are_defaults_and_a_request_wins(url: str) -> None:
    make(url, "short", **{"from": "mead"}, parameters={"num_predict": 3, "temperature": 0})
    got = post(url, "chat", model="short", messages=HELLO, stream=False).json()
    assert got["eval_count"] == 3 and got["done_reason"] == "length" and got["model"] == "short"
    got = post(url, "chat", model="short", messages=HELLO, stream=False, options={"num_predict": 5}).json()
    assert got["eval_count"] == 5
    make(url, "shorter", **{"from": "short"}, parameters={"num_predict": 2})
    got = post(url, "generate", model="shorter", prompt="DNS", stream=False).json()
    assert got["eval_count"] == 2
    remove(url, "short")
    assert post(url, "chat", model="shorter", messages=HELLO, stream=False).json()["eval_count"] == 2
    remove(url, "shorter")


def test_a_template_of_its_own_in_either_language(url: str) -> None:
    go = "{{ if .System }}S={{ .System }};{{ end }}{{ .Prompt }} means{{ .Response }}."
    jinja = "{% for m in messages %}{{ m.content }} means{% endfor %}"
    raw = post(
        url, "generate", model="mead", prompt="DNS means", raw=True, stream=False, options={"temperature": 0}
    ).json()["response"]
    for template in (go, jinja):
        assert make(url, "mine", **{"from": "mead"}, template=template)[-1] == "success"
        got = post(
            url, "generate", model="mine", prompt="DNS", stream=False, options={"temperature": 0}
        ).json()
        assert got["response"].strip() == raw.strip()
    assert post(url, "show", model="mine").json()["template"] == jinja
    remove(url, "mine")
    for wrong, says in (("{% for %}", "template: "), ("{{ .Nothing }}", ".Nothing is not understood")):
        r = post(url, "create", model="mine", **{"from": "mead"}, template=wrong)
        assert r.status_code == 400 and says in r.json()["error"]


def test_copies_share_weights_and_outlive_the_original(url: str, folder: Path) -> None:
    shutil.copy(DATA / "mead-draft.gguf", folder / "plain.gguf")
    want = said(url, "plain", messages=HELLO)
    r = post(url, "copy", source="plain", destination="me/copy")
    assert r.status_code == 200 and r.content == b""
    assert "me/copy:latest" in names(url)
    assert said(url, "me/copy", messages=HELLO) == want
    assert remove(url, "plain").status_code == 200
    assert not (folder / "plain.gguf").exists() and "plain:latest" not in names(url)
    assert said(url, "me/copy", messages=HELLO) == want
    assert remove(url, "me/copy:latest").status_code == 200
    assert list((folder / "blobs").iterdir()) == []


def test_a_folder_is_copied_and_deleted_too(url: str, folder: Path) -> None:
    encoder(folder / "tiny-embed")
    want = post(url, "embed", model="tiny-embed", input="a b").json()["embeddings"]
    assert post(url, "copy", source="tiny-embed", destination="tiny2").status_code == 200
    assert remove(url, "tiny-embed").status_code == 200 and not (folder / "tiny-embed").exists()
    assert post(url, "embed", model="tiny2", input="a b").json()["embeddings"] == want
    assert make(url, "tiny3", **{"from": "tiny2"}, system="x")[0].startswith("tiny2:latest is an embedding")
    remove(url, "tiny2")


def test_a_model_of_uploaded_blobs(url: str, folder: Path) -> None:
    blob = f"{url}/api/blobs/{DIGEST}"
    assert requests.head(blob).status_code == 404
    r = post(url, "create", model="up", files={"x.gguf": DIGEST})
    assert r.status_code == 400 and "is not here" in r.json()["error"]
    assert requests.post(blob, data=MEAD).status_code == 201 and requests.head(blob).status_code == 200
    assert requests.post(blob, data=MEAD).status_code == 200
    steps = make(url, "up", files={"x.gguf": DIGEST})
    assert steps == ["parsing GGUF", f"using existing layer {DIGEST}", "writing manifest", "success"]
    assert said(url, "up", messages=HELLO) == said(url, "mead", messages=HELLO)
    remove(url, "up")
    assert requests.head(blob).status_code == 404


def test_blobs_that_are_not_what_they_should_be(url: str, folder: Path) -> None:
    other = "sha256:" + "0" * 64
    r = requests.post(f"{url}/api/blobs/{other}", data=b"abc")
    assert r.status_code == 400 and r.json()["error"].startswith(
        f"digest mismatch, expected {other}, got sha256:"
    )
    for bad in ("sha256:12", "md5:" + "0" * 64, "sha256:" + "Z" * 64, "..%2F..%2Fetc"):
        assert requests.head(f"{url}/api/blobs/{bad}").status_code in (400, 404), bad
        assert requests.post(f"{url}/api/blobs/{bad}", data=b"x").status_code in (400, 404), bad
    r = requests.post(f"{url}/api/blobs/{other}", data=b"x", headers={"content-encoding": "gzip"})
    assert r.status_code == 415
    assert [p.name for p in (folder / "blobs").iterdir()] == []


def test_half_an_upload_leaves_nothing(url: str, folder: Path) -> None:
    host, port = url[7:].split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(MEAD)}\r\n\r\n"
        sock.sendall(head.encode() + MEAD[: 3 << 20])
        for _ in range(400):
            if list((folder / "blobs").glob(".*part")):
                break
            requests.get(f"{url}/api/version")
        else:
            raise AssertionError("the upload never began")
    for _ in range(400):
        if not list((folder / "blobs").iterdir()):
            break
        requests.get(f"{url}/api/version")
    assert list((folder / "blobs").iterdir()) == []


def test_an_upload_for_which_the_disk_has_no_room(url: str) -> None:
    host, port = url[7:].split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**14}\r\n\r\n"
        sock.sendall(head.encode())
        answer = b""
        while b"}" not in answer:
            answer += sock.recv(4096)
    assert b" 503 " in answer and b"stays free" in answer


REFUSED = [
    ("create", {"model": "x"}, 400, "neither 'from' nor 'files'"),
    ("create", {"from": "mead"}, 400, "model is required"),
    ("create", {"model": "x", "from": "meed"}, 404, "did you mean mead"),
    ("create", {"model": "x", "from": "/etc/passwd"}, 404, "not found"),
    ("create", {"model": "../x", "from": "mead"}, 400, "is not a name"),
    ("create", {"model": "mead", "from": "mead"}, 400, "mead:latest is built in"),
    (
        "create",
        {"model": "x", "from": "mead", "parameters": {"temprature": 1}},
        400,
        "did you mean temperature",
    ),
    ("create", {"model": "x", "from": "mead", "parameters": {"top_k": "a"}}, 400, 'option "top_k"'),
    ("create", {"model": "x", "from": "mead", "adapters": {"a": DIGEST}}, 400, "adapters is not supported"),
    ("create", {"model": "x", "from": "mead", "quantize": "q4_0"}, 400, "quantize is not supported"),
    ("create", {"model": "x", "from": "mead", "messages": [{"role": "king"}]}, 400, "messages[0].role"),
    ("create", {"model": "x", "files": {"a.gguf": "abc"}}, 400, "is not a digest"),
    ("create", {"model": "x", "files": {"../a.gguf": DIGEST}}, 400, "is not the name of a file"),
    ("create", {"model": "x", "files": {f"{i}": DIGEST for i in range(1001)}}, 400, "the limit is 1,000"),
    ("create", {"model": "x", "files": {"a\0.gguf": DIGEST, "b": DIGEST}}, 400, "is not the name of a file"),
    ("create", {"model": "x", "files": {"a" * 300: DIGEST, "b": DIGEST}}, 400, "is not the name of a file"),
    ("create", {"model": "other", "from": "mead"}, 400, "alias"),
    ("copy", {"source": "mead", "destination": "other:latest"}, 400, "alias"),
    ("copy", {"source": "mead"}, 400, "destination is required"),
    ("copy", {"source": "nothing", "destination": "x"}, 404, "not found"),
    ("copy", {"source": "mead", "destination": "a b"}, 400, "is not a name"),
    ("copy", {"source": "mead", "destination": "mead-draft"}, 400, "built in"),
    ("pull", {"model": "llama3"}, 501, "cannot download models yet"),
    ("pull", {"model": "llama3", "stream": False}, 501, "cannot download models yet"),
    ("push", {"model": "mead"}, 501, "cannot upload models yet"),
    ("me", {}, 501, "no accounts"),
]


@pytest.mark.parametrize(("path", "body", "status", "says"), REFUSED)
def test_what_is_refused_says_why(url: str, path: str, body: dict, status: int, says: str) -> None:
    before = names(url)
    r = post(url, path, **body)
    told = json.loads(r.text.splitlines()[-1])
    assert r.status_code == status and says in told["error"], r.text
    assert names(url) == before


def test_deleting_what_cannot_be_deleted(url: str) -> None:
    for name, status, says in (
        ("mead", 400, "mead:latest is built in and cannot be deleted"),
        ("nothing", 404, "not found"),
        ("other", 400, "alias"),
    ):
        r = remove(url, name)
        assert r.status_code == status and says in r.json()["error"]


def test_safetensors_from_blobs(url: str, folder: Path, tmp_path: Path) -> None:
    files = {}
    for path in encoder(tmp_path / "e").iterdir():
        if path.suffix in (".json", ".safetensors"):
            raw = path.read_bytes()
            files[path.name] = f"sha256:{hashlib.sha256(raw).hexdigest()}"
            assert requests.post(f"{url}/api/blobs/{files[path.name]}", data=raw).ok
    assert make(url, "st", files=files)[0] == "parsing safetensors"
    got = post(url, "embed", model="st", input="a b").json()
    assert len(got["embeddings"][0]) == 32
    without = {name: digest for name, digest in files.items() if name != "config.json"}
    assert "config.json" in make(url, "st2", files=without)[-1] and "st2:latest" not in names(url)
    remove(url, "st")


def test_a_models_folder_that_cannot_be_written(url: str, folder: Path) -> None:
    (folder / "manifests" / "stuck").parent.mkdir(exist_ok=True)
    (folder / "manifests" / "stuck").write_text("in the way")
    assert "cannot be made" in make(url, "stuck", **{"from": "mead"})[-1]
    (folder / "manifests" / "stuck").unlink()
    assert make(url, "stuck", **{"from": "mead"})[-1] == "success"
    remove(url, "stuck")


def test_pulling_what_is_here(url: str) -> None:
    lines = [json.loads(line) for line in post(url, "pull", model="mead").text.splitlines()]
    assert lines == [{"status": "mead:latest is here already"}, {"status": "success"}]
    assert post(url, "pull", model="mead", stream=False).json() == {"status": "success"}
    for form in ("library/mead", "registry.ollama.ai/library/mead:latest"):
        assert post(url, "show", model=form).status_code == 200


def test_a_damaged_manifest_is_left_out_and_harms_no_other(url: str, folder: Path) -> None:
    path = folder / "manifests" / "broken" / "latest.json"
    path.parent.mkdir(parents=True)
    for raw in (
        b"",
        b"{",
        b"[]",
        b'{"weights": 5}',
        b'{"weights": "x", "form": 9}',
        b'{"weights": "no:where"}',
    ):
        path.write_bytes(raw)
        assert "mead:latest" in names(url) and "broken:latest" not in names(url)
        r = post(url, "show", model="broken")
        assert 400 <= r.status_code < 500 and str(folder) not in r.text
    assert remove(url, "broken").status_code == 200 and not path.exists()
