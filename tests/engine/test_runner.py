"""Loading, embedding, cancelling, closing: what a loaded model owes to those who use it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvasir.chat import ChatRequest, Finished, Message
from kvasir.engine.engine import Engine
from kvasir.errors import CapacityError, ModelError, UsageError
from kvasir.runner import model as runner
from kvasir.runner.memory import MAX_SEQUENCES, memory_for
from kvasir.runner.model import Model
from kvasir.runner.prompt import Prompter
from kvasir.runner.registry import Models
from kvasir.runner.stream import Stream
from kvasir.sampling import SamplingParams
from kvasir.text.template import ChatTemplate
from tests.engine.fake import VOCAB, FakeProgram
from tests.engine.test_model import INFO, Letters, model, text_of, wish
from tests.stepping import golden, program


def test_an_embedding_reads_as_many_tokens_as_the_context_holds() -> None:
    encoder = program("bert")
    engine = Engine(encoder)
    assert memory_for(encoder.plan, "f16", None).n_blocks * 16 >= encoder.plan.context == 64
    tokens, want = golden("bert")
    assert abs(engine.embed([tokens.tolist()])[0] - want[0]).max() < 1e-4
    assert len(engine.embed([[99] * 64])[0]) == 32
    with pytest.raises(UsageError, match=r"65 tokens and the context holds 64"):
        engine.embed([[1] * 65])
    with pytest.raises(UsageError, match="not in the vocabulary of 100"):
        engine.embed([[100]])
    with pytest.raises(UsageError, match="no tokens"):
        engine.embed([[]])


def test_ids_of_ends_that_the_model_does_not_have_are_no_danger() -> None:
    engine = Engine(FakeProgram(8), [1, VOCAB, 10**6])
    sequence = engine.sequence([5], wish(min_tokens=2))
    engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert sequence.finished == "length" and sequence.n_generated == 8


def test_the_cache_is_no_larger_than_can_be_used() -> None:
    plan = program("llama").plan
    per_sequence = -(-plan.context // 16)
    assert memory_for(plan, "f16", None, cache_gb=1e6).n_blocks == per_sequence * MAX_SEQUENCES
    blocks = {kv: memory_for(plan, kv, None, cache_gb=1e-4).n_blocks for kv in ("f32", "f16", "q8_0")}
    assert 1.9 < blocks["f16"] / blocks["f32"] < 2.1 and 1.8 < blocks["q8_0"] / blocks["f16"] < 1.95
    with pytest.raises(CapacityError, match="one block of the KV cache needs"):
        memory_for(plan, "f16", None, cache_gb=1e-9)


def test_a_consumer_whose_loop_is_closed_does_not_disturb_the_others() -> None:
    m = model()
    stream = m.submit(ChatRequest(wish(max_tokens=None), prompt="9"))

    async def begin() -> None:
        await anext(aiter(stream))

    asyncio.run(begin())
    assert "".join(
        e.text for e in m.submit(ChatRequest(wish(), prompt="12")) if not isinstance(e, Finished)
    ) == (text_of("12"))
    m.close()


def test_a_load_that_fails_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prompter = Prompter(Letters(), ChatTemplate("{{ messages }}"))  # type: ignore[arg-type]
    assert prompter.template is not None
    prompter.template.warm()
    worker = prompter.template._worker
    assert worker is not None
    monkeypatch.setattr(runner, "find", lambda name: SimpleNamespace(path=Path("x"), made=None))
    monkeypatch.setattr(runner, "open_checkpoint", lambda path: None)
    monkeypatch.setattr(runner, "build", lambda checkpoint, context: (program("llama").plan, {}))
    monkeypatch.setattr(runner.Prompter, "of", lambda *_: prompter)
    with pytest.raises(UsageError, match="unknown backend"):
        Model.load("x", backend="none")
    assert worker._process.poll() is not None
    with pytest.raises(UsageError, match="-1 tokens makes no sense"):
        Model.load("x", context=-1)


def test_closing_twice_and_from_the_engine_thread_is_harmless() -> None:
    class Closing(FakeProgram):
        def step(self, batch: object) -> object:
            m.close()
            return super().step(batch)  # type: ignore[arg-type]

    m = Model(INFO, Prompter(Letters(), None), Engine(Closing(8)), 0.0)  # type: ignore[arg-type]
    *_, end = m.submit(ChatRequest(wish(max_tokens=None), prompt="1"))
    assert isinstance(end, Finished) and end.reason == "abort"
    m.close()


def test_a_request_cancelled_before_it_began_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    with m._step_lock:  # the thread waits here with the inbox in its hands, or has not woken yet
        stream = m.submit(ChatRequest(wish(n=3, max_tokens=None), prompt="1"))
        stream.cancel()
    assert [e.reason for e in stream if isinstance(e, Finished)] == ["abort"] * 3
    stream.cancel()
    m.check()
    m.close()


def test_a_model_whose_file_is_gone_is_freed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models(lambda name, **_: model())
    m = models.get("mead")

    def gone(name: str) -> None:
        raise ModelError("no such file")

    monkeypatch.setattr("kvasir.runner.registry.find", gone)
    assert models.unload("mead") and not m._thread.is_alive()


def test_closing_waits_for_what_is_being_loaded() -> None:
    began, go = threading.Event(), threading.Event()
    made: list[Model] = []

    def load(name: str, **_: object) -> Model:
        began.set()
        go.wait(10)
        made.append(model())
        return made[0]

    models = Models(load)
    threading.Thread(target=models.get, args=("mead",)).start()
    began.wait(10)
    threading.Timer(0.05, go.set).start()
    models.close()
    assert made and not made[0]._thread.is_alive() and models.loaded() == []


def test_a_chat_is_cut_at_whole_turns() -> None:
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "user"]
    messages = tuple(Message(role, str(i)) for i, role in enumerate(roles))
    template = ChatTemplate(
        "{% for m in messages if m.role != 'system' %}"
        "{% if loop.first and m.role != 'user' %}{{ raise_exception('begins with an answer') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    prompter = Prompter(Letters(), template)  # type: ignore[arg-type]
    for limit, left in ((8, "1234567"), (7, "567"), (4, "567"), (3, "7")):
        request = ChatRequest(SamplingParams(), messages, truncate=True)
        tokens, n_truncated = prompter.tokens(request, limit)
        assert (tokens, n_truncated) == (Letters().encode(left), 7 - len(left)), limit
    prompter.close()


def test_streams_end_with_what_ended_them() -> None:
    stream = Stream(2, (1,), lambda s: None)
    stream.put(CapacityError("no room"))
    with pytest.raises(CapacityError):
        next(iter(stream))
    assert list(stream) == []
