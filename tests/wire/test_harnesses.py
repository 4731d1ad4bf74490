"""LiteLLM and lm-eval, unmodified, against a real server: with an environment of their own (`make clients`),
since they need other versions of what the tests need, and much room.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvasir.chat import ChatRequest, Delta, Finished
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from tests.docs import ROOT
from tests.wire import pages
from tests.wire.real import real_server

PYTHON = ROOT / ".clients" / "venv" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="their environment is not here (make clients)")
ALONE = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
DOCUMENTS: list[dict[str, Any]] = [
    {"question": "DNS turns names into", "choices": ["IP addresses", "passwords"], "answer": 0},
    {"question": "A VLAN divides a", "choices": ["keyboard", "network", "letter"], "answer": 1},
    {"question": "A router passes packets between", "choices": ["networks", "songs"], "answer": 0},
    {"question": "The opposite of up is", "choices": ["blue", "down"], "answer": 1},
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with real_server() as address:
        yield address


@pytest.fixture(scope="module")
def url_for_any_name() -> Iterator[str]:
    with real_server(aliases={"*": "mead"}) as address:
        yield address


def last_line(script: str, *words: str) -> str:
    """What a program beside this file says at its end, run by the clients' Python."""
    program = Path(__file__).with_name(script)
    run = subprocess.run([PYTHON, program, *words], capture_output=True, text=True, timeout=300, env=ALONE)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.strip().splitlines()[-1]


def test_litellm(url: str) -> None:
    assert last_line("litellm_client.py", url) == "all is well"


def test_what_lm_eval_measures_is_what_the_model_says_in_process(url_for_any_name: str) -> None:
    told = json.loads(last_line("lm_eval_client.py", url_for_any_name, json.dumps(DOCUMENTS)))
    model = Model.load("mead", threads=1)
    try:
        for document, choices, written in zip(DOCUMENTS, told["choices"], told["written"], strict=True):
            own = [said(model, document["question"], f" {choice}") for choice in document["choices"]]
            assert [tuple(each) for each in choices] == own
            assert written == continued(model, document["question"])
    finally:
        model.close()
    best = [max(range(len(c)), key=lambda i, c=c: c[i][0]) for c in told["choices"]]
    right = [i == document["answer"] for i, document in zip(best, DOCUMENTS, strict=True)]
    assert told["accuracy"] == sum(right) / len(right)


def tokens(model: Model, text: str) -> list[int]:
    return model.tokenize(ChatRequest(SamplingParams(), prompt=text, add_special_tokens=False))


def said(model: Model, before: str, after: str) -> tuple[float, bool]:
    """The log-probability of `after`, and whether the model would write it."""
    n_before, ids = len(tokens(model, before)), tokens(model, before + after)
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    (*_, end) = list(model.submit(ChatRequest(params, prompt=tuple(ids))))
    assert isinstance(end, Finished)
    scored = [each for each in end.prompt_logprobs[n_before:] if each]
    return sum(each.logprob for each in scored), all(each.logprob == each.top[0][1] for each in scored)


def continued(model: Model, before: str) -> str:
    params = SamplingParams(max_tokens=12, temperature=0, stop=("\n",))
    events = model.submit(ChatRequest(params, prompt=tuple(tokens(model, before))))
    return "".join(event.text for event in events if isinstance(event, Delta))


@pytest.mark.parametrize(("page", "says"), [("litellm.md", "True"), ("lm-eval.md", "accuracy: ")])
def test_the_pages(url_for_any_name: str, page: str, says: str) -> None:
    (printed,) = pages.output(page, url_for_any_name, PYTHON)
    lines = printed.strip().splitlines()
    assert lines and says in lines[-1] and "False" not in printed
