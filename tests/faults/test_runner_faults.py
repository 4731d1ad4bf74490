"""What happens to everybody else when the process of a model dies, hangs, or does not get up."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvasir.engine.segments import scan, segments_of
from kvasir.engine.shelf import cache_folder, folders
from kvasir.runner import registry
from tests.faults.scene import LONG, N_STREAMS, Client, Scene, ended_at, fault, scene, write_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_models(path)
    return path


@pytest.fixture(scope="module")
def stage(folder: Path) -> Iterator[Scene]:
    before = os.environ.get("KVASIR_MODELS")
    os.environ["KVASIR_MODELS"] = str(folder)
    try:
        with scene() as s:
            s.answer("two")
            yield s
    finally:
        os.environ.pop("KVASIR_MODELS")
        if before is not None:
            os.environ["KVASIR_MODELS"] = before


def crowd(stage: Scene, prompt: str = "a", n_tokens: int = 20_000) -> list[Client]:
    return [stage.ask("one", f"{n}{prompt}", n_tokens, stream=n % 4 > 0) for n in range(N_STREAMS)]


@pytest.mark.parametrize(
    "spec",
    [
        "runner.load:1:kill", "runner.repack:1:segv", "runner.tokens:9:exit", "runner.prefill:5:kill",
        "runner.decode:300:kill", "runner.send:40:segv", "runner.send:60:oserror",
    ],
)  # fmt: skip
def test_a_process_that_ends_takes_nobody_with_it(stage: Scene, spec: str) -> None:
    alone = stage.answer("two", "b", 600)
    stage.unload("one")
    with fault(spec.replace(":", "@one:", 1)):
        other = stage.ask("two", "b", 600)
        clients = crowd(stage, LONG if "prefill" in spec else "a")
        for client in clients:
            client.wait()
    for client in clients:
        assert "the process of one:latest ended" in client.error, client
        assert client.status == (200 if client.stream and client.pieces[:-1] else 500), client
    assert other.wait().done and other.text == alone
    assert len(stage.answer("one", "c", 5)) > 0


@pytest.mark.parametrize("action", ["raise", "memory"])
def test_a_step_that_fails_ends_its_answers_and_not_the_process(stage: Scene, action: str) -> None:
    stage.unload("one")
    with fault(f"runner.decode@one:300:{action}"):
        clients = [client.wait() for client in crowd(stage, n_tokens=2000)]
    assert any(client.error for client in clients) and all(client.error or client.done for client in clients)
    process = stage.process("one")
    assert stage.answer("one", "c", 5) and stage.models.get("one") is process
    process.check()


def test_a_process_killed_while_it_writes_a_block_to_disk(
    stage: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everyone is told, the next process begins with the blocks that were whole, and says the same."""
    monkeypatch.setenv("KVASIR_CACHE_DISK_GB", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    alone, cold = stage.answer("two", "b", 600), stage.answer("one", LONG, 30)
    for n in range(3):
        stage.unload("one")
        with fault(f"cache.write@one:{20 + n}:kill"):
            other = stage.ask("two", "b", 600)
            clients = crowd(stage, n_tokens=32_000)  # more than ends before the next one's blocks are written
            stage.process("one")
            clients.append(stage.ask("one", f"{n}{LONG}", 20_000, pin=True))
            for client in clients:
                assert "killed by signal 9 (SIGKILL" in client.wait().error, client
        assert other.wait().done and other.text == alone
        (path,) = segments_of(next(iter(folders(cache_folder()))))
        whole, end, _ = scan(path, None)
        assert len(whole) >= 19 and path.stat().st_size > end, "the file ends within a block"
        assert stage.answer("one", LONG, 30) == cold


def test_a_process_killed_from_outside(stage: Scene) -> None:
    process = stage.process("one")
    clients = crowd(stage)
    while process.pulse.n_running < N_STREAMS:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    died_at = ended_at(process.pid)
    for client in clients:
        assert "killed by signal 9 (SIGKILL" in client.wait().error
        assert client.ended_at - died_at < 5, "a second on a machine that does nothing else"
    assert stage.process("one").pid != process.pid


@pytest.mark.parametrize("action", ["stop", "hang"])
def test_a_process_that_hangs_is_replaced(stage: Scene, action: str) -> None:
    stage.unload("one")
    with fault(f"runner.decode@one:100:{action}"):
        client = stage.ask("one", "a", 20_000)
        alone = stage.answer("two", "b", 100)
        assert "it has" in client.wait(30).error
    assert stage.answer("one", "c", 5) and stage.answer("two", "b", 100) == alone


def test_a_model_that_dies_at_load_is_left_alone_for_a_while(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.unload("one")
    monkeypatch.setattr(registry, "WAIT_S", 1.5)
    with fault("runner.load@one:1:kill"):
        for _ in range(registry.DEATHS):
            client = stage.ask("one").wait()
            assert client.status == 500 and "while it was loading: killed by signal 9" in client.error
        client = stage.ask("one").wait()
        assert client.status == 503 and "5 times running" in client.error and "signal 9" in client.error
        assert int(client.headers["retry-after"]) >= 1
    time.sleep(1.6)
    assert stage.answer("one", "c", 5)


def test_a_client_that_leaves_frees_its_blocks(stage: Scene) -> None:
    process = stage.process("one")
    for body in (b'"prompt":"a"', b'"prompt":"a","stream":false'):
        host, port = stage.url.removeprefix("http://").split(":")
        data = b'{"model":"one","raw":true,"options":{"num_predict":30000},%s}' % body
        with socket.create_connection((host, int(port))) as s:
            head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            s.sendall(head % len(data) + data)
            while not process.pulse.n_running:
                time.sleep(0.005)
        steps = process.pulse.steps
        while process.pulse.n_running:
            time.sleep(0.005)
        assert process.pulse.n_free == process.pulse.n_blocks
        assert process.pulse.steps - steps < 20_000
    process.check()
