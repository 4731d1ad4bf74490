"""How long a user waits at first: `import kvasir`, `kvasir run mead "hi"` until its first letter, and
`kvasir serve` until it has answered `/api/version`.

Every run is a fresh process; the files are in the page cache.  `python bench/startup.py [--runs 7]`
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep
from urllib.error import URLError
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, as_installed, machine, repeat, report

TIMED_IMPORT = "from time import perf_counter as t; a = t(); {}; print(t() - a)"
IMPORT_BAR_S, FIRST_TOKEN_BAR_S, FIRST_ANSWER_BAR_S = 0.15, 1.0, 0.5


def import_s(statement: str) -> float:
    """Seconds that a statement takes in a fresh interpreter, the interpreter's own start aside."""
    words = [sys.executable, "-c", TIMED_IMPORT.format(statement)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def first_token_s(model: str, prompt: str) -> float:
    """Seconds from the start of `kvasir run` to the first byte of its answer, all included."""
    command = Path(sys.executable).parent / "kvasir"
    begin = perf_counter()
    with subprocess.Popen(
        [command, "run", model, prompt],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ,
    ) as run:
        assert run.stdout is not None
        first = run.stdout.read(1)
        took = perf_counter() - begin
        while run.stdout.read(1 << 16):
            pass
    if not first or run.returncode:
        raise SystemExit(f"kvasir run {model} wrote nothing, or ended with status {run.returncode}")
    return took


def first_answer_s() -> float:
    """Seconds from the start of `kvasir serve` to the last byte of its first answer, all included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).parent / "kvasir"
    begin = perf_counter()
    with subprocess.Popen([command, "serve", "--port", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None:
                try:
                    with urlopen(f"http://127.0.0.1:{port}/api/version") as answer:
                        answer.read()
                    return perf_counter() - begin
                except URLError:
                    sleep(0.002)  # it does not listen yet
            raise SystemExit(f"kvasir serve ended with status {server.returncode}")
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--model", default="mead")
    args = parser.parse_args()
    as_installed()
    about = machine()
    rows = []
    cases = [
        ("import kvasir", lambda: import_s("import kvasir"), IMPORT_BAR_S),
        ("from kvasir import LLM", lambda: import_s("from kvasir import LLM"), None),
        (
            f'kvasir run {args.model} "hi", first letter',
            lambda: first_token_s(args.model, "hi"),
            FIRST_TOKEN_BAR_S,
        ),
        ("kvasir serve, first answer", first_answer_s, FIRST_ANSWER_BAR_S),
    ]
    for what, once, bar in cases:
        took: Spread = repeat(args.runs, once, what)
        rows.append(
            {"what": what, "seconds": took, "bar": bar, "met": None if bar is None else took.median < bar}
        )
    report("start-up, in seconds", about, ("what", "seconds", "bar", "met"), rows)


if __name__ == "__main__":
    main()
