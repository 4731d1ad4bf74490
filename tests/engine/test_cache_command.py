"""`kvasir cache`: what is kept is shown, pinned for good, and removed; mead goes on from what another process
left.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvasir import LLM
from kvasir.api.ollama import parse_generate, to_request
from kvasir.cli.main import main
from kvasir.engine.shelf import cache_folder, folders, read_pins

TEXT = "You know all about networks, and you answer in one sentence. " * 6


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVASIR_CACHE_DISK_GB", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_mead_says_the_same_from_disk() -> None:
    prompt, wish = TEXT + "What is a VLAN?", {"temperature": 0.8, "seed": 4, "max_tokens": 40}
    with LLM("mead") as llm:
        cold = llm.generate(prompt, **wish)[0]
    with LLM("mead", threads=1) as llm:
        warm = llm.generate(prompt, **wish)[0]
        assert llm.stats().disk.n_hits == 1
    assert (cold.metrics.n_cached, warm.token_ids) == (0, cold.token_ids)
    assert warm.metrics.n_cached == (len(warm.prompt_token_ids) - 1) // 16 * 16
    with LLM("mead", kv_format="q8_0") as llm:
        other = llm.generate(prompt, **wish)[0]
    assert other.metrics.n_cached == 0, "another format has other numbers"


def test_a_system_prompt_is_pinned_and_found_by_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "ls"]) == 0 and len(capsys.readouterr().out.splitlines()) == 1
    assert main(["cache", "pin", "mead", TEXT]) == 0
    assert "tokens of mead:latest" in capsys.readouterr().out
    (folder,) = folders(cache_folder())
    (pin,) = read_pins(folder).values()
    assert pin.until is None and pin.text == TEXT[:60].strip()
    assert main(["cache", "ls", "mead"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:2] == ["mead:latest", "1"] and pin.name[:12] in shown[2]
    with LLM("mead") as llm:
        talk = [{"role": "system", "content": TEXT}, {"role": "user", "content": "What is DNS?"}]
        found = llm.chat(talk, max_tokens=4)[0]
        assert found.metrics.n_cached == pin.n_tokens
        assert llm.stats().n_pinned == pin.n_tokens // 16
    assert main(["cache", "unpin", "mead", "nothing"]) == 1
    assert main(["cache", "unpin", "mead", pin.name[:5]]) == 0 and read_pins(folder) == {}
    assert main(["cache", "purge", "mead"]) == 0
    assert "freed" in capsys.readouterr().out and folders(cache_folder()) == []


def test_what_goes_wrong_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (["pin"], "which model"),
        (["pin", "mead"], "give the text to pin"),
        (["pin", "mead", "x", "--raw"], "whole blocks of 16"),
        (["ls", "no-such-model"], "not found"),
        (["unpin", "mead"], "has no pins"),
    ):
        assert main(["cache", *words]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setenv("KVASIR_CACHE_DISK_GB", "0")
    assert main(["cache", "pin", "mead", TEXT]) == 1
    assert "KVASIR_CACHE_DISK_GB is 0" in capsys.readouterr().err


def test_another_process_has_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with LLM("mead") as llm:
        llm.generate(TEXT, max_tokens=1, pin=True)
        disk = llm.model.disk
        while not disk.index.is_mine:
            disk.spool.thread.join(0.01)
        assert main(["cache", "pin", "mead", "Something else that is long enough to be kept. " * 4]) == 1
        assert "another process may run the model" in capsys.readouterr().err


def test_a_request_over_http_may_pin_its_prompt() -> None:
    for sent, pinned in (({"pin": True}, True), ({}, False)):
        asked = parse_generate(json.dumps({"model": "mead", "prompt": "hi", **sent}).encode())
        assert to_request(asked, ("completion",), True).pin is pinned and not asked.warnings
