"""Prompts in the gaps between the steps of answers: whoever comes, goes or is preempted meanwhile."""

from __future__ import annotations

import pytest

from kvasir.backends.base import Adapter
from kvasir.engine.engine import Engine
from kvasir.engine.sequence import Sequence
from kvasir.sampling import SamplingParams
from tests.engine.fake import Resting, expected
from tests.engine.test_engine import drain, start

LONG = SamplingParams(temperature=0, max_tokens=200)
SHORT = SamplingParams(temperature=0, max_tokens=5)
FIRST, SECOND = [3] * 40, [4] * 45


def beside(program: Resting, *prompts: list[int]) -> tuple[Engine, Sequence, list[Sequence]]:
    """An engine with an answer under way, and a chunk with these prompts begun beside it."""
    engine = Engine(program, (), reuse=False, drafter=None)
    answer = start(engine, [1, 2], LONG)
    engine.step(), engine.step()
    engine.scheduler.pace.chunk = lambda *_: 512  # type: ignore[method-assign]
    engine.scheduler.pace.gap_s = lambda *_: 0.01  # type: ignore[method-assign]
    asked = [start(engine, prompt, SHORT) for prompt in prompts]
    engine.step()
    assert engine.scheduler.aside.sequences == set(asked)
    return engine, answer, asked


@pytest.mark.parametrize("n_slots", [0, 4])
def test_answers_go_on_while_a_prompt_is_read(n_slots: int) -> None:
    engine, answer, (asked,) = beside(Resting(40, n_slots=n_slots), FIRST)
    before = answer.n_generated
    late = start(engine, SECOND, SHORT)
    while not asked.n_generated:
        engine.step()
        engine.check()
    assert answer.n_generated == before + Resting.n_pieces - 1
    assert not late.n_computed, "one chunk at a time"
    drain(engine)
    assert answer.generated == expected([1, 2], 200)
    assert asked.generated == expected(FIRST, 5) and late.generated == expected(SECOND, 5)


def test_who_is_alone_with_its_prompt_waits_for_nobody() -> None:
    engine, answer, (asked,) = beside(Resting(40), FIRST)
    engine.finish(answer, "abort")
    engine.step()
    assert asked.n_generated == 1


@pytest.mark.parametrize("n_slots", [0, 4])
def test_one_that_leaves_a_chunk_leaves_its_blocks_to_it(n_slots: int) -> None:
    """Else who is given them next would find them overwritten."""
    program = Resting(40, n_slots=n_slots)
    engine, answer, (one, other) = beside(program, FIRST, SECOND)
    free = engine.pool.n_free
    engine.finish(one, "abort")
    engine.check()
    assert engine.pool.n_free == free
    third = start(engine, [5] * 30, SHORT)
    while not other.n_generated:
        engine.step()
        engine.check()
    assert not one.n_generated and engine.pool.n_free >= free + 3
    drain(engine)
    assert other.generated == expected(SECOND, 5) and third.generated == expected([5] * 30, 5)
    assert answer.generated == expected([1, 2], 200)


@pytest.mark.parametrize("n_slots", [0, 4])
def test_when_the_last_one_leaves_a_chunk_it_ends(n_slots: int) -> None:
    program = Resting(40, n_slots=n_slots)
    engine, answer, asked = beside(program, FIRST, SECOND)
    for sequence in asked:
        engine.finish(sequence, "abort")
    engine.check()
    assert engine.pool.n_free == 39 - (answer.n_computed - 1) // 16
    n_steps = len(program.steps)
    engine.step()
    assert program.steps[n_steps:] == [[1]], "the chunk is not computed for nobody"


@pytest.mark.parametrize("n_slots", [0, 4])
def test_a_chunk_is_given_up_when_its_blocks_are_needed(n_slots: int) -> None:
    engine, answer, (one, other) = beside(Resting(8, n_slots=n_slots), FIRST, SECOND)
    Resting.n_pieces, before = 1000, Resting.n_pieces
    try:
        engine.gaps._program.n_left = 1000  # type: ignore[union-attr, attr-defined]
        while not other.n_preempted:
            engine.step()
            engine.check()
    finally:
        Resting.n_pieces = before
    assert one.n_preempted == other.n_preempted == 1 and not answer.n_preempted
    drain(engine)
    assert answer.generated[: 8 * 16 - 2] == expected([1, 2], len(answer.generated))
    assert one.generated == expected(FIRST, 5) and other.generated == expected(SECOND, 5)


def test_an_adapter_stays_until_the_chunk_that_it_is_in_ends() -> None:
    nothing: Adapter = {}
    program = Resting(40)
    engine = Engine(program, (), reuse=False, drafter=None)
    engine.adapters.load("own", nothing)
    answer = start(engine, [1, 2], LONG)
    engine.step(), engine.step()
    asked = [engine.sequence(p, SHORT, adapter=key) for p, key in ((FIRST, "own"), (SECOND, ""))]
    for sequence in asked:
        engine.add(sequence)
    engine.scheduler.pace.chunk = lambda *_: 512  # type: ignore[method-assign]
    engine.scheduler.pace.gap_s = lambda *_: 0.01  # type: ignore[method-assign]
    engine.step()
    engine.finish(asked[0], "abort")
    engine.adapters.unload("own")
    assert program.adapters == [(0, True)]
    while not asked[1].n_generated:
        engine.step()
    engine.step()
    assert program.adapters == [(0, True), (0, False)] and answer.finished is None
