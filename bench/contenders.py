"""Who takes part in bench/rivals.py: Kvasir, and programs with the options of llama.cpp's two benchmarks.

Each answers the same questions of the same file with as many threads.  A rival is a folder with the programs
`llama-bench` and `llama-batched-bench`; they are asked through their options alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from bench.measure import say
from bench.subject import loaded
from kvasir import LLM
from kvasir.backends.base import BLOCK, Batch
from kvasir.backends.cpu import kernels
from kvasir.runner.model import Model

FILL = 0x30  # a byte that is an ordinary number in every format of the cache
BATCH_PROMPT = 128  # tokens of each of several prompts
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Fresh:
    """A process that loaded the model and answered: seconds to its first token, its peak memory."""

    seconds: float
    peak_bytes: int


class Contender(Protocol):
    """One who is measured.  Rates are tokens a second; None where it cannot answer."""

    @property
    def name(self) -> str: ...

    def decode(self, n_tokens: int) -> float | None: ...

    def prefill(self, n_tokens: int) -> float | None: ...

    def batched(self, n_sequences: int, n_tokens: int) -> float | None: ...

    def deep(self, past: int, n_tokens: int) -> float | None: ...

    def fresh(self, n_prompt: int, n_tokens: int, again: bool) -> Fresh | None: ...


# -- Kvasir ---------------------------------------------------------------------------------------

ANSWER = """
import sys
from kvasir import LLM
path, threads, n_prompt, n_tokens = sys.argv[1], *map(int, sys.argv[2:])
prompt = [5 + i * 7 % 200 for i in range(n_prompt)]
with LLM(path, threads=threads) as llm:
    for answer in llm.stream(prompt, temperature=0, max_tokens=n_tokens, ignore_eos=True):
        print(len(answer.token_ids), flush=True)
"""


class Kvasir:
    """Kvasir through `LLM`, in this process; `deep` and `fresh` load the model anew.  Mutable."""

    name = "kvasir"

    def __init__(self, path: str, threads: int, kv_format: str | None = None):
        self.path, self.threads, self.kv_format = path, threads, kv_format
        self._llm: LLM | None = None
        self._kept: tempfile.TemporaryDirectory[str] | None = None
        self._asked = 0

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            self._llm = loaded(self.path, self.threads, self.kv_format)
            self._llm.generate([self._prompt(16)], temperature=0, max_tokens=4, ignore_eos=True)
        return self._llm

    def close(self) -> None:
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def decode(self, n_tokens: int) -> float | None:
        answer = self.llm.generate(
            [self._prompt(8)], temperature=0, max_tokens=n_tokens + 1, ignore_eos=True
        )[0]
        return answer.metrics.decode_rate

    def prefill(self, n_tokens: int) -> float | None:
        answer = self.llm.generate([self._prompt(n_tokens)], temperature=0, max_tokens=1, ignore_eos=True)[0]
        return n_tokens / answer.metrics.prefill_s

    def batched(self, n_sequences: int, n_tokens: int) -> float | None:
        """All sequences together, over steps that gave each of them a token.

        Prompts are read between the first tokens of those that are done, so all need some more.
        """
        prompts = [self._prompt(BATCH_PROMPT) for _ in range(n_sequences)]
        engine: Any = self.llm.model._engine
        step, ends = engine.step, list[tuple[float, int]]()

        def timed() -> Any:
            tokens = step()
            ends.append((perf_counter(), len(tokens)))
            return tokens

        engine.step = timed
        try:
            self.llm.generate(prompts, temperature=0, max_tokens=n_tokens + 8 * n_sequences, ignore_eos=True)
        finally:
            del engine.step
        whole = [(b - a, n) for (a, m), (b, n) in pairwise(ends) if m == n == n_sequences]
        whole = whole[:n_tokens]
        return sum(n for _, n in whole) / sum(s for s, _ in whole)

    def deep(self, past: int, n_tokens: int) -> float | None:
        """Steps of one row behind `past` tokens.  What the cache holds there is made up, and read as ever."""
        self.close()
        made = list[Any]()
        native = kernels()
        cache = native.Cache

        def kept(*words: Any) -> Any:
            made.append(cache(*words))
            return made[-1]

        native.Cache = kept
        n_blocks = -(-(past + n_tokens + 1) // BLOCK)
        try:
            model = Model.load(self.path, threads=self.threads, n_blocks=n_blocks, kv_format=self.kv_format)
        finally:
            native.Cache = cache
        for one in made:
            one.fill(FILL, n_blocks)
        program: Any = model._engine.program
        slot = 0 if any(s.kind == "slot" for s in program.plan.states.values()) else -1
        times = [_step(program, past + i, n_blocks, slot) for i in range(n_tokens + 1)]
        model.close()
        return n_tokens / sum(times[1:])

    def fresh(self, n_prompt: int, n_tokens: int, again: bool) -> Fresh | None:
        """`again`: with what an earlier start left on disk; else with an empty folder for that."""
        self.close()
        if not again or self._kept is None:
            self._kept = tempfile.TemporaryDirectory()
        words = [self.path, self.threads, n_prompt, n_tokens]
        return _process([sys.executable, "-c", ANSWER, *map(str, words)], {"XDG_CACHE_HOME": self._kept.name})

    def _prompt(self, n: int) -> list[int]:
        """A new prompt each time, so that no cache can help."""
        self._asked += 1
        return [5 + (self._asked * 31 + i * 7 + i * i * self._asked % 11) % 200 for i in range(n)]


def _step(program: Any, position: int, n_blocks: int, slot: int) -> float:
    """Seconds of one token's step."""
    batch = Batch(
        tokens=np.array([5 + position % 200], np.int32),
        positions=np.array([position], np.int32),
        starts=np.array([0, 1], np.int32),
        blocks=np.arange(n_blocks, dtype=np.int32)[None],
        slots=np.array([slot], np.int32),
        logit_rows=np.array([0], np.int32),
    )
    begin = perf_counter()
    program.step(batch)
    return perf_counter() - begin


