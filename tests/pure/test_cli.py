"""The command line with a scripted model: what it prints where, and how it ends."""

from __future__ import annotations

import io
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

import kvasir.cli.run
from kvasir.chat import Delta, Finished, Message, Metrics
from kvasir.cli.answer import eight_lines
from kvasir.cli.chat import Chat
from kvasir.cli.main import main
from kvasir.cli.serve import holder
from kvasir.cli.terminal import Writer, human_bytes, human_time
from kvasir.errors import CapacityError
from kvasir.runner.model import Model
from kvasir.settings import Settings
from tests.wire.fake import INFO, FakeModel


class Stdin(io.StringIO):
    """Standard input with bytes; a terminal if told so."""

    def __init__(self, raw: bytes = b"", tty: bool = False):
        super().__init__()
        self.buffer, self._tty = io.BytesIO(raw), tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    fake = FakeModel()
    fake.is_embedding = False
    monkeypatch.setattr(Model, "load", lambda name, **_: fake)
    monkeypatch.setattr(sys, "stdin", Stdin(tty=True))
    monkeypatch.setenv("KVASIR_MODELS", str(tmp_path))
    (tmp_path / "meadow.gguf").write_bytes(b"GGUF")
    return fake


def test_run_prints_the_answer(model: FakeModel, capsys) -> None:
    assert main(["run", "mead", "What", "is", "DNS?"]) == 0
    out = capsys.readouterr()
    assert out.out == "Hello, world\n" and out.err == ""
    assert model.requests[0].messages == (Message("user", "What is DNS?"),) and model.n_closed == 1


def test_run_options(model: FakeModel, capsys) -> None:
    words = [
        "run",
        "--system",
        "short",
        "mead",
        "--temperature",
        "0.3",
        "hi",
        "--num-predict",
        "2",
        "--seed",
        "7",
        "--stop",
        "x",
        "--num-ctx",
        "99",
        "--verbose",
        "--keepalive",
        "5m",
    ]
    assert main(words) == 0
    request = model.requests[0]
    assert request.params.temperature == 0.3 and request.params.max_tokens == 2 and request.params.seed == 7
    assert request.params.stop == ("x",) and request.max_context == 99 and request.params.top_k == 40
    assert [m.content for m in request.messages] == ["short", "hi"]
    err = capsys.readouterr().err
    assert "eval count:           2 token(s)\n" in err


def test_an_adapter_answers(model: FakeModel, monkeypatch) -> None:
    loads = []
    monkeypatch.setattr(Model, "load", lambda name, **how: loads.append(how["adapters"]) or model)
    assert main(["run", "mead", "--adapter", "pirate.gguf", "hi"]) == 0
    assert list(loads[0].values()) == ["pirate.gguf"] and model.requests[-1].adapter in loads[0]
    assert main(["run", "mead", "hi"]) == 0
    assert loads[1] == {} and model.requests[-1].adapter == ""


def test_format(model: FakeModel, tmp_path, capsys) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array"}')
    for given, kind in (("json", "json"), (str(schema), "schema"), ('{"type": "array"}', "schema")):
        assert main(["run", "mead", "--format", given, "hi"]) == 0
        made = model.requests[-1].params.constraint
        assert made is not None and made.kind == kind
    schema.write_text("[1]")
    assert main(["run", "mead", "--format", str(schema), "hi"]) == 1
    assert "schema.json': the JSON schema must be a JSON object" in capsys.readouterr().err
    assert main(["run", "mead", "--format", "json", "--num-predict", "1", "hi"]) == 0
    assert "(cut after 1 tokens: the answer is not whole)" in capsys.readouterr().err


def test_thoughts_stand_between_two_lines_or_are_hidden(model: FakeModel, capsys) -> None:
    model.words = [Delta("", (1,), thinking="\nHm"), Delta("", (2,), thinking="m."), Delta("Yes", (3,))]
    assert main(["run", "mead", "hi"]) == 0
    assert capsys.readouterr().out == "Thinking...\nHmm.\n...done thinking.\n\nYes\n"
    assert main(["run", "mead", "hi", "--hidethinking"]) == 0
    assert capsys.readouterr().out == "Yes\n" and model.requests[-1].parse
    it = chat(model, "hi")
    assert [m.content for m in it.messages] == ["hi", "Yes"]


def test_raw_and_no_template(model: FakeModel) -> None:
    assert main(["run", "mead", "--raw", "x y"]) == 0 and model.requests[-1].prompt == "x y"
    model.prompter.template = None
    assert main(["run", "mead", "x y"]) == 0 and model.requests[-1].prompt == "x y"


