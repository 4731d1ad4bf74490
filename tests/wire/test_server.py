"""The server over real sockets, with a scripted model: what clients send, see, and do wrong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from kvasir.api.house import House
from kvasir.api.http import MAX_BODY
from kvasir.api.server import server
from kvasir.errors import Bug, CapacityError, CheckpointError, KvasirError, Lost
from kvasir.settings import Address
from tests.wire.fake import FakeModel, FakeModels


@pytest.fixture(autouse=True)
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVASIR_MODELS", str(tmp_path))
    (tmp_path / "mead2.gguf").write_bytes(b"GGUF")
    return tmp_path


@contextmanager
def serving(model: FakeModel | KvasirError, **wishes) -> Iterator[str]:
    load_s = wishes.pop("load_s", 0.0)
    loader = wishes.pop("loader", None) or FakeModels(model, load_s)
    aliases = {"mead": "mead:latest", **wishes.pop("aliases", {})}
    house = House(loader, aliases=aliases, **wishes)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    running = server(house, Address("127.0.0.1", sock.getsockname()[1]))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(15)
        house.close()
        assert not thread.is_alive()


def ask(url: str, path: str = "generate", **body) -> requests.Response:
    return requests.post(f"{url}/api/{path}", json={"model": "mead", **body}, timeout=20)


def test_the_program_of_the_readme() -> None:
    with serving(FakeModel()) as url:
        answer = requests.post(
            f"{url}/api/generate",
            json={
                "model": "mead",
                "prompt": "What is a VLAN?",
                "stream": False,
                "options": {"temperature": 0.3, "num_predict": 256},
            },
        ).json()
    assert answer["response"] == "Hello, world" and answer["done"] is True and answer["done_reason"] == "stop"
    assert answer["eval_count"] == 3 and answer["eval_duration"] == 500_000_000
    assert answer["context"][-3:] == [100, 101, 102] and answer["model"] == "mead"


def test_streams_are_lines() -> None:
    with (
        serving(FakeModel(pace_s=0.05)) as url,
        requests.post(
            f"{url}/api/chat",
            json={"model": "mead", "messages": [{"role": "user", "content": "x"}]},
            stream=True,
        ) as r,
    ):
        assert r.headers["content-type"] == "application/x-ndjson" and r.status_code == 200
        times, lines = [], []
        for line in r.iter_lines():
            times.append(time.monotonic())
            lines.append(json.loads(line))
    assert [m["message"]["content"] for m in lines] == ["Hello", ", ", "world", ""]
    assert lines[-1]["done"] and "context" not in lines[-1] and times[-1] - times[0] > 0.05


def test_small_endpoints() -> None:
    with serving(FakeModel()) as url:
        assert requests.get(url).text == "Ollama is running" and requests.head(url).status_code == 200
        assert set(requests.get(f"{url}/api/version").json()) == {"version"}
        assert requests.head(f"{url}/api/tags").status_code == 200
        assert requests.get(f"{url}/api/ps").json() == {"models": []}
        ask(url, prompt="x", stream=False)
        (entry,) = requests.get(f"{url}/api/ps").json()["models"]
        assert (
            entry["name"] == "mead:latest" and entry["context_length"] == 512 and entry["expires_at"] > "2026"
        )
        for path in ("/debug/pprof/heap", "/docs", "/server_info", "/api", "/api/generate/", "//api/tags"):
            r = requests.get(url + path)
            assert r.status_code == 404 and set(r.json()) == {"error"}, path
        r = requests.get(f"{url}/api/generate")
        assert r.status_code == 405 and "error" in r.json()
        assert requests.post(f"{url}/api/pull", json={"model": "x"}).status_code == 501


def test_load_and_unload() -> None:
    loader = FakeModels(FakeModel())
    with serving(FakeModel(), loader=loader) as url:
        assert ask(url).json()["done_reason"] == "load" and loader.n_loads == 1
        assert ask(url, "chat", messages=[]).json()["done_reason"] == "load" and loader.n_loads == 1
        assert ask(url, keep_alive=0).json()["done_reason"] == "unload"
        time.sleep(0.2)
        assert loader.n_unloads == 1 and requests.get(f"{url}/api/ps").json() == {"models": []}
        ask(url, prompt="x", keep_alive=0.2, stream=False)
        assert loader.n_loads == 2 and loader.n_unloads == 1
        time.sleep(0.5)
        assert loader.n_unloads == 2
        ask(url, prompt="x", keep_alive=-1, stream=False)
        assert requests.get(f"{url}/api/ps").json()["models"][0]["expires_at"] > "2100"


def test_one_load_for_many_and_the_server_answers_meanwhile() -> None:
    model = FakeModel(pace_s=0.02)
    loader = FakeModels(model, load_s=0.5)
    with serving(model, loader=loader) as url:
        threads = [
            threading.Thread(target=ask, args=(url,), kwargs={"prompt": "x", "stream": False})
            for _ in range(12)
        ]
        for t in threads:
            t.start()
        time.sleep(0.1)
        start = time.monotonic()
        assert requests.get(f"{url}/api/version").ok and time.monotonic() - start < 0.2
        for t in threads:
            t.join()
    assert loader.n_loads == 1 and len(model.requests) == 12


def test_a_client_that_leaves_cancels() -> None:
    model = FakeModel(words=["x"] * 1000, pace_s=0.02)
    with serving(model) as url:
        for stream in (True, False):
            before = model.n_cancelled
            host, port = url[7:].split(":")
            with socket.create_connection((host, int(port))) as s:
                body = json.dumps({"model": "mead", "prompt": "x", "stream": stream}).encode()
                s.sendall(
                    b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                    % len(body)
                    + body
                )
                time.sleep(0.3)
            time.sleep(0.3)
            assert model.n_cancelled == before + 1
        assert requests.get(f"{url}/api/version").ok


def test_errors_before_and_after_the_first_piece() -> None:
    with serving(FakeModel(words=[CapacityError("the cache is full", hint="ask for less")])) as url:
        r = ask(url, prompt="x")
        assert r.status_code == 503 and r.json() == {"error": "the cache is full (ask for less)"}
    with serving(FakeModel(words=["a", Bug("at 0x7f1234567890 in /usr/lib/x.py")], pace_s=0.05)) as url:
        lines = [json.loads(line) for line in ask(url, prompt="x").text.splitlines()]
        assert lines[0]["response"] == "a" and lines[1] == {
            "error": "internal error; the server's log has more"
        }
        assert ask(url, prompt="x", stream=False).status_code == 500


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CheckpointError("/secret/x/mead.gguf: cut short at 0xdeadbeef"), 400),
        (CapacityError("no room"), 503),
        (Bug("b"), 500),
        (ValueError("/secret/path"), 500),
    ],
)
def test_errors_of_loading(error: Exception, status: int) -> None:
    with serving(FakeModel()) as url:
        pass
    loader = FakeModels(FakeModel())

    def fail() -> None:
        raise error

    loader.on_load = fail
    with serving(FakeModel(), loader=loader) as url:
        r = ask(url, prompt="x")
        assert r.status_code == status and set(r.json()) == {"error"}
        assert "secret" not in r.text and "deadbeef" not in r.text and "Traceback" not in r.text
        assert ask(url, "chat", messages=[]).status_code == status


def test_unknown_models_look_the_same_whether_or_not_a_file_is_there(models_folder: Path) -> None:
    with serving(FakeModel()) as url:
        r = requests.post(f"{url}/api/generate", json={"model": "meed", "prompt": "x"})
        assert r.status_code == 404 and r.json()["error"] == "model 'meed' not found (did you mean mead?)"
        texts = set()
        for path in (
            models_folder / "mead2.gguf",
            models_folder / "no.gguf",
            "/etc/passwd",
            "/etc/nothing",
            "../x",
            "~/x",
            "a\0b",
        ):
            r = requests.post(f"{url}/api/generate", json={"model": str(path), "prompt": "x"})
            assert r.status_code == 404
            texts.add(r.json()["error"].rsplit("'", 1)[1])
        assert len(texts) == 1
        r = requests.post(f"{url}/api/show", json={"model": "/etc/passwd"})
        assert r.status_code == 404


def test_warnings_and_truncation() -> None:
    with serving(FakeModel()) as url:
        r = ask(url, prompt="x", stream=False, options={"zap": 1, "num_gpu": 3, "a\r\nX-Evil: 1": 2}, extra=1)
        assert r.status_code == 200 and "X-Evil" not in r.headers
        assert r.headers["x-kvasir-warning"].startswith(
            "unknown field 'extra'; unknown option 'zap'; option num_gpu"
        )
        r = ask(url, prompt="x" * 600, stream=False)
        assert r.status_code == 400 and "600" in r.json()["error"] and "512" in r.json()["error"]
        r = ask(url, prompt="x" * 600, stream=False, options={"num_ctx": 100})
        assert r.status_code == 400 and "100" in r.json()["error"]
        r = ask(url, prompt="x" * 600, stream=False, truncate=True)
        assert r.json()["truncated_count"] == 88 and r.headers["x-kvasir-truncated"] == "88"
        r = ask(url, prompt="x" * 600, truncate=True)
        assert r.headers["x-kvasir-truncated"] == "88"


def test_context_goes_before_the_prompt() -> None:
    model = FakeModel()
    with serving(model) as url:
        first = ask(url, prompt="ab", stream=False).json()
        ask(url, prompt="c", stream=False, context=first["context"])
    assert model.requests[-1].context == (97, 98, 100, 101, 102)


HOSTILE = [
    (b"{", 400),
    (b"[]", 400),
    (b"\xff", 400),
    (b'{"model":"mead","prompt":"\\ud800"}', 400),
    (b"[" * 200_000, 400),
    (b'{"model":5}', 400),
    (b"", 400),
    (b'{"model":"mead","options":{"temperature":NaN}}', 400),
    (b'{"prompt":"x"}', 400),
    (b"{}", 400),
]


def test_hostile_bodies() -> None:
    with serving(FakeModel()) as url:
        for path in ("generate", "chat", "show"):
            for raw, status in HOSTILE:
                r = requests.post(f"{url}/api/{path}", data=raw)
                assert r.status_code == status and set(r.json()) == {"error"}, (path, raw[:40], r.text)
        r = requests.post(f"{url}/api/generate", data=b'{"model":"mead","prompt":"' + b"x" * MAX_BODY + b'"}')
        assert r.status_code == 413 and "8 MB" in r.json()["error"]
        r = requests.post(f"{url}/api/generate", data=(b"x" * 65536 for _ in range(300)))
        assert r.status_code == 413
        r = requests.post(f"{url}/api/generate", data=b"x", headers={"Content-Encoding": "gzip"})
        assert r.status_code == 415
        assert requests.get(f"{url}/api/version").ok


def raw(url: str, data: bytes, wait_s: float = 5) -> bytes:
    host, port = url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as s:
        try:
            s.sendall(data)
            return s.recv(65536)
        except (ConnectionError, TimeoutError):
            return b""


def test_hostile_http() -> None:
    with serving(FakeModel()) as url:
        ok = b" HTTP/1.1\r\nHost: localhost\r\n"
        assert b" 200 " not in raw(url, b"GET /" + ok + b"A: " + b"a" * 300_000 + b"\r\n\r\n")
        assert b" 200 " not in raw(url, b"GET /" + b"a" * 8_000_000 + ok + b"\r\n")
        assert b" 200 " not in raw(url, b"GET /" + ok + b"A: b\r\n" * 100_000 + b"\r\n")
        assert b" 200 " not in raw(url, b"POST /api/generate" + ok + b"Content-Length: -5\r\n\r\n{}")
        assert b" 200 " not in raw(
            url, b"POST /api/generate" + ok + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
        )
        assert b" 403 " in raw(url, b"GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n")
        half = [
            socket.create_connection((url[7:].split(":")[0], int(url.rsplit(":", 1)[1]))) for _ in range(100)
        ]
        for s in half:
            s.sendall(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n")
        start = time.monotonic()
        assert requests.get(f"{url}/api/version").ok and time.monotonic() - start < 1
        for s in half:
            s.close()


def test_a_half_sent_head_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvasir.api.front.HEADER_S", 0.3)
    with serving(FakeModel()) as url:
        start = time.monotonic()
        assert raw(url, b"GET / HTTP/1.1\r\nHost: lo") == b"" and time.monotonic() - start < 2
        with requests.Session() as session:
            for _ in range(3):
                assert session.get(url).ok
                time.sleep(0.4)


HOSTS = {
    "localhost": True,
    "localhost:11434": True,
    "127.0.0.1": True,
    "[::1]:5": True,
    "192.168.1.5:11434": True,
    "box.local": True,
    "evil.example.com": False,
    "127.0.0.1.evil.com": False,
    "8.8.8.8": False,
    "evil.com:11434": False,
    "a@localhost": False,
    "localhost.evil.com": False,
    "[::ffff:8.8.8.8]": False,
    "0x7f.1": False,
    "": True,
    "localhost:x": False,
}


def test_hosts() -> None:
    with serving(FakeModel()) as url:
        for host, allowed in HOSTS.items():
            for path in ("/", "/api/tags", "/nothing"):
                r = requests.get(url + path, headers={"Host": host})
                assert (r.status_code != 403) == allowed, (host, r.status_code)


ORIGINS = {
    "http://localhost": True,
    "https://localhost:3000": True,
    "http://127.0.0.1:8080": True,
    "app://obsidian.md": True,
    "tauri://localhost": True,
    "vscode-webview://x": True,
    "file://": True,
    "https://evil.com": False,
    "null": False,
    "http://localhost.evil.com": False,
    "http://evil.com/localhost": False,
    "http://[": False,
}


def test_origins() -> None:
    with serving(FakeModel()) as url:
        for origin, allowed in ORIGINS.items():
            r = requests.get(f"{url}/api/version", headers={"Origin": origin})
            assert (r.status_code == 200) == allowed, origin
            assert (r.headers.get("access-control-allow-origin") == origin) == allowed
            asks = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            }
            r = requests.options(f"{url}/api/chat", headers=asks)
            assert (r.status_code == 204) == allowed, origin


def test_bad_requests_do_not_disturb_good_ones() -> None:
    model = FakeModel(words=["x"] * 60, pace_s=0.02)
    with serving(model) as url:
        texts: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: texts.append(ask(url, prompt="x", stream=False).json()["response"])
            )
            for _ in range(8)
        ]
        for t in threads:
            t.start()
        for _ in range(100):
            assert ask(url, prompt="x", options={"temperature": -1}).status_code == 400
        for t in threads:
            t.join()
    assert texts == ["x" * 60] * 8


def test_a_full_house_says_when_to_come_again() -> None:
    model = FakeModel(words=["x"] * 100, pace_s=0.02)
    with serving(model, max_requests=2) as url:
        threads = [threading.Thread(target=ask, args=(url,), kwargs={"prompt": "x"}) for _ in range(2)]
        for t in threads:
            t.start()
        while len(model.requests) < 2:
            time.sleep(0.01)
        for stream in (True, False):
            r = ask(url, prompt="x", stream=stream)
            assert r.status_code == 503 and int(r.headers["retry-after"]) >= 1
            assert r.json() == {"error": "2 requests are being answered or wait (try again later)"}
        for t in threads:
            t.join()
        assert ask(url, prompt="x", stream=False).ok


def test_what_loading_is_at_can_be_seen() -> None:
    loader = FakeModels(FakeModel(), load_s=0.5)
    with serving(FakeModel(), loader=loader) as url:
        thread = threading.Thread(target=ask, args=(url,), kwargs={"prompt": "x"})
        thread.start()
        while not (models := requests.get(f"{url}/api/ps").json()["models"]):
            time.sleep(0.01)
        assert models[0]["name"] == "mead:latest" and models[0]["stage"] == "reading the file"
        thread.join()
        (model,) = requests.get(f"{url}/api/ps").json()["models"]
        assert "stage" not in model and model["expires_at"]


def test_a_process_that_is_lost_is_no_secret() -> None:
    lost = Lost("the process of mead ended: killed by signal 9", hint="ask again")
    with serving(FakeModel(words=["a", lost], pace_s=0.05)) as url:
        lines = [json.loads(line) for line in ask(url, prompt="x").text.splitlines()]
        assert lines[-1] == {"error": "the process of mead ended: killed by signal 9 (ask again)"}
        assert ask(url, prompt="x", stream=False).status_code == 500


def test_aliases() -> None:
    with serving(FakeModel(), aliases={"llama3:8b": "mead:latest", "*": "mead:latest"}) as url:
        for name in ("llama3:8b", "anything"):
            r = requests.post(f"{url}/api/generate", json={"model": name, "prompt": "x", "stream": False})
            assert r.json()["response"] == "Hello, world" and r.json()["model"] == name


class Slow(FakeModel):
    """Takes its time to check a request, as a large schema does."""

    checking, go_on = threading.Event(), threading.Event()

    def submit(self, request):
        self.checking.set()
        self.go_on.wait(10)
        return super().submit(request)


def test_a_client_that_leaves_while_its_schema_is_compiled_leaves_no_work() -> None:
    model = Slow(words=["x"] * 1000, pace_s=0.02)
    with serving(model) as url:
        with pytest.raises(requests.Timeout):
            body = {"model": "mead", "prompt": "p", "format": {"type": "object"}}
            requests.post(f"{url}/api/generate", json=body, timeout=0.3)
        assert model.checking.is_set()
        time.sleep(0.2)
        model.go_on.set()
        for _ in range(200):
            if model.n_cancelled:
                break
            time.sleep(0.02)
        assert model.n_cancelled == 1
        assert ask(url, "tags").status_code in (200, 405)
