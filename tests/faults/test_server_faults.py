"""`kvasir serve` as a process: how it ends, by itself and by force."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.faults.scene import write_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_models(path)
    return path


@contextmanager
def served(folder: Path, *words: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and its address."""
    command = [sys.executable, "-c", "import sys; from kvasir.cli import main; sys.exit(main())", "serve"]
    root = str(Path(__file__).resolve().parent.parent.parent)
    run = subprocess.Popen(
        [*command, "--port", str(port), *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KVASIR_MODELS": str(folder), "KVASIR_THREADS": "1", "PYTHONPATH": root},
    )
    assert run.stderr
    try:
        first = run.stderr.readline()
        assert "listens on" in first, first + run.stderr.read()
        yield run, first.split()[-1]
    finally:
        run.kill()
        run.wait()
        run.stderr.close()


def lines(url: str, n_tokens: int) -> queue.Queue[dict[str, object]]:
    """The lines of an answer as they come; the last one has `end`."""
    found: queue.Queue[dict[str, object]] = queue.Queue()

    def run() -> None:
        body = {"model": "one", "prompt": "a", "raw": True, "options": {"num_predict": n_tokens}}
        try:
            with requests.post(f"{url}/api/generate", json=body, stream=True, timeout=60) as r:
                for line in r.iter_lines():
                    found.put(json.loads(line))
        except requests.RequestException as error:
            found.put({"broken": repr(error)})
        found.put({"end": True})

    threading.Thread(target=run, daemon=True).start()
    return found


def rest(found: queue.Queue[dict[str, object]]) -> list[dict[str, object]]:
    said: list[dict[str, object]] = []
    while "end" not in (said[-1] if said else {}):
        said.append(found.get(timeout=60))
    return said[:-1]


def children(pid: int) -> list[int]:
    """All processes below `pid`."""
    found, todo = [], [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*"):
            below = [int(word) for word in (task / "children").read_text().split()]
            found += below
            todo += below
    return found


def test_sigterm_lets_answers_finish(folder: Path) -> None:
    with served(folder) as (run, url):
        answer = lines(url, 3000)
        answer.get(timeout=60)
        run.send_signal(signal.SIGTERM)
        said = rest(answer)
        assert said[-1].get("done") and said[-1]["eval_count"] == 3000
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/api/version", timeout=5)
        assert run.wait(10) == 0
        assert run.stderr and "1 answer may finish within 25 s" in run.stderr.read()


def test_what_is_not_done_after_the_grace_is_told_so(folder: Path) -> None:
    with served(folder, "--grace", "0.5") as (run, url):
        answer = lines(url, 30_000)
        answer.get(timeout=60)
        run.send_signal(signal.SIGTERM)
        assert "the server is stopping" in str(rest(answer)[-1].get("error"))
        assert run.wait(10) == 0


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    with served(folder) as (run, url):
        answer = lines(url, 30_000)
        answer.get(timeout=60)
        run.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        run.send_signal(signal.SIGTERM)
        run.wait(5)
        said = rest(answer)
        assert not said or not said[-1].get("done")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are counted in /proc")
def test_a_killed_server_leaves_no_process_and_no_port(folder: Path) -> None:
    with served(folder) as (run, url):
        lines(url, 30_000).get(timeout=60)
        body = {"model": "mead", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        assert requests.post(
            f"{url}/api/chat", json=body, timeout=60
        ).ok  # its template has a process as well
        below = children(run.pid)
        assert len(below) >= 3
        os.kill(below[0], signal.SIGSTOP)  # one that stands still goes too
        run.kill()
        run.wait()
        with served(folder, port=int(url.rsplit(":", 1)[1])) as (_, again):
            assert again == url and requests.get(f"{url}/api/version", timeout=5).ok
        end = time.monotonic() + 10
        while alive := [pid for pid in below if Path(f"/proc/{pid}/cmdline").exists() and not zombie(pid)]:
            assert time.monotonic() < end, alive
            time.sleep(0.02)


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