def test_standard_input_goes_before_the_prompt(model: FakeModel, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin("täxt\n".encode()))
    assert main(["run", "mead", "sum", "up"]) == 0
    assert model.requests[0].messages[-1].content == "täxt\n sum up"


@pytest.mark.parametrize(
    ("words", "stdin", "says"),
    [
        (["rnu"], None, "unknown command 'rnu' (did you mean run?)"),
        (["--verson"], None, "unknown option"),
        (["run"], None, "needs a MODEL"),
        (["run", "mead", "--verbos", "hi"], None, "unknown option '--verbos' (did you mean --verbose?)"),
        (["run", "mead", "--temperature", "hot", "hi"], None, "'hot' is not a number"),
        (
            ["run", "mead", "--temperature", "-3", "hi"],
            None,
            'option "temperature" must be between 0 and 100, got -3',
        ),
        (["run", "mead", "--temperature", "nan", "hi"], None, 'option "temperature"'),
        (["run", "mead", "--format", "/no/such", "hi"], None, "'/no/such' is neither `json` nor a file"),
        (
            ["run", "mead", "--format", "{", "hi"],
            None,
            "structured_outputs.json: the JSON schema is not JSON",
        ),
        (["run", "mead", "--think", "hi"], None, "does not support thinking"),
        (["run", "mead", "--think=hard", "hi"], None, "--think=hard is unknown"),
        (["run", "mead", "--raw", "--system", "x", "hi"], None, "--raw"),
        (["run", "mead", "--keepalive", "5", "hi"], None, "not a duration"),
        (["run", "mead"], b"", "there is no prompt"),
        (["run", "mead", "x"], b"a\xff", "standard input is not valid UTF-8 (byte 1)"),
        (["run", "mead", "a\udcff"], None, "not valid UTF-8"),
        (["run", "mead", "x" * 600], None, "600 tokens and the context holds 512"),
        (["pull", "x"], None, "cannot download models yet"),
        (["show", "medaow"], None, "did you mean meadow"),
        (["show", "/no/such.gguf"], None, "no such file"),
        (["serve", "--port", "99999"], None, "--port"),
        (["serve", "--host", "0.0.0.0"], None, "there are no API keys"),
        (["serve", "--alias", "x"], None, "NAME=MODEL"),
        (["help", "nothing"], None, "unknown command"),
    ],
)
def test_errors_are_one_line_and_exit_1(model: FakeModel, monkeypatch, capsys, words, stdin, says) -> None:
    if stdin is not None:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin))
    assert main(words) == 1
    out = capsys.readouterr()
    assert says in out.err and out.err.count("\n") == 1 and out.err.startswith("kvasir: ") and not out.out


def test_a_bad_switch_is_fatal(model: FakeModel, monkeypatch, capsys) -> None:
    monkeypatch.setenv("KVASIR_THREADS", "many")
    assert main(["list"]) == 1 and "KVASIR_THREADS" in capsys.readouterr().err


def test_help_and_version(model: FakeModel, capsys) -> None:
    assert main([]) == 0 and main(["help"]) == 0 and main(["--version"]) == 0
    out = capsys.readouterr().out
    assert "kvasir run mead" in out and "KVASIR_THREADS" in out and "kvasir 0." in out
    for command in ("run", "serve", "show", "list"):
        with pytest.raises(SystemExit) as caught:
            main(["help", command])
        assert caught.value.code == 0 and f"kvasir {command}" in capsys.readouterr().out


def test_an_error_in_the_middle_and_a_bug(model: FakeModel, monkeypatch, capsys) -> None:
    model.words = ["abc", CapacityError("the cache is full")]
    assert main(["run", "mead", "x"]) == 1
    out = capsys.readouterr()
    assert out.out == "abc\n" and out.err == "kvasir: the cache is full\n"
    monkeypatch.setattr(Model, "load", lambda name, **_: 1 / 0)
    assert main(["run", "mead", "x"]) == 1 and "Traceback" not in capsys.readouterr().err

    def interrupt(name: str, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "load", interrupt)
    assert main(["run", "mead", "x"]) == 130


