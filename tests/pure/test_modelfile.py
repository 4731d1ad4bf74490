"""Modelfiles and names: what people write, what comes of it, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir.api.create import checked, read_words
from kvasir.chat import ChatRequest, Message
from kvasir.errors import CapacityError, UsageError
from kvasir.sampling import SamplingParams
from kvasir.store.blobs import Upload, room
from kvasir.store.library import tidy
from kvasir.store.made import Made, Turn
from kvasir.store.manifests import read_manifest, write_manifest
from kvasir.store.modelfile import parse_modelfile, write_modelfile
from kvasir.store.name import canonical, parse_name

TEXT = '''# a pirate
FROM mead

parameter temperature 0.5
PARAMETER stop "<|end|>"
PARAMETER stop Human:
PARAMETER num_ctx 256
SYSTEM """You are a pirate.
Say "Arr".
"""
TEMPLATE "{{ .System }} {{ .Prompt }}
{{ .Response }}"
MESSAGE user Who are you?
MESSAGE assistant """A pirate."""
LICENSE MIT
LICENSE """Apache
2.0"""
ADAPTER ./lora.gguf
'''


def test_everything_that_a_modelfile_says() -> None:
    said = parse_modelfile(TEXT)
    assert said.bases == ("mead",)
    assert said.parameters == {"temperature": ("0.5",), "stop": ("<|end|>", "Human:"), "num_ctx": ("256",)}
    assert said.system == 'You are a pirate.\nSay "Arr".\n'
    assert said.template == "{{ .System }} {{ .Prompt }}\n{{ .Response }}"
    assert said.messages == (Turn("user", "Who are you?"), Turn("assistant", "A pirate."))
    assert said.license == ("MIT", "Apache\n2.0") and said.others == (("ADAPTER", "./lora.gguf"),)
    assert read_words(said.parameters) == {"temperature": 0.5, "stop": ["<|end|>", "Human:"], "num_ctx": 256}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no FROM"),
        ("SYSTEM x", "no FROM"),
        ("FORM mead", "line 1: the instruction 'FORM' is unknown (did you mean FROM?)"),
        ("FROM mead\nPARAMETER temperature", "line 2: PARAMETER takes a name and a value"),
        ("FROM mead\nMESSAGE king x", "line 2: the role of a MESSAGE"),
        ('FROM mead\n\nSYSTEM """x\ny', "line 3: the quote after SYSTEM is not closed"),
        ("FROM", "line 1: FROM says nothing"),
        ("FROM mead\n" + "#" * (1 << 20), "characters, the limit is"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_modelfile(text)
    assert says in str(caught.value)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("C",)) | st.just("\n"), max_size=30).filter(
    lambda t: '"""' not in t and not t.endswith('"') and t.strip() and "\x85" not in t
)


@given(texts, texts, st.lists(texts, max_size=2), st.floats(0, 1), st.integers(1, 99))
def test_what_is_written_is_read_again(
    system: str, turn: str, license: list[str], heat: float, top: int
) -> None:
    made = Made(
        "mead:latest",
        system=system,
        parameters={"temperature": heat, "top_k": top, "stop": ["a b", "c"]},
        messages=(Turn("user", turn),),
        license=tuple(license),
    )
    said = parse_modelfile(write_modelfile("mead", made))
    assert (said.system, said.messages, said.license) == (made.system, made.messages, made.license)
    assert checked(read_words(said.parameters)) == made.parameters


def test_names() -> None:
    for text, want in (
        ("mead", "mead:latest"),
        ("library/mead", "mead:latest"),
        ("registry.ollama.ai/library/mead:8b", "mead:8b"),
        ("me/x:q4", "me/x:q4"),
        ("hf.co/me/x", "hf.co/me/x:latest"),
        ("localhost:5000/me/x", "localhost:5000/me/x:latest"),
    ):
        assert str(parse_name(text)) == canonical(text) == want
    for text in (
        "",
        ":",
        "a:",
        "/a",
        "a//b",
        "a/b/c/d",
        "..",
        "a/../b",
        "a b",
        "é",
        "a" * 81,
        ".x",
        "x\0",
        "a\n",
    ):
        with pytest.raises(UsageError, match="is not a name"):
            parse_name(text)
        assert canonical(text) == text


def test_what_a_name_adds_to_a_conversation() -> None:
    made = Made("m", system="S", messages=(Turn("user", "a"), Turn("assistant", "b")))
    ask = ChatRequest(SamplingParams(), messages=(Message("user", "x"),))
    assert [m.content for m in made.applied(ask).messages] == ["S", "a", "b", "x"]
    own = ChatRequest(SamplingParams(), messages=(Message("system", "O"), Message("user", "x")))
    assert [m.content for m in made.applied(own).messages] == ["O", "a", "b", "x"]
    later = ChatRequest(SamplingParams(), messages=ask.messages, context=(1, 2))
    assert made.applied(later) is later
    raw = ChatRequest(SamplingParams(), prompt="x")
    assert made.applied(raw) is raw


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a" / "latest.json"
    write_manifest(path, Made("mead:latest", system="one"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(UsageError, match="No space left"):
            write_manifest(path, Made("mead:latest", system="two"))
    assert read_manifest(path).system == "one" and [p.name for p in path.parent.iterdir()] == ["latest.json"]


def test_an_upload_that_is_given_up_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KVASIR_MODELS", str(tmp_path))
    upload = Upload("sha256:" + "0" * 64)
    upload.write(b"abc")
    upload.drop()
    upload.drop()
    assert list((tmp_path / "blobs").iterdir()) == []
    with pytest.raises(CapacityError, match="stays free"):
        room(tmp_path, 10**18)


def test_what_nobody_needs_goes_after_a_day(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KVASIR_MODELS", str(tmp_path))
    tidy()
    assert list(tmp_path.iterdir()) == []
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    write_manifest(tmp_path / "manifests" / "x" / "latest.json", Made("blobs/sha256-used"))
    for name in ("sha256-used", "sha256-unused", ".sha256-cut.1.part", "sha256-new"):
        (blobs / name).write_bytes(b"x")
        if name != "sha256-new":
            os.utime(blobs / name, (1, 1))
    tidy()
    assert sorted(p.name for p in blobs.iterdir()) == ["sha256-new", "sha256-used"]
