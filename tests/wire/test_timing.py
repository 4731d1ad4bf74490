"""What the time of an answer tells: nothing about a key, and nothing about another key's prompts.

Times are compared by the chance that one of a kind is shorter than one of the other: one half where nobody
can tell them apart.  The bounds are many standard deviations wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import requests

from kvasir.api.keys import Keyring, add_key
from tests.wire.real import real_server

N_TRIES, N_GUESSES = 20_000, 24


def chance(shorter: Sequence[float], longer: Sequence[float]) -> float:
    """That one of the first is less than one of the second; ties count half (Mann and Whitney's U)."""
    known = np.sort(np.asarray(longer))
    above = len(known) - np.searchsorted(known, shorter, "right")
    ties = np.searchsorted(known, shorter, "right") - np.searchsorted(known, shorter, "left")
    return float((above + ties / 2).mean() / len(known))


def test_a_nearly_right_key_is_refused_as_fast_as_any(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys.json")
    key = add_key(ring.path, "a")
    last = "A" if key[-1] != "A" else "B"
    near, far = key[:-1] + last, "kv-" + "x" * (len(key) - 3)
    took: dict[str, list[float]] = {near: [], far: []}
    for n in range(N_TRIES):
        for text in (near, far) if n % 2 else (far, near):
            began = perf_counter_ns()
            found = ring.find([text])
            took[text].append(perf_counter_ns() - began)
            assert found is None
    assert abs(chance(took[near], took[far]) - 0.5) < 0.03


def test_guessing_anothers_prompt_is_not_quicker(tmp_path: Path) -> None:
    """One key has sent a text, another guesses it: as slow as a text that nobody sent, and nothing cached.

    The owner does notice, so the measurement can.
    """
    ring = Keyring(tmp_path / "keys.json")
    owner, guesser = add_key(ring.path, "owner"), add_key(ring.path, "guesser")
    took: dict[str, list[float]] = {"right": [], "wrong": [], "own": []}

    with real_server(keyring=ring) as url, requests.Session() as session:

        def ask(key: str, text: str) -> tuple[float, int]:
            body: dict[str, Any] = {"model": "mead", "prompt": text, "raw": True, "stream": False}
            body["options"] = {"num_predict": 1}
            began = perf_counter()
            got = session.post(
                f"{url}/api/generate", json=body, headers={"Authorization": f"Bearer {key}"}
            ).json()
            return perf_counter() - began, got.get("cached_count", 0)

        ask(owner, "hi")  # loads the model
        for n in range(N_GUESSES):
            # As many tokens each: with other words the shorter text would be told from the longer one.
            secret, other = (f"The password of {n} is {n * 7919 + add}. " * 18 for add in (200_000, 500_000))
            ask(owner, secret)
            for kind, text in (("right", secret), ("wrong", other))[:: 1 if n % 2 else -1]:
                seconds, n_cached = ask(guesser, text)
                took[kind].append(seconds)
                assert n_cached == 0
            took["own"].append(ask(owner, secret)[0])
    assert chance(took["own"], took["wrong"]) > 0.8
    assert abs(chance(took["right"], took["wrong"]) - 0.5) < 0.3
