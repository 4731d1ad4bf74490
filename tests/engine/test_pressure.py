"""Many long requests and little room: all are answered, or refused with both numbers, and nothing is lost."""

from __future__ import annotations

import pytest

from kvasir.engine.engine import Engine
from kvasir.errors import CapacityError, UsageError
from kvasir.sampling import SamplingParams
from tests.engine.fake import FakeProgram, expected
from tests.engine.test_engine import drain
from tests.engine.test_prefix import ask

N_LONG = 64


@pytest.mark.parametrize("n_slots", [0, 6])
@pytest.mark.parametrize("drafter", [None, "ngram"])
def test_many_long_requests_and_room_for_few(n_slots: int, drafter) -> None:
    program = FakeProgram(60, n_slots=n_slots)
    engine = Engine(program, drafter=drafter)
    wish = SamplingParams(temperature=0, max_tokens=120)
    prompts = [[(n * 7 + i) % 60 for i in range(150 + n)] for n in range(N_LONG)]
    found = [ask(engine, prompt, wish, tenant=str(n % 3)) for n, prompt in enumerate(prompts)]
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats().n_running)
    engine.check()
    assert [s.generated for s in found] == [expected(prompt, 120) for prompt in prompts]
    assert engine.stats().n_preempted > 0 and most <= 6
    assert engine.pool.n_free + engine.pool.n_idle == 60


def test_what_can_never_fit_is_refused_with_both_numbers_beside_what_can() -> None:
    engine = Engine(FakeProgram(20), drafter=None)
    small = ask(engine, [1] * 200)
    with pytest.raises(UsageError, match="400 tokens and the context holds 320"):
        ask(engine, [2] * 400)
    large = engine.sequence([2] * 319, SamplingParams(temperature=0, max_tokens=1))
    large.tokens += [3, 4]
    with pytest.raises(CapacityError, match="321 tokens and the KV cache holds 320 in all"):
        engine.add(large)
    drain(engine)
    assert small.generated == expected([1] * 200, 12)


def test_a_second_tenant_is_computed_as_if_nobody_had_come_before() -> None:
    """Row for row and step for step, so that time can tell nothing either."""
    prompt, wish = [(5 * i) % 60 for i in range(130)], SamplingParams(temperature=0, max_tokens=20)
    seen = []
    for others in ((), ("a",), ("a", "c", "d")):
        program = FakeProgram(90)
        engine = Engine(program, step_tokens=48, drafter=None)
        for tenant in others:
            ask(engine, prompt, wish, tenant=tenant)
            drain(engine)
        before = engine.totals.n_rows
        program.steps.clear()
        second = ask(engine, prompt, wish, tenant="b")
        drain(engine)
        assert second.n_cached == 0
        seen.append((engine.totals.n_rows - before, program.steps))
    assert seen[0] == seen[1] == seen[2]
