"""A model behind a pipe does what a model does: the same texts, errors, embeddings, and the same end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from kvasir.chat import ChatRequest, Delta, Event, Finished, Message
from kvasir.errors import CapacityError, Lost, UsageError
from kvasir.runner.client import ModelProcess
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams
from tests.parity.cases import GOLDEN

ASKED = (Message("user", "What is DNS?"),)


@pytest.fixture(scope="module")
def there() -> Iterator[ModelProcess]:
    stages: list[str] = []
    model = ModelProcess.load("mead", threads=1, progress=stages.append)
    assert stages == ["reading the file", "repacking the weights"] and model.load_s > 0
    yield model
    model.check()
    model.close()
    assert not model.alive and not os.path.exists(f"/proc/{model.pid}/cmdline")


@pytest.fixture(scope="module")
def here() -> Iterator[Model]:
    model = Model.load("mead", threads=1)
    yield model
    model.close()


def told(model: Model | ModelProcess, request: ChatRequest) -> dict[int, tuple[str, list[object], object]]:
    """Text, tokens with their log-probabilities, and the end of each answer."""
    events: list[Event] = list(model.submit(request))
    found: dict[int, tuple[str, list[object], object]] = {}
    for n in range(request.params.n):
        mine = [e for e in events if e.index == n]
        deltas, end = [e for e in mine if isinstance(e, Delta)], mine[-1]
        assert isinstance(end, Finished)
        m = end.metrics
        counts = (m.n_prompt, m.n_generated, m.n_truncated, end.reason, end.stop_reason, end.prompt_token_ids)
        found[n] = ("".join(d.text for d in deltas), [(d.token_ids, d.logprobs) for d in deltas], counts)
    return found


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(SamplingParams(temperature=0, max_tokens=40), ASKED),
        ChatRequest(SamplingParams(n=3, seed=5, max_tokens=20, logprobs=2), ASKED, context=(5, 6, 7)),
        ChatRequest(SamplingParams(seed=1, max_tokens=30, stop=["e"]), prompt="A VLAN is"),
        ChatRequest(SamplingParams(seed=1, max_tokens=5), prompt="word " * 90, truncate=True, max_context=64),
    ],
)
def test_the_same_answers_as_without_a_pipe(there: ModelProcess, here: Model, request_: ChatRequest) -> None:
    assert told(there, request_) == told(here, request_)
    assert (there.has_template, there.referenced) == (here.has_template, here.referenced)
    assert replace(there.info, modified=here.info.modified) == here.info


def test_tokens_that_logprobs_name_are_spelled(there: ModelProcess, here: Model) -> None:
    stream = there.submit(ChatRequest(SamplingParams(max_tokens=8, logprobs=3), ASKED))
    named = [p for e in stream if isinstance(e, Delta) for p in e.logprobs]
    ids = {t for p in named for t in (p.token_id, *(i for i, _ in p.top))}
    assert len(ids) > 8 and all(there.token_bytes(i) == here.token_bytes(i) for i in ids)
    assert stream.prompt_token_ids and stream.n_truncated == 0


def test_refusals_come_through_the_stream_as_what_they_are(there: ModelProcess) -> None:
    params = SamplingParams()
    for request, words in (
        (ChatRequest(params, prompt=""), "no tokens"),
        (ChatRequest(params, prompt="word " * 90, max_context=64), "and the context holds 64"),
        (ChatRequest(params, prompt=(10**6,)), "not in the vocabulary"),
    ):
        with pytest.raises(UsageError, match=words):
            list(there.submit(request))
    with pytest.raises(UsageError, match="gives no embeddings"):
        there.embed(["x"])
    with pytest.raises(UsageError, match="cannot be sent"):
        there.submit(ChatRequest(params, ASKED, tools=({"x": 2**80},)))


def test_a_prompt_is_counted_as_it_would_be_computed(there: ModelProcess, here: Model) -> None:
    params = SamplingParams(max_tokens=1)
    for request in (
        ChatRequest(params, ASKED),
        ChatRequest(params, prompt="A VLAN is", context=(5, 6)),
        ChatRequest(params, prompt=(7, 8, 9)),
    ):
        found = there.tokenize(request)
        assert found == here.tokenize(request) == list(here.submit(request).prompt_token_ids)
    long = ChatRequest(params, prompt="word " * 90, max_context=64, truncate=True)
    assert len(there.tokenize(long)) > 90
    with pytest.raises(UsageError, match="cannot be sent"):
        there.tokenize(ChatRequest(params, ASKED, tools=({"x": 2**80},)))


def test_many_at_once_and_some_cancelled(there: ModelProcess, here: Model) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    alone = told(here, ChatRequest(params, ASKED))[0][0]

    async def one(n: int) -> str:
        stream, text = there.submit(ChatRequest(params, ASKED)), ""
        if n % 3 == 1:
            stream.cancel()
        async for event in stream:
            text += event.text if isinstance(event, Delta) else ""
            if n % 3 == 2:
                stream.cancel()
        return text

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(n) for n in range(30)))

    found = asyncio.run(all_of_them())
    assert found[::3] == [alone] * 10
    assert all(alone.startswith(text) for text in found)
    there.check()


def test_embeddings_cross_without_losing_a_bit(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(GOLDEN / "bert", folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.decoder = tokenizers.decoders.WordPiece()
    words.save(str(folder / "tokenizer.json"))
    here, there = Model.load(str(folder), threads=1), ModelProcess.load(str(folder), threads=1)
    found = there.embed(["a b", "c", "b a b"])
    assert there.is_embedding and found == here.embed(["a b", "c", "b a b"]) and len(found[0]) == 32
    with pytest.raises(UsageError, match="writes no text"):
        list(there.submit(ChatRequest(SamplingParams(), prompt="a")))
    with pytest.raises(UsageError, match="no tokens"):
        there.embed([""])
    long = [1] * 100
    with pytest.raises(UsageError, match="100 tokens and the context holds 64"):
        there.embeddings([long])
    told = there.embeddings(["a b", [1, 2], long], truncate=True)
    assert told == here.embeddings(["a b", [1, 2], long], truncate=True)
    assert told[0] == told[1] and [(e.n_tokens, e.n_truncated) for e in told] == [(2, 0), (2, 0), (64, 36)]
    assert told[2].values == here.embeddings([[1] * 64])[0].values != told[0].values
    for model in (here, there):
        model.close()


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(Exception, match="GGUF") as found:
        ModelProcess.load(str(tmp_path / "x.gguf"))
    with pytest.raises(type(found.value)):
        Model.load(str(tmp_path / "x.gguf"))
    with pytest.raises(UsageError, match="unknown backend"):
        ModelProcess.load("mead", backend="none")


def test_after_the_end_everyone_is_told() -> None:
    model = ModelProcess.load("mead", threads=1)
    stream = model.submit(ChatRequest(SamplingParams(max_tokens=None, ignore_eos=True), ASKED))
    os.kill(model.pid, signal.SIGKILL)
    with pytest.raises(Lost, match="killed by signal 9"):
        list(stream)
    for call in (lambda: model.submit(ChatRequest(SamplingParams(), ASKED)), model.check):
        with pytest.raises(Lost):
            call()
    stream.cancel()
    model.close()
    model = ModelProcess.load("mead", threads=1)
    stream = model.submit(ChatRequest(SamplingParams(max_tokens=None, ignore_eos=True), ASKED))
    next(iter(stream))
    model.close()
    with pytest.raises(CapacityError):
        model.submit(ChatRequest(SamplingParams(), ASKED))
    try:
        *_, end = stream
        assert isinstance(end, Finished)
    except CapacityError as error:
        assert "was unloaded" in str(error)


def test_tokens_of_a_prompt_and_their_text(there: ModelProcess, here: Model) -> None:
    chat = ChatRequest(SamplingParams(), ASKED)
    for request in (chat, ChatRequest(SamplingParams(), prompt="A VLAN is", context=(5, 6))):
        assert there.tokenize(request) == here.tokenize(request)
    ids = there.tokenize(ChatRequest(SamplingParams(), prompt="A VLAN is", add_special_tokens=False))
    assert there.spell(ids) == here.spell(ids)
    assert there.spell(ids).text == "A VLAN is" == b"".join(there.spell(ids).pieces).decode()
    with pytest.raises(UsageError, match="999999 is not in the vocabulary"):
        there.spell([999999])


def test_an_answer_goes_on_with_the_last_message(there: ModelProcess) -> None:
    begun = (*ASKED, Message("assistant", "DNS is the"))
    open_, closed = (
        there.spell(there.tokenize(ChatRequest(SamplingParams(), begun, continues=c, opens_turn=False)))
        for c in (True, False)
    )
    assert open_.text.endswith("DNS is the") and len(closed.pieces) > len(open_.pieces)
    with pytest.raises(UsageError, match="cannot be continued"):
        there.tokenize(
            ChatRequest(SamplingParams(), (Message("user", "a"), Message("assistant", "")), continues=True)
        )


def test_log_probabilities_of_named_tokens_and_spellings_of_the_prompt(there: ModelProcess) -> None:
    yes, no = (there.tokenize(ChatRequest(SamplingParams(), prompt=t))[-1] for t in (" yes", " no"))
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=1, logprob_token_ids=[yes, no])
    (delta, *_) = list(
        there.submit(ChatRequest(replace(params, allowed_token_ids=[yes, no]), prompt="Is it?"))
    )
    assert isinstance(delta, Delta) and delta.token_ids[0] in (yes, no)
    top = dict(delta.logprobs[0].top)
    assert {yes, no} <= set(top) and delta.token_ids[0] == max((yes, no), key=lambda t: top[t])
    scored = ChatRequest(SamplingParams(max_tokens=1, prompt_logprobs=2), prompt="What is DNS?")
    (*_, end) = list(there.submit(scored))
    assert isinstance(end, Finished) and end.prompt_logprobs[0] is None
    entries = [p for p in end.prompt_logprobs if p]
    assert b"".join(there.token_bytes(p.token_id) for p in entries) == b" is DNS?"
    assert all(there.token_bytes(t) for p in entries for t, _ in p.top)