def test_eight_lines_are_ollamas() -> None:
    metrics = Metrics(total_s=1.234567891, prefill_s=0.0123, decode_s=1.0, n_prompt=26, n_generated=282)
    assert eight_lines(metrics, 0.0045) == (
        "total duration:       1.239067891s\n"
        "load duration:        4.5ms\n"
        "prompt eval count:    26 token(s)\n"
        "prompt eval duration: 12.3ms\n"
        "prompt eval rate:     2113.82 tokens/s\n"
        "eval count:           282 token(s)\n"
        "eval duration:        1s\n"
        "eval rate:            282.00 tokens/s\n"
    )
    assert eight_lines(Metrics(), 0.0) == ""


def test_lines_break_between_words() -> None:
    out = io.StringIO()
    writer = Writer(out, 10)
    for piece in ("The qui", "ck brown ", "fox\njumps over", " " * 3, "dogs", "日本" * 20):
        writer.write(piece)
    writer.end()
    assert all(len(line.rstrip()) <= 10 for line in out.getvalue().splitlines()[:3])
    assert "".join(out.getvalue().split()) == "Thequickbrownfoxjumpsoverdogs" + "日本" * 20
    plain = io.StringIO()
    writer = Writer(plain)
    writer.write("a\n")
    writer.end()
    assert plain.getvalue() == "a\n"


def test_sizes_and_ages() -> None:
    assert [human_bytes(n) for n in (5, 9_100_000, 12_345_678, 4_700_000_000)] == [
        "5 B",
        "9.1 MB",
        "12 MB",
        "4.7 GB",
    ]
    ages = [human_time(s) for s in (0, 30, 90, 7200, 90_000, 200_000, 3e6, 1e8)]
    assert ages[:4] == ["Just now", "Less than a minute ago", "1 minute ago", "2 hours ago"]
    assert ages[4:6] == ["1 day ago", "2 days ago"] and ages[7] == "3 years ago"


class Script:
    """What a person types, written down; an exception among the lines is raised.  Mutable."""

    def __init__(self, *lines: str | type[BaseException]):
        self.lines, self.kept = list(lines), True

    def ask(self, continued: bool) -> str:
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def keep(self, on: bool) -> None:
        self.kept = on


def chat(model: FakeModel, *lines: str | type[BaseException]) -> Chat:
    it = Chat(model, Settings(), {})
    assert it.talk(Script(*lines)) == 0
    return it


def test_a_chat_remembers_and_forgets(model: FakeModel, capsys) -> None:
    chat(
        model,
        "/set system be short",
        "hi",
        "and?",
        "/clear",
        "/set parameter temperature 0",
        "new",
        "",
        "/bye",
        "not read",
    )
    contents = [[m.content for m in r.messages] for r in model.requests]
    assert contents == [
        ["be short", "hi"],
        ["be short", "hi", "Hello, world", "and?"],
        ["be short", "new"],
    ]
    assert model.requests[-1].params.temperature == 0
    assert capsys.readouterr().out.count("Hello, world\n") == 3


def test_messages_of_several_lines(model: FakeModel) -> None:
    chat(model, '"""one', "two", 'three"""', '/set system """a', 'b"""', "x")
    assert model.requests[0].messages[0].content == "one\ntwo\nthree"
    assert model.requests[1].messages[0] == Message("system", "a\nb")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/hlep", "did you mean /help?"),
        ("/set parameter temprature 1", "did you mean temperature?"),
        ("/set parameter temperature hot", "'hot' is not a number"),
        ("/set parameter top_p 9", "between 0 and 1"),
        ("/set parameter", "takes a name"),
        ("/set verbos", "did you mean /set verbose?"),
        ("/save a b", "takes a name"),
        ("/set format yaml", "/set format takes json"),
        ("/show nothing", "unknown"),
        ("/set think", "does not support thinking"),
        ("/load", "takes one model"),
        ("x" * 600, "/clear"),
    ],
)
def test_wrong_commands_say_so_and_the_chat_goes_on(model: FakeModel, capsys, line: str, says: str) -> None:
    chat(model, line, "hi")
    out = capsys.readouterr()
    assert says in out.err and "Hello, world" in out.out


def test_slash_commands(model: FakeModel, capsys) -> None:
    it = chat(
        model,
        "/?",
        "/help set",
        "/? shortcuts",
        "/show info",
        "/show parameters",
        "/set parameter stop a b",
        "/show parameters",
        "/show system",
        "/show license",
        "/set verbose",
        "hi",
        "/set quiet",
        "/set nowordwrap",
        "/list",
        "/set nohistory",
        KeyboardInterrupt,
        "/load mead",
        "/exit",
    )
    out = capsys.readouterr()
    for text in (
        "/bye",
        "/set parameter",
        "Ctrl + c",
        "qwen3",
        "stop",
        "Apache-2.0",
        "NAME",
        "Use Ctrl + d",
        "Loaded mead",
    ):
        assert text in out.out, text
    assert "eval rate" in out.err and it.given == {"stop": ["a", "b"]} and not it.verbose and not it.wrap


