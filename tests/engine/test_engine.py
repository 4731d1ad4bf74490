"""The scheduler's law against a scripted program: whatever is mixed, chopped or preempted, answers stay
the same.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.engine.blocks import BlockPool
from kvasir.engine.engine import Engine
from kvasir.engine.sequence import Sequence
from kvasir.errors import Bug, CapacityError, UsageError
from kvasir.sampling import SamplingParams
from tests.engine.fake import VOCAB, FakeProgram, Resting, expected

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def drain(engine: Engine, most: int = 10_000) -> None:
    for _ in range(most):
        if not engine.has_work:
            return
        engine.step()
        engine.check()
    raise AssertionError("the engine never came to an end")


def start(engine: Engine, prompt: list[int], params: SamplingParams = GREEDY) -> Sequence:
    sequence = engine.sequence(prompt, params)
    engine.add(sequence)
    return sequence


prompts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=70), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(prompts, st.integers(6, 30), st.integers(1, 40), st.integers(1, 8), st.booleans(), st.booleans())
def test_answers_do_not_depend_on_load(prompts, n_blocks, step_tokens, max_sequences, slots, rests):
    program = (Resting if rests else FakeProgram)(n_blocks, n_slots=3 * slots)
    engine = Engine(program, (), max_sequences, step_tokens)
    sequences = [start(engine, p) for p in prompts]
    drain(engine)
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sequence.generated == expected(prompt, len(sequence.generated))
        full = n_blocks * 16
        assert sequence.finished == "length"
        assert len(sequence.generated) == min(GREEDY.max_tokens, full - len(prompt))
    assert engine.pool.n_free + engine.pool.n_idle == n_blocks
    engine.scheduler.radix.clear()
    engine.check()
    assert engine.pool.n_free == n_blocks


def test_a_preempted_sequence_waits_until_all_of_it_fits():
    """Else it would be let in for its first chunks, and be preempted by its own next one, over and over."""
    program = FakeProgram(20)
    engine = Engine(program, (), step_tokens=32)
    old = start(engine, [1] * 100, SamplingParams(temperature=0, max_tokens=150))
    young = start(engine, [2] * 150, SamplingParams(temperature=0, max_tokens=100))
    drain(engine)
    assert (old.n_preempted, young.n_preempted) == (0, 1)
    assert young.generated == expected([2] * 150, 100)
    assert sum(map(sum, program.steps)) < 250 + 2 * 250


def test_a_step_never_exceeds_its_budget_and_a_long_prompt_does_not_hold_up_a_decode():
    program = FakeProgram(200)
    engine = Engine(program, (), step_tokens=32)
    short = start(engine, [1, 2, 3], SamplingParams(temperature=0, max_tokens=40))
    engine.step()
    long = start(engine, list(range(60)) * 16, SamplingParams(temperature=0, max_tokens=2))
    before = short.n_generated
    for _ in range(10):
        engine.step()
    assert short.n_generated == before + 10, "the decode went on in every step of the prefill"
    drain(engine)
    assert all(sum(step) <= 32 for step in program.steps)
    assert long.generated == expected(list(range(60)) * 16, 2)


def test_running_out_of_blocks_preempts_the_youngest_and_changes_nothing():
    engine = Engine(FakeProgram(8), (), step_tokens=64)
    params = SamplingParams(temperature=0, max_tokens=60)
    old, young = start(engine, [1] * 20, params), start(engine, [2] * 20, params)
    drain(engine)
    assert young.n_preempted > 0 and old.n_preempted == 0
    assert old.generated == expected([1] * 20, 60)
    assert young.generated == expected([2] * 20, 60)


def test_eos_min_tokens_and_ignore_eos():
    prompt = [5, 6, 7]
    law = expected(prompt, 10)
    engine = Engine(FakeProgram(8), {law[3]})
    stopped = start(engine, prompt)
    ignoring = start(engine, prompt, SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    later = start(engine, prompt, SamplingParams(temperature=0, max_tokens=10, min_tokens=6))
    drain(engine)
    first = law.index(law[3]) + 1
    assert (stopped.generated, stopped.finished) == (law[:first], "stop")
    assert ignoring.generated == law
    assert law[3] not in later.generated[:6]


def test_aborting_anywhere_frees_every_block():
    engine = Engine(FakeProgram(20), (), step_tokens=16)
    waiting, prefilling, decoding = (start(engine, [i] * (40 * (i == 1) + 4)) for i in (2, 1, 3))
    engine.step()
    for sequence in (waiting, prefilling, decoding):
        engine.finish(sequence, "abort")
        engine.finish(sequence, "abort")
        engine.check()
    assert not engine.has_work and engine.pool.n_free + engine.pool.n_idle == 20


def test_refusals_name_both_numbers():
    engine = Engine(FakeProgram(4, context=32))
    with pytest.raises(UsageError, match=r"40 tokens and the context holds 32"):
        engine.sequence([1] * 40, GREEDY)
    with pytest.raises(UsageError, match=r"16 tokens and the context holds 10"):
        engine.sequence([1] * 16, GREEDY, max_context=10)
    with pytest.raises(UsageError, match=r"token id 64 is not in the vocabulary of 64"):
        engine.sequence([64], GREEDY)
    with pytest.raises(UsageError, match="no tokens"):
        engine.sequence([], GREEDY)
    with pytest.raises(UsageError, match="token id 99"):
        engine.sequence([1], SamplingParams(logit_bias={99: 1.0}))
    with pytest.raises(CapacityError, match=r"70 tokens and the KV cache holds 64"):
        engine.add(Sequence([1] * 70, GREEDY, 100, seed=0))


def test_the_context_is_a_limit_of_the_answer():
    engine = Engine(FakeProgram(10, context=24))
    sequence = start(engine, [1] * 20, SamplingParams(temperature=0, max_tokens=None))
    drain(engine)
    assert (len(sequence.tokens), sequence.finished) == (24, "length")


def test_the_same_seed_gives_the_same_tokens_whatever_else_runs():
    wish = SamplingParams(temperature=5.0, seed=42, max_tokens=20)
    alone = Engine(FakeProgram(30))
    one = start(alone, [1, 2, 3], wish)
    drain(alone)
    busy = Engine(FakeProgram(30), step_tokens=7)
    for i in range(5):
        start(busy, [i] * 9, SamplingParams(temperature=5.0, seed=i, max_tokens=9))
    two = start(busy, [1, 2, 3], wish)
    drain(busy)
    assert one.generated == two.generated
    other = Engine(FakeProgram(30))
    three = start(other, [1, 2, 3], SamplingParams(temperature=5.0, seed=43, max_tokens=20))
    drain(other)
    assert three.generated != one.generated


def test_logit_bias_and_logprobs():
    engine = Engine(FakeProgram(4))
    sequence = engine.sequence(
        [1], SamplingParams(temperature=0, max_tokens=1, logit_bias={9: 50.0}, logprobs=2)
    )
    engine.add(sequence)
    (token,) = engine.step()
    assert token.token_id == 9
    assert token.logprob is not None
    assert token.logprob.top[0][0] == expected([1], 1)[0], "log probabilities are the model's own"
    assert token.logprob.logprob == pytest.approx(token.logprob.top[0][1] - 10, abs=1e-5)


class TestBlockPool:
    def test_a_block_given_back_twice_is_a_bug(self):
        pool = BlockPool(4)
        taken = pool.take(2)
        pool.give_back(taken)
        with pytest.raises(Bug, match="twice"):
            pool.give_back(taken)

    def test_shared_blocks_need_as_many_returns(self):
        pool = BlockPool(2)
        taken = pool.take(2)
        pool.share(taken)
        pool.give_back(taken)
        assert pool.n_free == 0
        pool.check([taken])
        pool.give_back(taken)
        pool.check([])
        with pytest.raises(Bug):
            pool.share(taken)

    def test_check_finds_a_leak(self):
        pool = BlockPool(3)
        taken = pool.take(1)
        with pytest.raises(Bug, match="not accounted for"):
            pool.check([])
        pool.check([taken])
        assert pool.take(3) is None, "all or nothing"
