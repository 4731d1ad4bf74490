"""Same seeds, same texts, on real models: the prefix cache, drafts and company change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir import LLM, SamplingParams
from kvasir.backends.base import Memory, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.checkpoint.open import open_checkpoint
from kvasir.engine.draft_model import ModelDrafter
from kvasir.engine.engine import Engine
from kvasir.engine.sequence import Sequence
from kvasir.errors import UsageError
from kvasir.models import build
from kvasir.runner.model import draft_model
from kvasir.sampling import SamplingParams as Params
from tests.engine.test_drafts import on_a_machine
from tests.parity.cases import CASES, GOLDEN
from tests.stepping import program

QUESTIONS = [
    "What is a VLAN?", "Explain DNS in one sentence", "What is a VLAN and what is it for?",
    "Repeat: one two three one two three one two three one two",
]  # fmt: skip


def texts(llm: LLM, params: SamplingParams) -> list[tuple[int, ...]]:
    conversations = [[{"role": "user", "content": q}] for q in QUESTIONS]
    return [r.token_ids for r in llm.chat(conversations, params, use_tqdm=False)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_mead_says_the_same_with_a_draft_model_and_again_from_the_cache(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=48)
    with LLM("mead") as plain:
        first = texts(plain, params)
        again = texts(plain, params)
        hit = plain.chat([{"role": "user", "content": QUESTIONS[3]}], params)[0]
        assert hit.metrics.n_cached >= 16 and hit.token_ids == first[3]
        plain.model.check()
    with LLM("mead", draft="mead-draft") as drafted:
        guessed = texts(drafted, params)
    assert first == again == guessed


def test_a_draft_with_another_vocabulary_is_refused() -> None:
    with LLM("mead") as llm:
        own = llm.model.prompter.tokenizer
    near = SimpleNamespace(n_vocab=own.n_vocab, piece=lambda i: own.piece(i) if i != 7 else "?")
    for other in (SimpleNamespace(n_vocab=own.n_vocab + 1), near):
        with pytest.raises(UsageError, match="another vocabulary"):
            draft_model("mead-draft", other, CpuBackend(threads=1), Memory(8))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen3", "qwen35", "gemma3", "gpt-oss", "qwen3-moe"])
def test_families_give_the_same_tokens_from_the_cache_and_with_drafts(name: str) -> None:
    """Windows, sinks, experts and recurrent states; prompts that begin alike, in small steps."""
    backend = CpuBackend(threads=2, oversubscribe=True)
    vocab = program(name).plan.n_vocab
    rng = np.random.default_rng(1)
    trunk = rng.integers(0, vocab, 60).tolist()
    prompts = [trunk[: int(n)] + rng.integers(0, vocab, 5).tolist() for n in rng.integers(20, 60, 6)]
    wish = Params(temperature=0, max_tokens=14)

    def run(p: Program, together: bool, **wishes: object) -> list[list[int]]:
        engine = Engine(p, max_sequences=3, step_tokens=24, **wishes)  # type: ignore[arg-type]
        found = []
        for prompt in prompts:
            sequence = engine.sequence(prompt, wish)
            engine.add(sequence)
            found.append(sequence)
            while engine.has_work and not together:
                engine.step()
        while engine.has_work:
            engine.step()
            engine.check()
        if wishes.get("reuse", True):
            assert sum(s.n_cached for s in found) > 0
        return [s.generated for s in found]

    alone = run(program(name, backend), False, reuse=False, drafter=None)
    assert run(program(name, backend), True) == alone
    assert run(program(name, backend), False) == alone


N_TOGETHER = 32
requests = st.lists(
    st.tuples(
        st.integers(0, 2),  # which beginning it shares
        st.integers(0, 40),  # how much of it
        st.integers(1, 12),  # tokens after that
        st.integers(1, 24),  # tokens of its answer
        st.sampled_from([0.0, 1.0]),  # temperature
        st.integers(0, 3),  # steps before the next one comes
        st.one_of(st.none(), st.integers(0, 30)),  # steps until it is cancelled
    ),
    min_size=2,
    max_size=N_TOGETHER,
)


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(["qwen3", "qwen35", "gemma3", "gpt-oss"]),
    schedule=requests,
    threads=st.integers(1, 4),
    n_blocks=st.sampled_from([8, 14, 90]),
    step_tokens=st.integers(5, 60),
    drafter=st.sampled_from([None, "ngram", "qwen3", "qwen35"]),
    reuse=st.booleans(),
    restless=st.booleans(),
)
def test_no_schedule_changes_what_a_real_model_says(
    name, schedule, threads, n_blocks, step_tokens, drafter, reuse, restless
):
    """Threads, company, preemption, chunks and their pieces, prefixes, guesses, also another model's."""
    vocab = program(name).plan.n_vocab
    rng = np.random.default_rng(7)
    trunks = rng.integers(0, vocab, (3, 40)).tolist()
    backend = CpuBackend(threads=threads, oversubscribe=True)
    guesser = drafter
    if drafter in CASES:
        other = compiled(drafter, backend, 60)
        guesser = ModelDrafter(other if other.plan.n_vocab == vocab else compiled(name, backend, 60))
    engine = Engine(compiled(name, backend, n_blocks), (), 32, step_tokens, drafter=guesser, reuse=reuse)
    priced(engine)
    if restless:  # an op of a prompt's chunk a step
        engine.scheduler.pace.extra_s = lambda *_: 0.0
    asked: list[tuple[Sequence, int]] = []
    now = 0

    def step() -> None:
        nonlocal now
        now += 1
        for sequence, end in asked:
            if now > end:
                engine.finish(sequence, "abort")
        engine.step()

    for which, share, more, n_tokens, temperature, wait, cancel in schedule:
        prompt = trunks[which][:share] + rng.integers(0, vocab, more).tolist()
        wish = Params(temperature=temperature, seed=len(asked), max_tokens=n_tokens, ignore_eos=True)
        sequence = engine.sequence(prompt, wish)
        engine.add(sequence)
        asked.append((sequence, 10**9 if cancel is None else now + cancel))
        for _ in range(wait):
            step()
    while engine.has_work:
        step()
    engine.check()
    alone = Engine(compiled(name, CpuBackend(threads=1), 8), reuse=False, drafter=None)
    for sequence, _ in asked:
        twin = alone.sequence(sequence.tokens[: sequence.n_prompt], sequence.params)
        alone.add(twin)
        while alone.has_work:
            alone.step()
        assert sequence.generated == twin.generated[: sequence.n_generated]
        assert sequence.finished == "abort" or sequence.n_generated == twin.n_generated


