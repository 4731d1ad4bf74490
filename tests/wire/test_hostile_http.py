"""Bad HTTP beside good requests: the good ones do not notice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
import requests

from kvasir.api.doors import Welcome
from kvasir.errors import UsageError
from tests.wire.fake import FakeModel
from tests.wire.test_server import ask, models_folder, serving

__all__ = ["models_folder"]  # a fixture for all tests here

HEAD = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n"


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def told(url: str, *parts: bytes) -> bytes:
    """What the server says to these bytes, until it closes or stops talking."""
    with connect(url) as s:
        answer = b""
        try:
            for part in parts:
                s.sendall(part)
            s.settimeout(1)
            while data := s.recv(65536):
                answer += data
        except (ConnectionError, TimeoutError):
            pass
        return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


MALFORMED = (
    b"\r\n\r\n",
    b"\x00" * 1000,
    b"\x16\x03\x01\x02\x00" * 50,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /api/version\r\n\r\n",
    GET + b": x\r\n\r\n",
    GET + b"A\r\n\r\n",
    GET + b"A : b\r\n\r\n",
    GET + b"A: \x00\r\n\r\n",
    GET + b"A: b\r\n c\r\n\x01: d\r\n\r\n",
    GET + b"Host: localhost\r\n\r\n",
    b"GET http://evil.example.com/ HTTP/1.1\r\nHost: evil.example.com\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /%zz%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 1e3\r\n\r\n",
    HEAD + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n",
    HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: x\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    HEAD + b"Expect: 200-maybe\r\n\r\n",
    HEAD + b"Range: bytes=" + b"0-1," * 10_000 + b"\r\n\r\n",
    GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
)


def test_malformed_requests() -> None:
    """62, 63: no 5xx, nothing of the inside, and the next client is served."""
    with serving(FakeModel()) as url:
        for data in MALFORMED:
            answer = told(url, data)
            assert status(answer) < 500, (data[:80], answer)
            assert b"Traceback" not in answer and b".py" not in answer, data[:80]
        assert requests.get(f"{url}/api/version", timeout=1).ok


def flood(url: str, part: bytes, times: int, head: bytes = GET) -> Callable[[], None]:
    """A client that sends without end, as long as it is listened to."""

    def run() -> None:
        with connect(url) as s:
            try:
                s.sendall(head)
                for _ in range(times):
                    s.sendall(part)
                    time.sleep(0)
                s.settimeout(5)
                assert b" 200 " not in s.recv(1000)
            except (ConnectionError, TimeoutError):
                pass

    return run


@pytest.mark.parametrize(
    ("head", "part", "times"),
    [
        (GET + b"A: ", b"a" * 65536, 1024),  # 43: a header of 64 MB
        (GET, b"A: b\r\n" * 8192, 100),
        (b"GET /", b"a" * 65536, 128),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n", 1024),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536, 256),
    ],
    ids=[
        "a header of 64 MB",
        "800,000 headers",
        "a path of 8 MB",
        "a body of 64 MB",
        "a chunk's extension of 16 MB",
    ],
)
def test_what_does_not_end_is_cut_and_nobody_notices(head: bytes, part: bytes, times: int) -> None:
    with serving(FakeModel(words=["x"] * 40, pace_s=0.01)) as url:
        clients = [threading.Thread(target=flood(url, part, times, head)) for _ in range(3)]
        for client in clients:
            client.start()
        began = time.monotonic()
        assert ask(url, prompt="x", stream=False).json()["response"] == "x" * 40
        assert time.monotonic() - began < 5
        for client in clients:
            client.join(20)
            assert not client.is_alive()


def test_slow_and_half_clients_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """63: heads and bodies that stop in the middle, and clients that do not read."""
    monkeypatch.setattr("kvasir.api.front.HEADER_S", 0.5)
    monkeypatch.setattr("kvasir.api.http.BODY_STALL_S", 0.5)
    starts = (
        HEAD,
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"G",
    )
    with serving(FakeModel(words=["x"] * 300)) as url:
        half = [connect(url) for _ in range(100)]
        for n, s in enumerate(half):
            s.sendall(starts[n % len(starts)])
        body = b'{"model":"mead","prompt":"x"}'
        unread = [connect(url) for _ in range(20)]
        for s in unread:
            s.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        began = time.monotonic()
        assert ask(url, prompt="x", stream=False).ok and requests.get(f"{url}/api/version").ok
        assert time.monotonic() - began < 5
        for n, s in enumerate(half):
            answer = b""
            try:
                while data := s.recv(65536):
                    answer += data
            except ConnectionError:
                pass
            assert status(answer) in (0, 400, 408), (starts[n % len(starts)], answer)
        for s in (*half, *unread):
            s.close()
        assert requests.get(f"{url}/api/version", timeout=1).ok


def test_pages_for_debugging_are_not_there() -> None:
    """18: what other servers show of themselves."""
    paths = (
        "/debug/pprof/heap",
        "/debug/vars",
        "/docs",
        "/redoc",
        "/server_info",
        "/collective_rpc",
        "/get_server_info",
        "/flush_cache",
        "/dump",
        "/slots",
        "/props",
        "/lora-adapters",
        "/.env",
        "/kvasir/debug/state",
        "/start_profile",
        "/reset_prefix_cache",
        "/sleep",
        "/api/debug",
    )
    with serving(FakeModel()) as url:
        for path in paths:
            for method in ("GET", "POST"):
                r = requests.request(method, url + path, json={})
                assert r.status_code == 404 and "error" in r.json(), path


def test_a_foreign_host_or_origin_reaches_no_path() -> None:
    """3: also where the server listens on every address."""
    with serving(FakeModel(), own_host="0.0.0.0") as url:
        for path in ("/", "/api/tags", "/api/chat", "/v1/models", "/metrics", "/openapi.json", "/nothing"):
            for headers in ({"Host": "evil.example.com"}, {"Origin": "https://evil.example.com"}):
                for method in ("GET", "POST", "OPTIONS"):
                    assert requests.request(method, url + path, headers=headers).status_code == 403, path


def test_further_hosts_and_origins_that_were_allowed() -> None:
    welcome = Welcome(("ai.example.com",), ("https://example.com",))
    with serving(FakeModel(), welcome=welcome) as url:
        for host, code in (("ai.example.com", 200), ("AI.example.com:443", 200), ("example.com", 403)):
            assert requests.get(f"{url}/api/tags", headers={"Host": host}).status_code == code, host
        for origin, code in (("https://example.com", 204), ("http://example.com", 403), ("null", 403)):
            asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            r = requests.options(f"{url}/api/chat", headers=asks)
            assert r.status_code == code, origin
            assert (r.headers.get("access-control-allow-origin") == origin) == (code == 204)
    with serving(FakeModel(), welcome=Welcome(origins=("*",))) as url:
        r = requests.get(f"{url}/api/tags", headers={"Origin": "https://any.where"})
        assert r.status_code == 200 and r.headers["access-control-allow-origin"] == "https://any.where"


@pytest.mark.parametrize("wishes", [{"hosts": ("a b",)}, {"hosts": ("a:1",)}, {"origins": ("example.com",)}])
def test_what_is_no_host_and_no_origin_is_said(wishes: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(UsageError, match="is not"):
        Welcome(**wishes)
