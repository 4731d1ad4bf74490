"""Adapters in the engine and behind the faces: many at once, chosen by request, loaded and gone meanwhile;
the prefix cache, drafts, preemption and company change no answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvasir import LLM, LoRARequest, SamplingParams
from kvasir.backends.base import Adapter, Memory, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.chat import ChatRequest, Delta, Finished
from kvasir.checkpoint.adapters import open_adapter
from kvasir.checkpoint.config import Config
from kvasir.checkpoint.open import open_checkpoint
from kvasir.engine import disk
from kvasir.engine.engine import Engine
from kvasir.errors import CapacityError, CheckpointError, ModelError, UsageError
from kvasir.models import build
from kvasir.models.adapters import fit_adapter
from kvasir.plan.passes import adapt
from kvasir.runner.adapters import AdapterInfo, Base
from kvasir.runner.client import ModelProcess
from kvasir.runner.model import Model
from kvasir.runner.prompt import Prompter
from kvasir.sampling import SamplingParams as Params
from tests.adapter_files import mead, pairs, write_peft
from tests.engine.fake import FakeProgram
from tests.engine.test_disk import running
from tests.engine.test_engine import drain
from tests.engine.test_model import INFO, Letters, wish
from tests.engine.test_prefix import ask
from tests.parity.cases import CASES, GOLDEN

GREEDY = Params(temperature=0, max_tokens=12)
DRAWN = Params(temperature=1, seed=4, max_tokens=12)
NAMES = ["", "one", "two"]


def fitted(name: str, folder: Path) -> dict[str, Adapter]:
    checkpoint = open_checkpoint(GOLDEN / name)
    plan, _ = build(checkpoint, CASES[name].context)
    files = {key: open_adapter(write_peft(folder / key, pairs(name, i))) for i, key in enumerate(NAMES[1:])}
    return {key: fit_adapter(file, checkpoint.config, plan) for key, file in files.items()}


def program(name: str, n_blocks: int = 64) -> Program:
    plan, weights = build(open_checkpoint(GOLDEN / name), CASES[name].context)
    return CpuBackend(threads=2, oversubscribe=True).compile(adapt(plan), weights, Memory(n_blocks, 8, "f32"))


@pytest.mark.parametrize("name", ["qwen3", "qwen35", "gemma2"])
def test_company_cache_drafts_and_preemption_change_no_answer(name: str, tmp_path: Path) -> None:
    """Prompts that begin alike, each with no adapter and with either of two."""
    adapters = fitted(name, tmp_path)
    rng = np.random.default_rng(2)
    trunk = rng.integers(3, 80, 40).tolist()
    prompts = [trunk + rng.integers(3, 80, n).tolist() for n in (4, 2)]
    asked = [(prompt, key) for prompt in prompts for key in NAMES]

    def run(n_blocks: int, together: bool, **wishes: object) -> tuple[list[list[int]], Engine]:
        engine = Engine(program(name, n_blocks), max_sequences=4, step_tokens=24, **wishes)  # type: ignore[arg-type]
        for key, adapter in adapters.items():
            engine.adapters.load(key, adapter)
        found = []
        for prompt, key in asked:
            sequence = engine.sequence(prompt, DRAWN, adapter=key)
            engine.add(sequence)
            found.append(sequence)
            while engine.has_work and not together:
                engine.step()
        while engine.has_work:
            engine.step()
            engine.check()
        return [s.generated for s in found], engine

    alone, _ = run(64, False, reuse=False, drafter=None)
    assert len({tuple(a) for a in alone[:3]}) == 3, "the adapters do nothing"
    warm, engine = run(64, False)
    assert warm == alone and 0 < engine.totals.n_cached <= 3 * 32, "each finds its own prefix and no other's"
    assert run(64, True)[0] == alone
    crowded, engine = run(6, True)
    assert crowded == alone and engine.totals.n_preempted > 0


def test_what_the_disk_kept_comes_back_for_the_same_adapter_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LEAST_BLOCKS", 1)
    adapters = fitted("qwen3", tmp_path)
    prompt = np.random.default_rng(2).integers(3, 80, 50).tolist()

    def said(key: str) -> tuple[list[int], int]:
        with running(tmp_path / "cache", program("qwen3")) as engine:
            for name, adapter in adapters.items():
                engine.adapters.load(name, adapter)
            sequence = ask(engine, prompt, adapter=key)
            drain(engine)
        return sequence.generated, sequence.n_cached

    cold = {key: said(key) for key in NAMES}
    assert [n_cached for _, n_cached in cold.values()] == [0, 0, 0] and cold[""][0] != cold["one"][0]
    assert {key: said(key) for key in NAMES} == {key: (text, 48) for key, (text, _) in cold.items()}


def test_an_adapter_leaves_after_its_last_answer(tmp_path: Path) -> None:
    fake = FakeProgram(64)
    engine = Engine(fake)
    for key in ("a", "b"):
        engine.adapters.load(key, {})
    busy = engine.sequence([3, 4, 5], GREEDY, adapter="a")
    engine.add(busy)
    engine.adapters.unload("a")
    engine.adapters.unload("b")
    assert fake.adapters == [(0, True), (1, True), (1, False)]
    with pytest.raises(UsageError, match="not loaded any more"):
        engine.add(engine.sequence([3], GREEDY, adapter="a"))
    engine.adapters.load("c", {})
    while engine.has_work:
        engine.step()
    assert fake.adapters[3:] == [(1, True), (0, False)]
    engine.adapters.load("a", {})
    assert fake.adapters[-1] == (0, True)


def test_an_adapter_that_comes_back_while_it_leaves_stays() -> None:
    fake = FakeProgram(64)
    engine = Engine(fake)
    engine.adapters.load("a", {})
    sequence = engine.sequence([3, 4], GREEDY, adapter="a")
    engine.add(sequence)
    engine.adapters.unload("a")
    engine.adapters.load("a", {})
    engine.finish(sequence, "abort")
    engine.add(engine.sequence([3, 4], GREEDY, adapter="a"))
    assert fake.adapters == [(0, True)]


class Shelf(Base):
    """Adapters that are nothing but their path."""

    def __init__(self) -> None:
        super().__init__(Config({}, "none"), FakeProgram(1).plan)

    def open(self, name: str, path: Path | str) -> tuple[AdapterInfo, Adapter]:  # type: ignore[override]
        return AdapterInfo(name, Path(path), f"key of {path}", 1, 1), {}


def test_names_are_given_and_taken_while_the_model_runs() -> None:
    fake = FakeProgram(64)
    m = Model(INFO, Prompter(Letters(), None), Engine(fake), 0.0, Shelf())  # type: ignore[arg-type]
    try:
        m.load_adapter("x", "/1")
        m.load_adapter("twin", "/1")
        assert m.load_adapter("x", "/1").key == "key of /1" and sorted(m.adapters) == ["twin", "x"]
        with pytest.raises(UsageError, match="another adapter is called x"):
            m.load_adapter("x", "/2")
        stream = m.submit(ChatRequest(wish(), prompt="123", adapter="x"))
        assert isinstance(list(stream)[-1], Finished)
        m.unload_adapter("x")
        for name, hint in (("x", "twin"), ("twim", "twin")):
            with pytest.raises(UsageError, match=f"no adapter '{name}' is loaded .there is {hint}"):
                m.submit(ChatRequest(wish(), prompt="123", adapter=name))
        with pytest.raises(UsageError, match="no adapter 'x'"):
            m.unload_adapter("x")
        assert isinstance(list(m.submit(ChatRequest(wish(), prompt="1", adapter="twin")))[-1], Finished)
        m.unload_adapter("twin")
        m.load_adapter("other", "/3")  # after what was unloaded is gone
        assert fake.adapters == [(0, True), (0, False), (0, True)]
    finally:
        m.close()
    with pytest.raises(CapacityError, match="being unloaded"):
        m.load_adapter("late", "/4")


def test_a_model_without_a_base_takes_none() -> None:
    m = Model(INFO, Prompter(Letters(), None), Engine(FakeProgram(8)), 0.0)  # type: ignore[arg-type]
    try:
        with pytest.raises(UsageError, match="takes no adapters"):
            m.load_adapter("x", "/1")
        with pytest.raises(UsageError, match="the model has none"):
            m.submit(ChatRequest(wish(), prompt="1", adapter="x"))
    finally:
        m.close()


# -- the built-in model -----------------------------------------------------------------------------


QUESTION = [{"role": "user", "content": "What is a VLAN?"}]


def test_many_adapters_answer_in_one_batch(tmp_path: Path) -> None:
    one, two = mead(tmp_path / "1.gguf", 1), mead(tmp_path / "2.gguf", 2)
    params = SamplingParams(temperature=0.7, seed=5, max_tokens=24)
    with LLM("mead") as plain:
        bare = plain.chat(QUESTION, params)[0].token_ids
    with LLM("mead", adapters={"one": one}) as llm:  # type: ignore[dict-item]
        assert llm.adapters["one"].rank == 8 and 0 < one.stat().st_size - llm.adapters["one"].n_bytes < 20_000
        who = [None, "one", LoRARequest("two", 2, str(two)), "one", None]
        found = [r.token_ids for r in llm.chat([QUESTION] * 5, params, lora_request=who, use_tqdm=False)]
        assert found[0] == found[4] == bare and found[1] == found[3]
        assert len({bare, found[1], found[2]}) == 3
        assert [llm.chat(QUESTION, params, lora_request=w)[0].token_ids for w in who[:3]] == found[:3]
        (*_, last) = llm.stream_chat(QUESTION, params, lora_request="two")
        assert last.token_ids == found[2]
        llm.unload_adapter("two")
        with pytest.raises(UsageError, match="no adapter 'two'"):
            llm.chat(QUESTION, params, lora_request="two")
        llm.model.check()


def test_a_draft_model_changes_no_answer_of_an_adapter(tmp_path: Path) -> None:
    path = str(mead(tmp_path / "1.gguf", 1, loud=0.5))
    params = SamplingParams(temperature=0, max_tokens=32)
    found = []
    for draft in (None, "mead-draft"):
        with LLM("mead", draft=draft, adapters={"x": path}) as llm:
            found.append(llm.chat([QUESTION] * 2, params, lora_request=["x", None], use_tqdm=False))
    assert [r.token_ids for r in found[0]] == [r.token_ids for r in found[1]]
    assert found[1][0].metrics.n_drafted > 0


def test_what_vllm_users_write(tmp_path: Path) -> None:
    path = str(mead(tmp_path / "1.gguf", 1))
    with LLM("mead") as llm:
        for _ in range(2):
            found = llm.generate(["A VLAN is", "DNS"], SamplingParams(temperature=0, max_tokens=5),
                                 lora_request=LoRARequest("sql", 1, path), use_tqdm=False)  # fmt: skip
        assert llm.adapters["sql"].path == Path(path) and len(found) == 2
        (*_, last) = llm.stream("DNS", max_tokens=5, temperature=0, lora_request="sql")
        assert last.token_ids == found[1].token_ids
        with pytest.raises(UsageError, match="1 LoRA requests for 2 prompts"):
            llm.generate(["a", "b"], lora_request=["sql"])
        with pytest.raises(UsageError, match=r"kvasir.LoRARequest"):
            llm.generate("a", lora_request={"name": "sql"})  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="no such file"):
            llm.generate("a", lora_request=LoRARequest("none", 2, str(tmp_path / "none.gguf")))
        with pytest.raises(UsageError, match="no name for an adapter"):
            llm.load_adapter("a\nb", path)


def test_an_adapter_that_does_not_fit_ends_the_load(tmp_path: Path) -> None:
    wrong = write_peft(tmp_path / "wrong", pairs("qwen3"))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Model.load("mead", adapters={"wrong": str(wrong)})


def test_a_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    one, two = str(mead(tmp_path / "1.gguf", 1)), str(mead(tmp_path / "2.gguf", 2))
    params = Params(temperature=0, max_tokens=12)

    def said(m: Model | ModelProcess, adapter: str) -> tuple[int, ...]:
        events = list(m.submit(ChatRequest(params, prompt="What is DNS?", adapter=adapter)))
        return tuple(t for e in events if isinstance(e, Delta) for t in e.token_ids)

    here = Model.load("mead", adapters={"one": one, "two": two})
    there = ModelProcess.load("mead", adapters={"one": one})
    try:
        assert there.load_adapter("two", two).key == here.adapters["two"].key
        assert sorted(there.adapters) == ["one", "two"]
        for name in ("", "one", "two"):
            assert said(there, name) == said(here, name)
        there.unload_adapter("one")
        with pytest.raises(UsageError, match="no adapter 'one' is loaded"):
            said(there, "one")
        with pytest.raises(ModelError, match="no such file"):
            there.load_adapter("none", str(tmp_path / "none"))
        there.check()
    finally:
        here.close()
        there.close()
