"""Two frameworks that speak Ollama's API through its client: langchain-ollama and llama-index-llms-ollama."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import langchain_ollama
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from llama_index.llms.ollama import Ollama as LlamaIndex
from pydantic import BaseModel

from tests.wire import pages
from tests.wire.fake import FakeModel
from tests.wire.real import encoder, real_server
from tests.wire.test_ollama_client import ABLE, CALLING, clock
from tests.wire.test_server import serving


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        path: Path = tmp_path_factory.mktemp("models")
        patch.setenv("KVASIR_MODELS", str(path))
        encoder(path / "tiny-embed")
        with real_server() as address:
            yield address


def test_langchain(url: str) -> None:
    llm = langchain_ollama.ChatOllama(model="mead", base_url=url, temperature=0, num_predict=24)
    turns = [SystemMessage("Be brief."), HumanMessage("What is DNS?")]
    whole = llm.invoke(turns)
    assert whole.content and whole.usage_metadata["output_tokens"] <= 24
    assert "".join(part.content for part in llm.stream(turns)) == whole.content

    class Host(BaseModel):
        port: int

    found = llm.with_structured_output(Host).invoke("A port of DNS?")
    assert isinstance(found, Host)
    text = langchain_ollama.OllamaLLM(model="mead", base_url=url, temperature=0, num_predict=8)
    assert text.invoke("What is DNS?")
    vectors = langchain_ollama.OllamaEmbeddings(model="tiny-embed", base_url=url).embed_documents(["a", "b"])
    assert len(vectors) == 2 and len(vectors[0]) == 32


def test_langchain_with_tools() -> None:
    with serving(FakeModel(CALLING, info=ABLE)) as url:
        llm = langchain_ollama.ChatOllama(model="mead", base_url=url).bind_tools([tool(clock)])
        (call,) = llm.invoke("What time is it?").tool_calls
    assert call["name"] == "clock" and call["args"] == {"city": "Bergen"}


def test_llama_index(url: str) -> None:
    llm = LlamaIndex(
        model="mead", base_url=url, temperature=0, request_timeout=60, additional_kwargs={"num_predict": 24}
    )
    whole = llm.complete("What is DNS?").text
    assert whole and [part.text for part in llm.stream_complete("What is DNS?")][-1] == whole


def test_the_pages(url: str) -> None:
    (printed,) = pages.output("langchain-ollama.md", url)
    answer, verdict = printed.splitlines()[-2:]
    assert answer and verdict.startswith("about_networks=")
    (printed,) = pages.output("llama-index.md", url)
    assert len(printed.splitlines()) >= 2 and all(printed.splitlines())