def test_ctrl_c_stops_the_answer_and_not_the_chat(model: FakeModel, capsys, monkeypatch) -> None:
    class Stops:
        def __init__(self, inner):
            self.inner = inner

        def __iter__(self):
            yield Delta("Hel", (1,))
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self.inner.cancel()

    submit, model.pace_s = model.submit, 1.0
    calls = []

    def once(request):
        calls.append(request)
        return Stops(submit(request)) if len(calls) == 1 else [Delta("ok", (1,)), Finished("stop")]

    monkeypatch.setattr(model, "submit", once)
    it = chat(model, "hi", "again")
    assert model.n_cancelled == 1 and capsys.readouterr().out == "Hel\n\nok\n\n"
    assert [m.content for m in it.messages] == ["hi", "Hel", "again", "ok"]


CHILD = """
import sys
from kvasir.runner.model import Model
from tests.wire.fake import FakeModel
fake = FakeModel(words=WORDS, pace_s=PACE)
fake.is_embedding = False
Model.load = lambda name, **_: fake
from kvasir.cli import main
sys.exit(main(ARGS))
"""


def child(args: list[str], words: list[str], pace_s: float = 0.0, **wishes) -> subprocess.Popen:
    code = CHILD.replace("WORDS", repr(words)).replace("PACE", repr(pace_s)).replace("ARGS", repr(args))
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, **wishes)


def test_a_closed_pipe_ends_quietly() -> None:
    run = child(
        ["run", "mead", "x"],
        ["line\n"] * 5000,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert run.stdout.readline() == b"line\n"
    run.stdout.close()
    assert run.wait(20) == 141 and run.stderr.read() == b""


def test_a_chat_in_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm"}
    run = child(["run", "mead"], ["Hel", "lo"] * 3, 0.05, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)

    def until(text: bytes) -> bytes:
        seen, start = b"", time.monotonic()
        while text not in seen:
            assert time.monotonic() - start < 15, seen
            seen += os.read(ours, 4096)
            if b"\x1b[6n" in seen:  # where is the cursor?
                os.write(ours, b"\x1b[1;1R")
                seen = seen.replace(b"\x1b[6n", b"")
        return seen

    assert b"Send a message" in until(b"Send a message")
    os.write(ours, b"hi\r")
    until(b"HelloHelloHello")
    until(b">>> ")
    os.write(ours, b"/bye\r")
    assert run.wait(15) == 0
    assert "+hi" in (tmp_path / ".kvasir" / "history").read_text()
    os.close(ours)


def test_the_start_says_who_may_come_in(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    open_to_all = ["serve", "--host", "0.0.0.0", "--port", "0", "--no-keys"]
    for words, says in ((open_to_all, b"WHOEVER REACHES"), (["serve", "--port", "0"], b"needs the API key")):
        if words != open_to_all:
            assert main(["keys", "add", "a"]) == 0
        run = child(words, [], stderr=subprocess.PIPE)
        run.stderr.readline()
        line = run.stderr.readline()
        run.terminate()
        assert says in line and run.wait(15) == 0


def test_sigterm_ends_the_server_cleanly() -> None:
    run = child(["serve", "--port", "0"], [], stderr=subprocess.PIPE)
    line = run.stderr.readline().decode()
    url = line.split()[-1]
    assert url.startswith("http://127.0.0.1:"), line
    for _ in range(200):
        try:
            assert requests.get(url, timeout=5).text == "Ollama is running"
            break
        except requests.ConnectionError:
            time.sleep(0.02)
    run.terminate()
    assert run.wait(15) == 0 and run.stderr.read() == b""


def test_a_second_server_names_the_holder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"(pid {os.getpid()})" in holder(port)
        run = child(["serve", "--port", str(port)], [], stderr=subprocess.PIPE)
        err = run.communicate(timeout=20)[1].decode()
        assert run.returncode == 1 and err.count("\n") == 1
        assert f"port {port} is taken by" in err and str(os.getpid()) in err and f"--port {port + 1}" in err
    assert holder(1) == "" and INFO.name and kvasir.cli.run