def compiled(name: str, backend: CpuBackend, n_blocks: int) -> Program:
    """A tiny model of tests/golden, with room for so much."""
    plan, weights = build(open_checkpoint(GOLDEN / name), CASES[name].context)
    return backend.compile(plan, weights, Memory(n_blocks, 40, "f16"))


@pytest.mark.parametrize("name", ["qwen3", "qwen35"])
@pytest.mark.parametrize("guesser", ["qwen3", "qwen35"])
def test_what_the_schedules_above_can_do_they_do(name: str, guesser: str) -> None:
    """Among 31 others: preempted, guessed right or wrong, from the cache."""
    backend = CpuBackend(threads=2, oversubscribe=True)
    drafter = ModelDrafter(compiled(guesser, backend, 60))
    engine = priced(Engine(compiled(name, backend, 16), (), 32, 40, drafter=drafter))
    wish = Params(temperature=0, max_tokens=40, ignore_eos=True)
    found = [engine.sequence([5, 6, 7, 8] * 8 + [i % 3], wish) for i in range(N_TOGETHER)]
    for sequence in found:
        engine.add(sequence)
    while engine.has_work:
        engine.step()
        engine.check()
    totals = engine.totals
    assert totals.n_preempted and totals.n_cached and totals.n_drafted > 20
    assert (totals.n_accepted > 0.9 * totals.n_drafted) == (name == guesser)
    alone = Engine(compiled(name, backend, 8), reuse=False, drafter=None)
    for i in range(3):
        twin = alone.sequence(found[i].tokens[:33], wish)
        alone.add(twin)
        while alone.has_work:
            alone.step()
        assert all(s.generated == twin.generated for s in found[i::3])


def priced(engine: Engine) -> Engine:
    """The engine on a machine where rows cost next to nothing, so that all is guessed that can be."""
    return on_a_machine(engine, lambda n: 1 + 0.001 * n)