# -- rivals ---------------------------------------------------------------------------------------


class Rival:
    """llama.cpp or a descendant.  `options`: what its `llama-bench` is told beside."""

    def __init__(self, name: str, folder: Path, path: str, threads: int, options: tuple[str, ...] = ()):
        self.name, self.folder, self.path, self.threads, self.options = name, folder, path, threads, options
        told = subprocess.run([folder / "llama-bench", "--help"], capture_output=True, text=True).stdout
        self.has_depth = "--n-depth" in told
        self.cold = ("--no-warmup",) if "--no-warmup" in told else ("-w", "0")

    def decode(self, n_tokens: int) -> float | None:
        return self._bench("-p", "0", "-n", n_tokens)

    def prefill(self, n_tokens: int) -> float | None:
        return self._bench("-p", n_tokens, "-n", "0")

    def deep(self, past: int, n_tokens: int) -> float | None:
        if self.has_depth:
            return self._bench("-p", "0", "-n", n_tokens, "-d", past)
        return self._bench("-p", "0", "-n", "0", "-gp", f"{past},{n_tokens}")

    def batched(self, n_sequences: int, n_tokens: int) -> float | None:
        words = [
            *(self.folder / "llama-batched-bench", "-m", self.path, "-t", self.threads, "-tb", self.threads),
            *("-c", n_sequences * (BATCH_PROMPT + n_tokens), "-b", 2048, "-ub", 512),
            *("-npp", BATCH_PROMPT, "-ntg", n_tokens, "-npl", n_sequences, *self._batch_options()),
        ]
        told = self._run(list(map(str, words)))
        for line in (told.stdout + told.stderr).splitlines():
            cells = line.strip().strip("|").split("|")
            if len(cells) == 10 and cells[0].strip() == str(BATCH_PROMPT):
                return float(cells[7])
        say(f"{self.name}: no figure from llama-batched-bench:\n{told.stderr[-500:]}")
        return None

    def fresh(self, n_prompt: int, n_tokens: int, again: bool) -> Fresh | None:
        tests = ("-p", n_prompt, "-n", 0) if n_tokens <= 1 else ("-p", n_prompt, "-n", n_tokens)
        return _process([*self._words(*tests), *self.cold], {})

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """In a folder of its own, for the logs that some write."""
        with tempfile.TemporaryDirectory() as folder:
            return subprocess.run(words, capture_output=True, text=True, cwd=folder)

    def _words(self, *tests: object) -> list[str]:
        words = [self.folder / "llama-bench", "-m", self.path, "-t", self.threads, "-r", 1, "-o", "json"]
        return list(map(str, [*words, *tests, *self.options]))

    def _batch_options(self) -> tuple[str, ...]:
        """Run-time repacking is the one option of `llama-bench` that the other program spells otherwise."""
        return ("-rtr",) if "-rtr" in self.options else ()

    def _bench(self, *tests: object) -> float | None:
        told = self._run(self._words(*tests))
        try:
            found = json.loads(told.stdout[told.stdout.index("[") :])
        except ValueError:
            say(f"{self.name}: no figure from llama-bench:\n{told.stderr[-500:]}")
            return None
        return float(found[-1]["avg_ts"])


def _process(words: list[str], environment: dict[str, str]) -> Fresh | None:
    """Runs a program to its end; its first line that tells a result is the first token."""
    begin, seconds, peak = perf_counter(), 0.0, 0
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True,
        env={**os.environ, **environment},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        for line in run.stdout:
            if not seconds and ('"avg_ts"' in line or line.strip() == "1"):
                seconds = perf_counter() - begin
            peak = max(peak, _peak_bytes(run.pid))
    if not seconds or run.returncode:
        say(f"{words[0]} gave no answer and ended with {run.returncode}")
        return None
    return Fresh(seconds, peak)


def _peak_bytes(pid: int) -> int:
    """The most memory a running process has had; 0 when it has just ended.

    (What wait4 tells counts the memory of the parent from before exec.)
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), 0)
