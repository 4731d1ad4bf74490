"""A loaded model with its thread: streams, cancelling, failures, several users at once."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvasir.chat import ChatRequest, Delta, Finished
from kvasir.engine.engine import Engine
from kvasir.errors import Bug, CapacityError, ModelError, UsageError
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.model import Model
from kvasir.runner.prompt import Prompter
from kvasir.runner.registry import Models
from kvasir.sampling import SamplingParams
from tests.engine.fake import VOCAB, FakeProgram, expected

INFO = ModelInfo(
    "fake:latest", Path("fake.gguf"), "gguf", "fake", 1, "F32", 0, 1, 1, datetime.now(UTC), "0" * 64, "",
    ("completion",),
)  # fmt: skip


class Letters:
    """A tokenizer whose token i is the letter chr(48 + i)."""

    n_vocab, bos_id, eos_ids, strips_space = VOCAB, None, frozenset[int](), False

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return [ord(letter) - 48 for letter in text]

    def token_bytes(self, token_id: int) -> bytes:
        return chr(48 + token_id).encode()

    def token_id(self, mark: str) -> int | None:
        return None

    def special(self, token_id: int) -> bool:
        return False


def model(program: FakeProgram | None = None, **engine: object) -> Model:
    program = program or FakeProgram(64)
    return Model(INFO, Prompter(Letters(), None), Engine(program, **engine), 0.5)  # type: ignore[arg-type]


def wish(**params: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 8, **params})  # type: ignore[arg-type]


def text_of(prompt: str, count: int = 8) -> str:
    return "".join(chr(48 + t) for t in expected(Letters().encode(prompt), count))


def ask(m: Model, prompt: str, **params: object) -> tuple[str, Finished]:
    *deltas, end = m.submit(ChatRequest(wish(**params), prompt=prompt))
    assert isinstance(end, Finished)
    return "".join(d.text for d in deltas if isinstance(d, Delta)), end


@pytest.fixture
def fake():
    m = model()
    yield m
    m.check()
    m.close()


def test_an_answer_comes_in_pieces_and_ends_with_its_metrics(fake):
    text, end = ask(fake, "12")
    assert text == text_of("12")
    assert end.reason == "length"
    assert (end.metrics.n_prompt, end.metrics.n_generated) == (2, 8)
    assert 0 <= end.metrics.ttft_s <= end.metrics.total_s
    assert end.prompt_token_ids == (1, 2)


def test_a_stop_string_is_not_shown_and_ends_the_answer(fake):
    whole = text_of("12")
    stop = whole[3:5]
    text, end = ask(fake, "12", stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert (end.reason, end.stop_reason) == ("stop", stop)


def test_many_users_at_once_get_what_each_would_get_alone(fake):
    found: dict[str, str] = {}
    prompts = [str(n) * (n % 7 + 1) for n in range(1, 30)]
    threads = [threading.Thread(target=lambda p=p: found.update({p: ask(fake, p)[0]})) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {p: text_of(p) for p in prompts}


def test_several_answers_to_one_prompt(fake):
    ends, texts = {}, {0: "", 1: "", 2: ""}
    for event in fake.submit(ChatRequest(wish(n=3, temperature=50.0, seed=1), prompt="5")):
        if isinstance(event, Delta):
            texts[event.index] += event.text
        else:
            ends[event.index] = event.reason
    assert ends == {0: "length", 1: "length", 2: "length"}
    assert len(set(texts.values())) > 1, "each answer draws its own tokens"


def test_asyncio_consumes_the_same_stream(fake):
    async def consume() -> str:
        stream = fake.submit(ChatRequest(wish(), prompt="34"))
        return "".join([e.text async for e in stream if isinstance(e, Delta)])

    async def both() -> list[str]:
        return await asyncio.gather(consume(), consume())

    assert asyncio.run(both()) == [text_of("34")] * 2


def test_cancelling_ends_with_abort_and_frees_the_blocks(fake):
    stream = fake.submit(ChatRequest(wish(max_tokens=None), prompt="9"))
    events = iter(stream)
    next(events)
    stream.cancel()
    stream.cancel()
    *_, end = events
    assert isinstance(end, Finished) and end.reason == "abort"


def test_a_failing_step_reaches_its_clients_and_the_thread_lives():
    program = FakeProgram(64)
    program.fail_at = 2
    m = model(program)
    with pytest.raises(Bug, match="scripted failure"):
        ask(m, "1")
    program.fail_at = -1
    assert ask(m, "1")[0] == text_of("1")
    m.check()
    m.close()


def test_closing_ends_what_runs_and_refuses_what_comes():
    m = model(FakeProgram(4096))
    events = iter(m.submit(ChatRequest(wish(max_tokens=None), prompt="1")))
    next(events)
    m.close()
    *_, end = events
    assert isinstance(end, Finished) and end.reason == "abort"
    with pytest.raises(CapacityError, match="unloaded"):
        ask(m, "1")


def test_refusals_come_before_any_work(fake):
    with pytest.raises(UsageError, match="no tokens"):
        ask(fake, "")
    with pytest.raises(UsageError, match=r"2000 tokens and the context holds 1024"):
        ask(fake, "1" * 2000)
    with pytest.raises(UsageError, match=r"9 tokens and the context holds 5"):
        fake.submit(ChatRequest(wish(), prompt="1" * 9, max_context=5))


def test_truncation_is_asked_for_and_counted(fake):
    *_, end = fake.submit(
        ChatRequest(wish(max_tokens=2), prompt="123456789" * 3, max_context=8, truncate=True)
    )
    assert isinstance(end, Finished)
    assert end.metrics.n_truncated == 27 - 6
    assert end.prompt_token_ids == tuple(Letters().encode("456789"))


def test_a_model_is_loaded_once_however_many_ask(monkeypatch):
    loads: list[str] = []

    def load(name: str, **_: object) -> Model:
        loads.append(name)
        if len(loads) == 1:
            raise ModelError("the first try fails")
        return model()

    models = Models(load)
    with pytest.raises(ModelError):
        models.get("mead")
    threads = [threading.Thread(target=models.get, args=("mead",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 2, "a failure is not kept, a success is"
    assert models.get("mead:latest") is models.get("mead")
    assert models.unload("mead") and not models.unload("mead")
    models.close()
