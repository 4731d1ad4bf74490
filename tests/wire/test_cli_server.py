"""The commands that talk to a server, and those that change which models there are."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from kvasir.cli.completion import SHELLS, complete
from kvasir.cli.main import COMMANDS, main
from kvasir.cli.ps import processor, table, until_when
from kvasir.cli.remote import server_address
from kvasir.cli.top import frame
from kvasir.settings import Address, Settings
from tests.adapter_files import mead
from tests.pure.test_cli import Stdin
from tests.wire.real import encoder, real_server

ROOT = Path(__file__).parents[2]
MODELFILE = '''FROM mead
PARAMETER temperature 0
PARAMETER num_predict 4
SYSTEM """Be brief."""
MESSAGE user hi
MESSAGE assistant hello
LICENSE none
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("models")
        patch.setenv("KVASIR_MODELS", str(path))
        patch.setenv("KVASIR_HOST", "127.0.0.1:1")
        yield path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with real_server() as address:
        yield address


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(tty=True))


@pytest.fixture
def there(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KVASIR_HOST", url)
    return url


def told(capsys, *words: str, code: int = 0) -> str:
    assert main(list(words)) == code
    out = capsys.readouterr()
    return out.out if code == 0 else out.err


def test_ps_and_stop(there: str, capsys) -> None:
    assert told(capsys, "ps").split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    requests.post(f"{there}/api/generate", json={"model": "mead"})
    head, line = told(capsys, "ps").splitlines()
    assert line.startswith("mead:latest ") and "100% CPU" in line and line.endswith(" from now")
    assert head.index("PROCESSOR") == line.index("100% CPU") and "4 minutes" in line
    assert told(capsys, "stop", "mead") == ""
    for _ in range(400):
        if not requests.get(f"{there}/api/ps").json()["models"]:
            break
    assert len(told(capsys, "ps").splitlines()) == 1
    assert "not found (did you mean mead?)" in told(capsys, "stop", "meed", code=1)


def test_without_a_server(folder: Path, capsys) -> None:
    for words in (["ps"], ["stop", "mead"], ["top", "--once"]):
        err = told(capsys, *words, code=1)
        assert err == "kvasir: no server answers on 127.0.0.1:1 (start one with `kvasir serve`)\n"


def test_where_the_server_is() -> None:
    own = Settings(host=Address("10.0.0.1", 5))
    assert server_address(own, {"KVASIR_HOST": "x", "OLLAMA_HOST": "1.2.3.4:9"}) == own.host
    assert server_address(Settings(), {"OLLAMA_HOST": "1.2.3.4:9"}) == Address("1.2.3.4", 9)
    assert server_address(Settings(), {"OLLAMA_HOST": "http://0.0.0.0:9"}) == Address("127.0.0.1", 9)
    assert server_address(Settings(), {}) == Address("127.0.0.1", 11434)


def test_a_model_is_made_shown_run_copied_and_deleted(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "Modelfile").write_text(MODELFILE)
    assert main(["create", "brief", "-f", str(tmp_path / "Modelfile")]) == 0
    assert capsys.readouterr().err == "writing manifest\nsuccess\n"
    assert "Be brief." in told(capsys, "show", "brief", "--system")
    assert "temperature                    0" in told(capsys, "show", "brief", "--parameters")
    assert told(capsys, "show", "brief", "--license") == "none\n"
    made = told(capsys, "show", "brief", "--modelfile")
    assert "FROM mead:latest" in made and "MESSAGE assistant hello" in made
    whole = told(capsys, "show", "brief", "-v")
    assert "Parameters" in whole and "tokenizer.ggml.model" in whole and "Tensors" in whole
    assert "at a time" in told(capsys, "show", "brief", "--system", "--license", code=1)
    assert "brief:latest" in told(capsys, "list") and "mead" not in told(capsys, "ls", "bri")
    assert main(["run", "brief", "What is DNS?", "--verbose"]) == 0
    assert "eval count:           4 token(s)" in capsys.readouterr().err
    assert main(["run", "brief", "What is DNS?", "--verbose", "--num-predict", "2"]) == 0
    assert "eval count:           2 token(s)" in capsys.readouterr().err
    assert told(capsys, "cp", "brief", "me/other:1") == "copied 'brief' to 'me/other:1'\n"
    assert told(capsys, "rm", "brief", "me/other:1") == "deleted 'brief'\ndeleted 'me/other:1'\n"
    assert "brief" not in told(capsys, "list")


def test_a_modelfile_names_a_file_beside_it(folder: Path, tmp_path: Path, capsys) -> None:
    source = Path(sys.modules["kvasir"].__file__).parent / "data" / "mead-draft.gguf"
    shutil.copy(source, tmp_path / "own.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./own.gguf\nSYSTEM x\n")
    assert main(["create", "own", "-f", str(tmp_path / "Modelfile")]) == 0
    capsys.readouterr()
    assert main(["run", "own", "hi", "--num-predict", "2"]) == 0
    capsys.readouterr()
    (tmp_path / "own.gguf").unlink()
    assert "the weights of own:latest are gone" in told(capsys, "run", "own", "hi", code=1)
    assert told(capsys, "rm", "own") == "deleted 'own'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FROM meed\n", "did you mean mead"),
        ("SYSTEM x\n", "no FROM line"),
        ("FROM mead\nFROM mead\n", "several FROM lines"),
        ("FROM mead\nADAPTER ./x\n", "x"),
        ("FROM mead\nADAPTER ./x\nADAPTER ./y\n", "several ADAPTER lines"),
        ("FROM mead\nPARSER x\n", "PARSER x is not supported"),
        ("FROM mead\nPARAMETER temprature 1\n", "did you mean temperature?"),
        ("FROM mead\nPARAMETER temperature hot\n", 'option "temperature" must be of type number'),
        ("FROM mead\nTEMPLATE {{ .Nothing }}\n", ".Nothing is not understood"),
    ],
)
def test_a_modelfile_that_cannot_be(folder: Path, tmp_path: Path, capsys, text: str, says: str) -> None:
    (tmp_path / "M").write_text(text)
    err = told(capsys, "create", "x", "-f", str(tmp_path / "M"), code=1)
    assert says in err and err.count("\n") == 1
    assert not (folder / "manifests").exists() or not list((folder / "manifests").iterdir())


def test_a_model_with_an_adapter(there: str, folder: Path, tmp_path: Path, capsys) -> None:
    mead(tmp_path / "lora.gguf", 1)
    (tmp_path / "M").write_text("FROM mead\nADAPTER ./lora.gguf\n")
    assert main(["create", "adapted", "-f", str(tmp_path / "M")]) == 0
    capsys.readouterr()
    assert f"ADAPTER {tmp_path / 'lora.gguf'}" in told(capsys, "show", "adapted", "--modelfile")
    shown = requests.post(f"{there}/api/show", json={"model": "adapted"})
    assert "ADAPTER lora.gguf" in shown.json()["modelfile"] and str(tmp_path) not in shown.text
    words = ["What is DNS?", "--temperature", "0", "--num-predict", "8"]
    want = told(capsys, "run", "mead", *words, "--adapter", str(tmp_path / "lora.gguf"))
    assert told(capsys, "run", "adapted", *words) == want != told(capsys, "run", "mead", *words)
    body = {"model": "adapted", "prompt": "What is DNS?", "stream": False}
    options = {"temperature": 0, "num_predict": 8}
    got = requests.post(f"{there}/api/generate", json={**body, "options": options}).json()
    assert got["response"].strip() == " ".join(want.split())
    assert told(capsys, "rm", "adapted") == "deleted 'adapted'\n"


def test_a_model_that_cannot_be_deleted_stays_in_memory(there: str, capsys) -> None:
    requests.post(f"{there}/api/generate", json={"model": "mead"}).raise_for_status()
    assert "cannot be deleted" in told(capsys, "rm", "mead", code=1)
    assert [each["name"] for each in requests.get(f"{there}/api/ps").json()["models"]] == ["mead:latest"]


def test_what_cannot_be(folder: Path, capsys) -> None:
    assert "cannot be deleted" in told(capsys, "rm", "mead", code=1)
    assert "not found" in told(capsys, "rm", "nothing", code=1)
    assert "built in" in told(capsys, "cp", "mead", "mead-draft", code=1)
    assert "Modelfile cannot be read" in told(capsys, "create", "x", code=1)
    assert "cannot download models yet" in told(capsys, "pull", "llama3", code=1)
    assert told(capsys, "pull", "mead") == "mead:latest is here already\n"
    assert "cannot upload" in told(capsys, "push", "mead", code=1)


def test_embeddings_in_a_terminal(folder: Path, capsys) -> None:
    encoder(folder / "tiny-embed")
    found = told(capsys, "run", "tiny-embed", "a b", "--dimensions", "3")
    numbers = [float(word) for word in found.strip("[]\n").split(",")]
    assert len(numbers) == 3 and abs(sum(n * n for n in numbers) - 1) < 1e-6
    assert "100 tokens and the context holds 64" in told(capsys, "run", "tiny-embed", "a " * 100, code=1)
    assert told(capsys, "run", "tiny-embed", "a " * 100, "--truncate").startswith("[")
    assert "--dimensions must be" in told(capsys, "run", "tiny-embed", "a", "--dimensions", "99", code=1)


def test_what_ps_says() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert [processor(10, n) for n in (0, 10, 5)] == ["100% CPU", "100% GPU", "50%/50% CPU/GPU"]
    at = (now + timedelta(minutes=4, seconds=59)).isoformat()
    assert until_when(at, now) == "4 minutes from now"
    assert until_when((now + timedelta(days=9999)).isoformat(), now) == "Forever"
    assert until_when(now.isoformat(), now) == "Stopping..."
    loading = {"name": "big:latest", "size": 4_000_000_000, "size_vram": 0, "stage": "repacking the weights"}
    assert table([loading], now).splitlines()[1].split("    ")[-1].strip() == "repacking the weights"


def test_a_frame_of_top() -> None:
    model = {
        "name": "mead:latest",
        "users": 2,
        "bytes": 80_000_000,
        "running": 2,
        "waiting": 1,
        "generated": 100,
        "rows": 300,
        "steps": 50,
        "blocks": 200,
        "blocks_free": 150,
        "expires_at": None,
    }
    before = {
        "version": "0.1",
        "at_s": 10.0,
        "requests": 3,
        "max_requests": 512,
        "budget_bytes": 8_000_000_000,
        "models": [model],
    }
    other = {"name": "new:latest", "users": 1, "bytes": 1_000_000, "stage": "reading the file"}
    now = {**before, "at_s": 12.0, "models": [{**model, "generated": 150}, other]}
    text = frame(before, now, "127.0.0.1:11434", None)
    assert "requests 3 of 512" in text and "81 MB of 8.0 GB" in text and "25.0 tokens/s" in text
    lines = text.splitlines()
    assert lines[4].split() == [
        "mead:latest",
        "80",
        "MB",
        "2",
        "1",
        "25.0",
        "██░░░░░░░░",
        "25%",
        "of",
        "200",
        "in",
        "use",
    ]
    assert lines[5].endswith("reading the file")
    assert all(len(line) <= 40 for line in frame(before, now, "x", 40).splitlines())
    assert "no model is in memory" in frame({**before, "models": []}, {**now, "models": []}, "x", None)


def test_top_in_a_terminal(there: str) -> None:
    ours, theirs = pty.openpty()
    code = "import sys; from kvasir.cli import main; sys.exit(main(['top', '--interval', '0.2']))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    )  # fmt: skip
    os.close(theirs)
    asking = threading.Thread(
        target=requests.post,
        args=(f"{there}/api/generate",),
        kwargs={"json": {"model": "mead", "prompt": "What is DNS?", "stream": False}},
    )
    asking.start()
    seen, start = b"", time.monotonic()
    while b"mead:latest" not in seen or b"TOKENS/S" not in seen:
        assert time.monotonic() - start < 30, seen
        seen += os.read(ours, 65536)
    run.send_signal(signal.SIGINT)
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    assert run.wait(15) == 0 and seen.endswith(b"\x1b[?25h\x1b[?1049l") and b"requests" in seen
    asking.join()
    os.close(ours)


def test_words_are_completed(folder: Path) -> None:
    assert complete(["sh"]) == ["show"] and "ps" in complete([""]) and complete(["help", "se"]) == ["serve"]
    assert complete(["run", "mead"]) == ["mead", "mead-draft"] and complete(["run", "mead", ""]) == []
    assert "--hidethinking" in complete(["run", "--"]) and complete(["serve", "--max"]) == ["--max-queue"]
    assert complete(["completion", ""]) == list(SHELLS) and complete(["nothing", ""]) == []
    assert complete(["run", "./"]) == [] and complete(["rm", "a", "mead-"]) == ["mead-draft"]
    for name in COMMANDS:
        assert "--help" in complete([name, "--h"]), name


def test_bash_completes(folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "x:1.gguf").write_bytes(b"GGUF")
    script = tmp_path / "kvasir.bash"
    script.write_text(told(capsys, "completion", "bash"))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kvasir.cli import main; sys.exit(main())"
    ask = (
        f'kvasir() {{ "{sys.executable}" -c "$CODE" "$@"; }}; source {script}; COMP_LINE="$LINE"; '
        'COMP_POINT=${#COMP_LINE}; _kvasir; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    for line, want in (("kvasir sho", "show"), ("kvasir run mead-", "mead-draft"), ("kvasir show x:", "1")):
        env = {**os.environ, "CODE": code, "LINE": line}
        out = subprocess.run(["bash", "-c", ask], env=env, capture_output=True, text=True, timeout=60)
        assert out.stdout.split() == [want], (line, out.stderr)
    (folder / "x:1.gguf").unlink()
