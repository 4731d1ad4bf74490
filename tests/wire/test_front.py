"""A server answers before its application is there, and opens it meanwhile."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from http.client import HTTPConnection

import h11
import pytest
from starlette.responses import PlainTextResponse

import kvasir
from kvasir.api.doors import Welcome
from kvasir.api.drain import Draining
from kvasir.api.front import Rising, Swift, configured
from kvasir.api.measures import Measures
from kvasir.chat import Delta, Finished
from kvasir.cli.serving import run
from kvasir.errors import ModelError
from kvasir.runner.stream import Stream
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


def test_pieces_are_written_as_h11_writes_them():
    def written(connection):
        connection.receive_data(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            pass
        events = [
            h11.Response(status_code=200, headers=[("content-type", "text/event-stream")]),
            *(h11.Data(data=data) for data in (b"a", b"", b"b" * 1000, "þ".encode())),
            h11.EndOfMessage(),
        ]
        return [connection.send(event) for event in events], connection.our_state

    assert written(Swift(h11.SERVER)) == written(h11.Connection(h11.SERVER))


def test_a_body_of_known_length_is_held_to_it():
    connection = Swift(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass
    connection.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"too long"))


def test_the_pieces_of_a_step_wake_the_loop_once():
    streams = [Stream(1, (), lambda _: None) for _ in range(3)]

    async def all_of(stream):
        return [event async for event in stream]

    async def told():
        loop, calls = asyncio.get_running_loop(), []
        readers = [asyncio.ensure_future(all_of(stream)) for stream in streams]
        await asyncio.sleep(0)  # they wait
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *what: (calls.append(what), wake(*what))
        rings = {stream.add(Delta("a")) for stream in streams}
        assert len(rings) == 1 and not calls
        rings.pop()()
        for stream in streams:
            stream.put(Finished("stop"))
        assert len(calls) == 1  # nobody sleeps who has been woken
        return await asyncio.wait_for(asyncio.gather(*readers), 10)

    for events in asyncio.run(told()):
        assert [type(event) for event in events] == [Delta, Finished]
