"""Drafts: they save steps where they are right, cost little where they are not, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens

import pytest

from kvasir.engine.cost import FEWEST_ALONE, Pace, StepCost
from kvasir.engine.draft_model import ModelDrafter
from kvasir.engine.drafts import NgramDrafter, Speculation
from kvasir.engine.engine import Engine
from kvasir.engine.sequence import Sequence
from kvasir.sampling import SamplingParams
from tests.engine.fake import FakeProgram, expected, next_token
from tests.engine.test_engine import drain, start


def cycle(tokens: Tokens[int]) -> int:
    return 2 + (tokens[-1] + 1) % 11


def on_a_machine(engine: Engine, seconds: Callable[[int], float]) -> Engine:
    """The engine with known costs of steps, so that no test depends on the time that a test takes."""
    for n in range(1, 200):
        engine.cost.observe(n, seconds(n))
    engine.cost.observe = lambda n_rows, took: None  # type: ignore[method-assign]
    return engine


def test_repeating_text_takes_fewer_steps():
    program = FakeProgram(60, law=cycle)
    engine = on_a_machine(Engine(program), lambda n: 1 + 0.05 * n)
    sequence = start(engine, [2], SamplingParams(temperature=0, max_tokens=200))
    drain(engine)
    assert sequence.generated == expected([2], 200, cycle)
    assert len(program.steps) < 60
    metrics = sequence.metrics()
    assert metrics.n_accepted > 140 and metrics.n_drafted < 1.2 * metrics.n_accepted


def test_text_without_repeats_gets_no_drafts_for_long():
    program = FakeProgram(60)
    engine = on_a_machine(Engine(program), lambda n: 1 + 0.05 * n)
    sequence = start(engine, [2], SamplingParams(temperature=0, max_tokens=300))
    drain(engine)
    assert sequence.generated == expected([2], 300)
    assert sequence.n_drafted < 40


def test_an_answer_ends_where_it_would_have_ended():
    law = expected([2], 30, cycle)
    for most in (1, 2, 3, 17, 25):
        engine = on_a_machine(Engine(FakeProgram(60, law=cycle)), lambda n: 1)
        sequence = start(engine, [2], SamplingParams(temperature=0, max_tokens=most))
        drain(engine)
        assert sequence.generated == law[:most]
    engine = on_a_machine(Engine(FakeProgram(60, law=cycle), {law[5]}), lambda n: 1)
    sequence = start(engine, [2] + law[:4] * 3, SamplingParams(temperature=0, max_tokens=30))
    drain(engine)
    assert sequence.finished == "stop" and sequence.tokens[-1] == law[5]


def test_drafts_never_take_the_last_blocks_from_others():
    program = FakeProgram(4, law=cycle)
    engine = on_a_machine(Engine(program), lambda n: 1)
    one, two = (start(engine, [i], SamplingParams(temperature=0, max_tokens=31)) for i in (2, 3))
    drain(engine)
    assert one.generated == expected([2], 31, cycle) and two.generated == expected([3], 31, cycle)
    assert one.n_preempted == two.n_preempted == 0


def test_the_index_finds_the_latest_place():
    drafter = NgramDrafter()
    sequence = Sequence([1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3], SamplingParams(), 100, seed=0)
    assert drafter.propose([(sequence, 3)]) == [[5, 8, 1]]
    sequence.append(5)
    assert drafter.propose([(sequence, 2)]) == [[8, 1]]
    sequence.append(77)
    assert drafter.propose([(sequence, 2)]) == [[]]


class Known(NgramDrafter):
    """Always right, or always wrong."""

    def __init__(self, right: bool):
        super().__init__()
        self.right = right

    def propose(self, wanted):
        guesses = []
        for sequence, count in wanted:
            truth = expected(sequence.tokens, count)
            guesses.append(truth if self.right else [2 + (t - 1) % 60 for t in truth])
        return guesses


@pytest.mark.parametrize("right", [True, False])
def test_acceptance_decides_how_many(right):
    program = FakeProgram(60)
    engine = on_a_machine(Engine(program, drafter=Known(right)), lambda n: 1 + 0.01 * n)
    sequence = start(engine, [2], SamplingParams(temperature=0, max_tokens=200))
    drain(engine)
    assert sequence.generated == expected([2], 200)
    if right:
        assert len(program.steps) < 30
    else:
        assert sequence.n_accepted == 0 and sequence.n_drafted < 60


def test_rows_that_cost_as_much_as_steps_are_not_guessed():
    cost = StepCost()
    for n in range(1, 40):
        cost.observe(n, float(n))
    speculation = Speculation(NgramDrafter(), cost)
    sequence = Sequence([1], SamplingParams(max_tokens=100), 1000, seed=0)
    assert speculation.counts([sequence], 1) == [0]


def test_next_token_is_what_the_tests_think():
    assert expected([1], 2) == [next_token([1]), next_token([1, next_token([1])])]


class TestStepCost:
    def test_it_learns_and_interpolates(self):
        cost = StepCost()
        assert cost.predict(5) == 0 and not cost.knows(5)
        for _ in range(30):
            for n in (1, 8, 64, 512):
                cost.observe(n, 0.01 + 0.002 * n)
        assert cost.predict(1) == pytest.approx(0.012)
        assert cost.predict(36) == pytest.approx(0.01 + 0.002 * 36)
        assert cost.predict(1024) == pytest.approx(2 * cost.predict(512))
        assert cost.knows(9) and not cost.knows(30)

    def test_one_slow_step_is_not_believed(self):
        cost = StepCost()
        for _ in range(10):
            cost.observe(4, 0.01)
        cost.observe(4, 5.0)
        assert cost.predict(4) < 0.013


class TestPace:
    """Chunks of prompts beside answers, on a machine whose costs are known."""

    def learned(self, seconds: Callable[[int, int], float], n_decodes: int = 4, n_waiting: int = 1) -> int:
        """Rows of prompts that a step gets in the end; checks that no step before takes too long."""
        pace = Pace()
        assert pace.rows(n_decodes, n_waiting, 512) == 0, "the first step goes alone, to be measured"
        pace.observe(n_decodes, 0, seconds(n_decodes, 0))
        given = []
        for _ in range(200):
            given.append(pace.rows(n_decodes, n_waiting, 512))
            pace.observe(n_decodes, given[-1], seconds(n_decodes, given[-1]))
        late = [
            n for n in given[5:] if seconds(n_decodes, n) > (1 + 0.75 * n_waiting) * seconds(n_decodes, 0)
        ]
        assert len(late) <= len(given) / 100, f"steps with {late} rows"
        assert 2 <= given.count(0) <= 5, "now and then a step goes alone"
        return given[-1]

    def test_a_prompt_makes_no_step_twice_as_long(self):
        assert 5 <= self.learned(lambda n, m: 0.02 + 0.004 * (n + m)) <= 6
        assert self.learned(lambda n, m: 0.09 + 0.005 * m, n_decodes=16) >= 10

    def test_a_chunk_costs_something_whatever_its_rows(self):
        assert 4 <= self.learned(lambda n, m: 0.1 + 0.05 * (m > 0) + 0.005 * m) <= 5

    def test_a_prompt_gets_on_however_dear_its_rows_are(self):
        pace = Pace()
        pace.observe(4, 0, 0.03)
        for _ in range(40):
            n_rows = pace.rows(4, 1, 512)
            pace.observe(4, n_rows, 0.03 + 0.02 * n_rows)
        assert n_rows == 4 and pace.rows(4, 1, 2) == 2

    def test_a_chunk_beside_answers_is_longer_the_longer_its_gaps_are(self):
        pace = Pace()
        pace.observe(1, 0, 0.02), pace.observe(16, 0, 0.1)
        assert pace.chunk(1, 1, 512) == FEWEST_ALONE, "nothing is known of prompts"
        pace.read(64, 0.256)
        few, many = pace.chunk(1, 1, 512), pace.chunk(16, 1, 512)
        assert few == FEWEST_ALONE and 130 <= many <= 145 and pace.chunk(16, 1, 100) == 100
        assert pace.extra_s(16, 1) == pytest.approx(0.07) and pace.extra_s(16, 3) == pytest.approx(0.21)

    def test_a_step_that_was_held_up_is_followed_by_a_shorter_gap(self):
        pace = Pace()
        for _ in range(5):
            pace.observe(1, 0, 0.02)
        assert pace.gap_s(1, 1) == pytest.approx(0.014)
        pace.observe(1, 0, 0.03)
        assert 0.03 + pace.gap_s(1, 1) <= 2 * 0.02
        pace.observe(1, 0, 0.045)
        assert pace.gap_s(1, 1) <= 0
        for _ in range(20):
            pace.observe(1, 0, 0.045)
        assert pace.gap_s(1, 1) > 0.02, "where all steps take so long, that is what a step takes"

    def test_those_who_wait_count_too(self):
        few, many = (self.learned(lambda n, m: 0.036 + 0.004 * m, 3, w) for w in (1, 6))
        assert many >= 5 * few
        assert self.learned(lambda n, m: 0.02 + 0.004 * m, 1, 60) <= 13, "not without bound"


class TestModelDrafter:
    def test_a_draft_of_one_mind_is_right_at_any_temperature(self):
        for temperature in (0.0, 2.0):
            wish = SamplingParams(temperature=temperature, seed=5, max_tokens=80)
            plain = Engine(FakeProgram(40), drafter=None)
            alone = start(plain, [3, 4, 5], wish)
            drain(plain)
            drafter, program = ModelDrafter(FakeProgram(40)), FakeProgram(40)
            engine = on_a_machine(Engine(program, drafter=drafter), lambda n: 1 + 0.01 * n)
            sequence = start(engine, [3, 4, 5], wish)
            drain(engine)
            assert sequence.generated == alone.generated
            assert sequence.n_accepted == sequence.n_drafted > 60
            assert len(program.steps) < 20
            drafter.check()
            assert drafter.pool.n_free == 40

    def test_many_sequences_wrong_guesses_and_long_prompts(self):
        def rough(tokens: Tokens[int]) -> int:
            return next_token(tokens) if len(tokens) % 3 else 2

        drafter, program = ModelDrafter(FakeProgram(90, law=rough)), FakeProgram(120)
        engine = on_a_machine(Engine(program, step_tokens=64, drafter=drafter), lambda n: 1 + 0.01 * n)
        prompts = [[i] * n for i, n in enumerate((3, 700, 40, 1, 17))]
        sequences = [start(engine, p, SamplingParams(temperature=0, max_tokens=40)) for p in prompts]
        for _ in range(2000):
            engine.step()
            drafter.check()
        for prompt, sequence in zip(prompts, sequences, strict=True):
            assert sequence.generated == expected(prompt, 40)
        assert 0 < sum(s.n_accepted for s in sequences) < sum(s.n_drafted for s in sequences)
        assert drafter.pool.n_free == 90

    def test_a_small_cache_or_context_means_fewer_drafts_and_no_error(self):
        for small in (FakeProgram(2), FakeProgram(40, context=24)):
            engine = on_a_machine(Engine(FakeProgram(40), drafter=ModelDrafter(small)), lambda n: 1)
            sequence = start(engine, [3] * 10, SamplingParams(temperature=0, max_tokens=100))
            drain(engine)
            assert sequence.generated == expected([3] * 10, 100)
            assert 0 < sequence.n_accepted < 30

    @pytest.mark.parametrize("n_slots", [3, 40])
    def test_a_draft_with_a_recurrent_state(self, n_slots: int):
        def rough(tokens: Tokens[int]) -> int:
            return next_token(tokens) if len(tokens) % 3 else 2

        drafter, program = ModelDrafter(FakeProgram(90, n_slots=n_slots, law=rough)), FakeProgram(120)
        engine = on_a_machine(Engine(program, step_tokens=64, drafter=drafter), lambda n: 1 + 0.01 * n)
        prompts = [[i] * n for i, n in enumerate((3, 300, 40, 1, 17))]
        sequences = [start(engine, p, SamplingParams(temperature=0, max_tokens=40)) for p in prompts]
        while engine.has_work:
            engine.step()
            drafter.check()
        for prompt, sequence in zip(prompts, sequences, strict=True):
            assert sequence.generated == expected(prompt, 40)
        n_accepted = sum(s.n_accepted for s in sequences)
        assert 20 < n_accepted < sum(s.n_drafted for s in sequences), "a third of all guesses are wrong"
        drafter.check()


class TestRecurrentStates:
    """Rows of wrong guesses are taken back from a state too, which only a copy can do."""

    def test_repeating_text_takes_fewer_steps(self):
        program = FakeProgram(60, n_slots=4, law=cycle)
        engine = on_a_machine(Engine(program), lambda n: 1 + 0.05 * n)
        sequence = start(engine, [2], SamplingParams(temperature=0, max_tokens=200))
        drain(engine)
        assert sequence.generated == expected([2], 200, cycle)
        assert len(program.steps) < 90, "a step ends at each border of blocks"
        metrics = sequence.metrics()
        assert metrics.n_accepted > 120 and metrics.n_drafted < 1.2 * metrics.n_accepted

    @pytest.mark.parametrize("reuse", [True, False])
    def test_right_and_wrong_guesses_of_many(self, reuse: bool):
        def jumpy(tokens: Tokens[int]) -> int:
            return next_token(tokens) if len(tokens) % 7 == 0 else cycle(tokens)

        program = FakeProgram(90, n_slots=5, law=jumpy)
        engine = on_a_machine(Engine(program, step_tokens=40, reuse=reuse), lambda n: 1 + 0.01 * n)
        wish = SamplingParams(temperature=0, max_tokens=90)
        sequences = [start(engine, [i] * (9 * i + 1), wish) for i in range(8)]
        while engine.has_work:
            engine.step()
            engine.check()
        for i, sequence in enumerate(sequences):
            assert sequence.generated == expected([i] * (9 * i + 1), 90, jumpy)
        assert 50 < sum(s.n_accepted for s in sequences) < sum(s.n_drafted for s in sequences)

    def test_the_next_turn_finds_the_state_of_a_guessed_answer(self):
        engine = on_a_machine(Engine(FakeProgram(60, n_slots=6, law=cycle)), lambda n: 1 + 0.05 * n)
        turn = start(engine, [2], SamplingParams(temperature=0, max_tokens=100))
        drain(engine)
        assert turn.n_accepted > 50
        again = start(engine, [*turn.tokens, 5, 6], SamplingParams(temperature=0, max_tokens=5))
        drain(engine)
        assert again.n_cached == 96 and again.generated == expected(again.tokens[:103], 5, cycle)

    def test_a_copy_that_costs_more_than_it_saves_is_not_made(self):
        cost = StepCost()
        for n in range(1, 40):
            cost.observe(n, 1 + 0.01 * n)
        speculation = Speculation(NgramDrafter(), cost)
        sequence = Sequence([1], SamplingParams(max_tokens=100), 1000, seed=0)
        assert speculation.counts([sequence], 1)[0] > 3
        speculation.saved(0.3)
        assert speculation.counts([sequence], 1)[0] > 3
        speculation.save_s = 3.0
        assert speculation.counts([sequence], 1) == [0]

    def test_without_a_place_for_a_copy_nothing_is_guessed(self):
        engine = on_a_machine(Engine(FakeProgram(60, n_slots=1, law=cycle)), lambda n: 1)
        sequence = start(engine, [2], SamplingParams(temperature=0, max_tokens=50))
        drain(engine)
        assert sequence.generated == expected([2], 50, cycle) and sequence.n_drafted == 0
