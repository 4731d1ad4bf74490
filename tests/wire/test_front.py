"""A server answers before its application is there, and opens it meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from http.client import HTTPConnection

import pytest
from starlette.responses import PlainTextResponse

import kvasir
from kvasir.api.doors import Welcome
from kvasir.api.drain import Draining
from kvasir.api.front import Rising, configured
from kvasir.api.measures import Measures
from kvasir.cli.serving import run
from kvasir.errors import ModelError
from kvasir.settings import Address


@pytest.fixture
def rising():
    """A server whose application nobody has given yet: its port, the application's place, its loop's call."""
    place, started = Rising("127.0.0.1", Welcome(), Measures()), threading.Event()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    server = Draining(configured(place, Address("127.0.0.1", port), False), 1.0, started_up=started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert started.wait(10)
    yield port, place
    server.should_exit = True
    place.give(PlainTextResponse("the application"))
    thread.join(10)
    assert not thread.is_alive()


def asked(port, path="/api/version", method="GET", **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    return connection


def test_the_version_is_told_before_the_application_is_there(rising):
    port, _ = rising
    answer = asked(port).getresponse()
    assert answer.status == 200
    assert answer.getheader("content-type") == "application/json; charset=utf-8"
    assert answer.read() == f'{{"version":"{kvasir.__version__}"}}'.encode()


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/api/tags", "GET", {}),
        ("/api/version", "POST", {}),
        ("/api/version", "GET", {"Host": "rebound.example.com"}),
        ("/api/version", "GET", {"Origin": "http://rebound.example.com"}),
    ],
)
def test_all_else_waits_for_the_application(rising, path, method, headers):
    port, place = rising
    waiting = asked(port, path, method, **headers)
    assert asked(port).getresponse().status == 200  # so the one before has been looked at
    waiting.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.sock.recv(1)
    waiting.sock.settimeout(10)
    place.give(PlainTextResponse("the application"))  # from a thread: the loop is woken by the next request
    asked(port).getresponse()
    assert waiting.getresponse().read() == b"the application"


def test_a_house_that_cannot_be_opened_ends_the_server():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def open_house(measures):
        raise ModelError("no such house")

    begin = time.monotonic()
    with pytest.raises(ModelError, match="no such house"):
        run(listener, Address("127.0.0.1", listener.getsockname()[1]), Welcome(), False, 5.0, open_house)
    assert time.monotonic() - begin < 5
