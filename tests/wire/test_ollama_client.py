"""Ollama's own clients, of Python and of npm, unmodified, against a real server with mead."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ollama
import pytest
from pydantic import BaseModel

from kvasir.chat import Delta, ToolPiece
from kvasir.store.names import DATA
from tests.docs import ROOT
from tests.wire import pages
from tests.wire.fake import INFO, FakeModel
from tests.wire.real import encoder, real_server
from tests.wire.test_server import serving

DNS = [{"role": "user", "content": "What is DNS?"}]
GREEDY = {"temperature": 0, "num_predict": 24}
ABLE = replace(INFO, capabilities=("completion", "tools", "thinking"))
CALLING = [
    Delta("", (1,), thinking="The clock."),
    Delta("One moment.", (2,)),
    Delta("", (3,), tool_calls=(ToolPiece(0, "call_1", "clock", '{"city": '),)),
    Delta("", (4,), tool_calls=(ToolPiece(0, arguments='"Bergen"}', last=True),)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("models")
        patch.setenv("KVASIR_MODELS", str(path))
        encoder(path / "tiny-embed")
        yield path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with real_server() as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> ollama.Client:
    return ollama.Client(host=url)


def clock(city: str) -> str:
    """Tells the time in a city.

    Args:
        city: where
    """
    return f"noon in {city}"


def test_chat_and_generate_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat("mead", DNS, options=GREEDY)
    assert whole.done and whole.eval_count and whole.eval_duration and whole.prompt_eval_count
    parts = list(client.chat("mead", DNS, options=GREEDY, stream=True))
    assert "".join(p.message.content for p in parts) == whole.message.content and len(parts) > 3
    assert [p.done for p in parts].index(True) == len(parts) - 1
    text = client.generate("mead", "What is DNS?", options=GREEDY)
    assert text.response == whole.message.content and text.context and text.total_duration
    streamed = client.generate("mead", "What is DNS?", options=GREEDY, stream=True)
    assert "".join(p.response for p in streamed) == text.response
    more = client.generate("mead", "And a VLAN?", context=text.context, options=GREEDY)
    assert more.prompt_eval_count > len(text.context)


def test_asynchronously(url: str) -> None:
    async def ask() -> tuple[str, str]:
        client = ollama.AsyncClient(host=url)
        whole = await client.chat("mead", DNS, options=GREEDY)
        parts = [part async for part in await client.chat("mead", DNS, options=GREEDY, stream=True)]
        return whole.message.content, "".join(part.message.content for part in parts)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed and whole


def test_answers_with_a_form(client: ollama.Client) -> None:
    class Host(BaseModel):
        name: str
        port: int

    options = {"temperature": 0, "num_predict": 200}
    got = client.chat("mead", DNS, format=Host.model_json_schema(), options=options)
    Host.model_validate_json(got.message.content)
    text = client.generate("mead", "A JSON object:", format="json", options=options).response
    assert isinstance(json.loads(text), dict | list | str | int | float | bool | None)


def test_logprobs_and_raw(client: ollama.Client) -> None:
    got = client.generate("mead", "DNS is", raw=True, logprobs=True, top_logprobs=2, options=GREEDY)
    assert len(got.logprobs) == got.eval_count and got.context is None
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in got.logprobs)
    chosen = b"".join(bytes(getattr(each, "bytes", None) or each.token.encode()) for each in got.logprobs)
    assert got.response.strip() in chosen.decode()


def test_tools_and_thoughts() -> None:
    with serving(FakeModel(CALLING, info=ABLE)) as url:
        client = ollama.Client(host=url)
        whole = client.chat("mead", DNS, tools=[clock], think=True)
        (call,) = whole.message.tool_calls
        assert call.function.name == "clock" and call.function.arguments == {"city": "Bergen"}
        assert whole.message.thinking == "The clock." and whole.message.content == "One moment."
        parts = list(client.chat("mead", DNS, tools=[clock], think=True, stream=True))
        assert [c.function.name for p in parts for c in p.message.tool_calls or ()] == ["clock"]
        assert (
            "".join(p.message.thinking or "" for p in parts) == "The clock."
            and parts[-1].done_reason == "stop"
        )
        turns = [*DNS, whole.message, {"role": "tool", "tool_name": "clock", "content": "noon"}]
        client.chat("mead", turns, tools=[clock])


def test_embeddings(client: ollama.Client) -> None:
    got = client.embed("tiny-embed", ["a b", "b"])
    assert len(got.embeddings) == 2 and len(got.embeddings[0]) == 32 and got.prompt_eval_count == 3
    cut = client.embed("tiny-embed", "a b", dimensions=4)
    assert len(cut.embeddings[0]) == 4
    old = client.embeddings("tiny-embed", "a b")
    assert old.embedding[0] / old.embedding[1] == pytest.approx(got.embeddings[0][0] / got.embeddings[0][1])
    with pytest.raises(ollama.ResponseError, match="context holds 64"):
        client.embed("tiny-embed", "a " * 99, truncate=False)


def test_what_there_is(client: ollama.Client) -> None:
    assert {"mead:latest", "tiny-embed:latest"} <= {model.model for model in client.list().models}
    shown = client.show("mead")
    assert shown.details.format == "gguf" and "completion" in shown.capabilities and shown.modelinfo
    client.generate("mead", keep_alive="10m")
    (entry,) = [model for model in client.ps().models if model.model == "mead:latest"]
    assert entry.expires_at and entry.digest and entry.context_length
    assert client.generate("mead", keep_alive=0).done_reason == "unload"


def test_models_are_made_copied_and_deleted(client: ollama.Client, folder: Path) -> None:
    steps = [step.status for step in client.create("terse", from_="mead", system="Be terse.",
             parameters={"num_predict": 5}, stream=True)]  # fmt: skip
    assert steps[-1] == "success"
    assert client.chat("terse", DNS).eval_count == 5
    assert client.copy("terse", "me/terse").status == "success"
    shown = client.show("me/terse")
    assert "Be terse." in shown.modelfile and "num_predict" in shown.parameters
    for name in ("terse", "me/terse"):
        assert client.delete(name).status == "success"
    draft = DATA / "mead-draft.gguf"
    digest = client.create_blob(draft)
    assert digest == f"sha256:{hashlib.sha256(draft.read_bytes()).hexdigest()}"
    assert client.create("up", files={"draft.gguf": digest}).status == "success"
    assert client.chat("up", DNS, options=GREEDY).message.content
    client.delete("up")


def test_errors_have_their_status(client: ollama.Client) -> None:
    for ask, status, says in (
        (lambda: client.chat("nothing", DNS), 404, "not found"),
        (lambda: client.chat("mead", DNS, options={"temperature": -1}), 400, "temperature"),
        (lambda: client.generate("mead", "x", images=[b"png"]), 400, "does not support vision"),
        (lambda: client.generate("mead", "x", suffix="y"), 400, "does not support insert"),
        (lambda: client.chat("tiny-embed", DNS), 400, "embedding model"),
        (lambda: client.delete("mead"), 400, "built in"),
        (lambda: client.pull("llama3"), 501, "cannot download"),
        (lambda: list(client.pull("llama3", stream=True)), 501, "cannot download"),
        (lambda: client.push("mead"), 501, "cannot upload"),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == status and says in caught.value.error
    assert client.pull("mead").status == "success"
    assert "mead:latest" in [model.model for model in client.ps().models]


def test_closed_questions(client: ollama.Client) -> None:
    asked = {
        "net": {"type": "choice", "instructions": "Which is it?", "criteria": {"lan": None, "wan": None}}
    }
    got = client.systemone("mead", "A switch in an office.", asked)
    answer = got.answers["net"]
    assert answer.choice in ("lan", "wan") and sum(answer.probabilities.values()) == pytest.approx(1)


def test_the_page(url: str) -> None:
    (printed,) = pages.output("ollama.md", url)
    answer, count, made = printed.splitlines()[-3:]
    assert answer and "tokens, then: stop" in count and made.startswith("True ['terse:latest'")


@pytest.mark.skipif(
    not (shutil.which("node") and (ROOT / ".clients" / "node_modules" / "ollama").is_dir()),
    reason="npm's client is not here (make clients)",
)
def test_npms_client(url: str, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / ".clients" / "node_modules")
    script = shutil.copy(Path(__file__).with_name("npm_client.mjs"), tmp_path)
    run = subprocess.run(["node", script, url], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.strip().endswith("all is well"), run.stdout + run.stderr
    (tmp_path / "page.mjs").write_text("".join(pages.programs("ollama-js.md", url, "js")), encoding="utf-8")
    run = subprocess.run(["node", "page.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "tokens, then: stop" in run.stdout and "about_networks:" in run.stdout, run.stdout + run.stderr
