"""The prefix cache: what was computed once is found again, by those who may, and changes no answer."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.engine.blocks import BlockPool
from kvasir.engine.engine import Engine
from kvasir.engine.radix import PIN_S, Node, Radix
from kvasir.engine.sequence import Sequence
from kvasir.errors import CapacityError
from kvasir.sampling import SamplingParams
from tests.engine.fake import VOCAB, FakeProgram, expected, next_token
from tests.engine.test_engine import GREEDY, drain, start


def ask(engine: Engine, prompt: list[int], params: SamplingParams = GREEDY, **wishes: object) -> Sequence:
    sequence = engine.sequence(prompt, params, **wishes)  # type: ignore[arg-type]
    engine.add(sequence)
    return sequence


def periodic(tokens: Tokens[int]) -> int:
    """A law that drafts guess well for a while: text that repeats itself, and changes now and then."""
    return next_token(tokens[-3:]) if len(tokens) % 23 == 0 else 2 + (tokens[-5:][0] * 7 + 1) % (VOCAB - 2)


def test_a_second_request_computes_what_is_new_only():
    program = FakeProgram(40)
    engine = Engine(program, drafter=None)
    prompt = [(7 * i) % 60 for i in range(100)]
    first = ask(engine, prompt)
    drain(engine)
    program.steps.clear()
    second, longer = ask(engine, prompt), ask(engine, [*prompt[:70], 1, 2, 3])
    drain(engine)
    assert (first.n_cached, second.n_cached, longer.n_cached) == (0, 96, 64)
    assert program.steps[0] == [4, 9]
    assert second.generated == first.generated == expected(prompt, 12)
    assert longer.generated == expected([*prompt[:70], 1, 2, 3], 12)
    assert second.metrics().n_cached == 96


def test_a_prompt_of_whole_blocks_still_computes_its_last():
    engine = Engine(FakeProgram(20))
    first = ask(engine, [3] * 32)
    drain(engine)
    second = ask(engine, [3] * 32)
    drain(engine)
    assert second.n_cached == 16 and second.generated == first.generated


def test_a_conversation_costs_what_is_new():
    """The answer is kept as well as the question: its last token alone was never computed."""
    for n_slots in (0, 6):
        engine = Engine(FakeProgram(60, n_slots=n_slots), drafter=None)
        turn = ask(engine, list(range(50)), SamplingParams(temperature=0, max_tokens=40))
        drain(engine)
        again = ask(engine, [*turn.tokens, 5, 6, 7])
        drain(engine)
        assert again.n_cached == 80, "of 90 tokens, 89 of them computed"
        assert again.generated == expected([*turn.tokens, 5, 6, 7], 12)


def test_same_prompts_at_the_same_time_are_computed_once():
    program = FakeProgram(80)
    engine = Engine(program, step_tokens=32, drafter=None)
    sequences = [ask(engine, [9] * 128) for _ in range(6)]
    drain(engine)
    assert sum(map(sum, program.steps)) < 128 + 6 * (16 + 12)
    assert all(s.generated == expected([9] * 128, 12) for s in sequences)
    assert [s.n_cached for s in sequences] == [0] + 5 * [112]


def test_tenants_do_not_see_each_other():
    engine = Engine(FakeProgram(60))
    for tenant in ("a", "b"):
        assert ask(engine, [4] * 64, tenant=tenant).n_cached == 0
        drain(engine)
    again = ask(engine, [4] * 64, tenant="b")
    drain(engine)
    assert again.n_cached == 48


def test_tenants_take_turns_and_priority_goes_first():
    engine = Engine(FakeProgram(60), max_sequences=1)
    flood = [ask(engine, [i] * 4, tenant="a") for i in range(5)]
    quiet, urgent = ask(engine, [20], tenant="b"), ask(engine, [21], tenant="a", priority=1)
    drain(engine)
    order = sorted([*flood, quiet, urgent], key=lambda s: s.begun_at)
    assert order == [urgent, quiet, *flood]


def test_the_oldest_leaves_go_first():
    pool = BlockPool(4)
    radix = Radix(pool)
    root, paths = radix.root(""), []
    for name in range(2):
        blocks = pool.take(2)
        node = root
        for depth, block in enumerate(blocks):
            node = radix.extend(node, (name, depth), block)
        pool.give_back(blocks)
        radix.touch(node)
        paths.append((node, blocks))
    radix.touch(paths[0][0])
    assert radix.evict(1) == 1
    assert pool.take(1) == [paths[1][1][1]], "the end of the path that was used longest ago"
    assert radix.evict(9) == 3 and radix.n_nodes == 0


def test_the_flood_of_one_tenant_leaves_the_share_of_another():
    engine = Engine(FakeProgram(40), drafter=None)
    for n in range(2):  # 12 blocks of a's, which were used before all others
        ask(engine, [50 + n] * 100, tenant="a")
        drain(engine)
    for n in range(30):
        ask(engine, [n] * 80, tenant="b")
        drain(engine)
    found = [ask(engine, [50 + n] * 100, tenant="a") for n in range(2)]
    drain(engine)
    assert [s.n_cached for s in found] == [96, 96]


def test_a_small_tenant_keeps_what_it_has_and_large_ones_share_evenly():
    pool = BlockPool(30)
    radix = Radix(pool)
    for tenant, count in (("small", 3), ("a", 20), ("b", 7)):
        node = radix.root(f"{tenant}\0")
        for n in range(count):
            (block,) = pool.take(1)
            node = radix.extend(node, (n,), block)
            pool.give_back([block])
        radix.touch(node)
    for wanted, left in ((13, (3, 7, 7)), (4, (3, 5, 5)), (4, (3, 3, 3)), (3, (2, 2, 2))):
        assert radix.evict(wanted) == wanted
        held = [len(_nodes(radix, tenant)) for tenant in ("small", "a", "b")]
        assert held == list(left)


def test_salts_of_one_key_have_one_share():
    engine = Engine(FakeProgram(40), drafter=None)
    ask(engine, [50] * 100, tenant="key/")
    drain(engine)
    for n in range(30):
        ask(engine, [n] * 80, tenant=f"other/{n}")
        drain(engine)
    again = ask(engine, [50] * 100, tenant="key/")
    drain(engine)
    assert again.n_cached == 96


def test_a_tenant_that_went_long_ago_has_no_share():
    clock = [0.0]
    pool = BlockPool(8)
    radix = Radix(pool, now=lambda: clock[0])
    for tenant, count in (("gone", 2), ("here", 6)):
        clock[0] += 1000
        node = radix.root(f"{tenant}\0")
        for n in range(count):
            (block,) = pool.take(1)
            node = radix.extend(node, (n,), block)
            pool.give_back([block])
        radix.touch(node)
    assert radix.evict(3) == 3
    assert (len(_nodes(radix, "gone")), len(_nodes(radix, "here"))) == (0, 5)


def _nodes(radix: Radix, tenant: str) -> list[Node]:
    return [node for node in radix.nodes() if node.realm == f"{tenant}\0"]


def test_snapshots_are_shared_fairly_too():
    engine = Engine(FakeProgram(200, n_slots=8), drafter=None)
    ask(engine, [1] * 100, tenant="a")
    drain(engine)
    for n in range(20):
        ask(engine, [n] * 50, tenant="b")
        drain(engine)
    again = ask(engine, [1] * 100, tenant="a")
    drain(engine)
    assert again.n_cached == 96


def test_what_is_pinned_survives_a_flood():
    engine = Engine(FakeProgram(40), drafter=None)
    ask(engine, list(range(60)) + [1] * 40, pin="numbers")
    drain(engine)
    assert engine.stats().n_pinned == 6
    for n in range(30):
        ask(engine, [n] * 300, SamplingParams(temperature=0, max_tokens=20))
        drain(engine)
        engine.check()
    again = ask(engine, list(range(60)) + [1] * 40)
    drain(engine)
    assert again.n_cached == 96


def test_pins_have_a_share_and_a_time(monkeypatch):
    engine = Engine(FakeProgram(40), drafter=None)
    ask(engine, [1] * 100, pin="")
    drain(engine)
    same = ask(engine, [1] * 100 + [2] * 60, pin="")  # six of its ten blocks are pinned already
    drain(engine)
    assert engine.stats().n_pinned == 10 and same.n_cached == 96
    with pytest.raises(CapacityError, match="16 tokens to be pinned, 160 are, and at most 160 may be"):
        ask(engine, [3] * 20, pin="")
    radix = engine.scheduler.radix
    later = monotonic() + PIN_S + 1
    monkeypatch.setattr(radix, "_now", lambda: later)
    ask(engine, [3] * 20)
    drain(engine)
    assert engine.stats().n_pinned == 0
    engine.check()


def test_what_is_held_survives_a_flood_and_is_never_refused(monkeypatch):
    engine = Engine(FakeProgram(40), drafter=None)
    radix = engine.scheduler.radix
    first = ask(engine, [1] * 100, hold=(70, 300.0))
    drain(engine)
    assert first.metrics().n_held == 64 and engine.stats().n_pinned == 4
    longer = ask(engine, [1] * 100 + [2] * 30, hold=(130, 300.0))
    drain(engine)
    assert longer.metrics().n_held == 128 and engine.stats().n_pinned == 8
    assert len(radix.pins) == 1, "the shorter one is held by the longer one"
    for n in range(30):
        ask(engine, [n + 3] * 300)
        drain(engine)
        engine.check()
    again, too_much = ask(engine, [1] * 100 + [2] * 40), ask(engine, [5] * 90, hold=(90, 300.0))
    drain(engine)
    assert again.n_cached == 128 and too_much.metrics().n_held == 0 and engine.stats().n_pinned == 8
    later = monotonic() + 301
    monkeypatch.setattr(radix, "_now", lambda: later)
    ask(engine, [3] * 20)
    drain(engine)
    assert engine.stats().n_pinned == 0 and not radix.held
    engine.check()


def test_what_is_held_gives_way_to_a_pin():
    engine = Engine(FakeProgram(40), drafter=None)
    for n in (1, 2):
        ask(engine, [n] * 70, hold=(70, 300.0 * n))
        drain(engine)
    assert engine.stats().n_pinned == 8
    ask(engine, [3] * 90, pin="threes")
    drain(engine)
    assert engine.stats().n_pinned == 9, "the one that would have ended first is held no longer"
    ask(engine, [3] * 90, hold=(90, 900.0))
    drain(engine)
    assert engine.stats().n_pinned == 9 and len(engine.scheduler.radix.held) == 1
    with pytest.raises(CapacityError, match="at most 160 may be"):
        ask(engine, [4] * 120, pin="fours")
    engine.check()


def test_a_pin_gives_way_to_a_request_that_needs_the_whole_cache():
    engine = Engine(FakeProgram(16), drafter=None)
    ask(engine, [1] * 70, pin="")
    drain(engine)
    large = ask(engine, [2] * 200, SamplingParams(temperature=0, max_tokens=40))
    drain(engine)
    assert large.generated == expected([2] * 200, 40) and engine.stats().n_pinned == 0
    engine.check()


def test_blocks_in_use_are_not_given_up():
    engine = Engine(FakeProgram(12), drafter=None)
    ask(engine, [1] * 80)
    drain(engine)
    busy = ask(engine, [1] * 80, SamplingParams(temperature=0, max_tokens=60))
    engine.step()
    other = ask(engine, [2] * 60)
    drain(engine)
    assert busy.n_cached == 64
    assert busy.generated == expected([1] * 80, 60) and other.generated == expected([2] * 60, 12)


def test_snapshots_of_recurrent_states():
    engine = Engine(FakeProgram(60, n_slots=4), step_tokens=48, drafter=None)
    prompt = [i % 50 for i in range(130)]
    first = ask(engine, prompt)
    drain(engine)
    second, shorter = ask(engine, prompt), ask(engine, prompt[:100])
    drain(engine)
    assert (second.n_cached, shorter.n_cached) == (128, 96)
    assert first.generated == second.generated
    assert shorter.generated == expected(prompt[:100], 12)


def test_a_long_prompt_in_small_chunks_does_not_drive_out_the_states_of_others():
    engine = Engine(FakeProgram(400, n_slots=44), step_tokens=17, drafter=None)
    ask(engine, [1] * 100)
    drain(engine)
    long = [(i * i) % 60 for i in range(2000)]
    stream = ask(engine, [2, 3], SamplingParams(temperature=0, max_tokens=300))
    ask(engine, long)
    drain(engine)
    again, same, shorter = ask(engine, [1] * 100), ask(engine, long), ask(engine, long[:1500])
    drain(engine)
    assert again.n_cached == 96 and same.n_cached == 1984 and 1280 <= shorter.n_cached < 1500
    assert stream.generated == expected([2, 3], 300) and shorter.generated == expected(long[:1500], 12)


schedules = st.lists(
    st.tuples(
        st.integers(0, 3),  # which beginning it shares
        st.integers(0, 70),  # how much of it
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),  # what follows
        st.integers(0, 2),  # tenant
        st.integers(0, 30),  # steps before it comes
        st.one_of(st.none(), st.integers(0, 25)),  # steps until it is cancelled
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=120, deadline=None)
@given(schedules, st.integers(9, 40), st.integers(1, 40), st.integers(1, 8), st.sampled_from([0, 2, 5]),
       st.booleans(), st.sampled_from([0.0, 3.0]))  # fmt: skip
def test_no_schedule_changes_an_answer(
    schedule, n_blocks, step_tokens, max_sequences, n_slots, drafts, temperature
):
    program = FakeProgram(n_blocks, n_slots=n_slots, law=periodic)
    engine = Engine(program, (), max_sequences, step_tokens, drafter="ngram" if drafts else None)
    params = SamplingParams(temperature=temperature, seed=11, max_tokens=30)
    arriving = sorted(schedule, key=lambda item: item[4])
    alive: list[tuple[Sequence, int]] = []
    done = []
    for now in range(3000):
        while arriving and arriving[0][4] <= now:
            which, share, rest, tenant, _, cancel = arriving.pop(0)
            prompt = [(which * 13 + 3 * i) % VOCAB for i in range(share)] + rest
            sequence = ask(engine, prompt, params, tenant=str(tenant))
            done.append(sequence)
            alive.append((sequence, now + cancel if cancel is not None else 10**9))
        for sequence, end in alive:
            if end <= now:
                engine.finish(sequence, "abort")
        engine.step()
        engine.check()
        if not arriving and not engine.has_work:
            break
    assert not engine.has_work
    for sequence in done:
        alone = Engine(FakeProgram(60, law=periodic), reuse=False, drafter=None)
        twin = start(alone, sequence.tokens[: sequence.n_prompt], params)
        drain(alone)
        assert sequence.generated == twin.generated[: len(sequence.generated)]
        assert sequence.finished in ("length", "abort")
    engine.scheduler.radix.clear()
    engine.check()
    assert engine.pool.n_free == n_blocks


def test_log_probabilities_of_a_prompt_are_those_of_its_rows_however_it_is_cut():
    prompt = [(5 * i) % 60 for i in range(90)]
    wish = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=1)
    found = []
    for step_tokens, n_slots in ((512, 0), (7, 0), (40, 3)):
        engine = Engine(FakeProgram(40, n_slots=n_slots), step_tokens=step_tokens)
        first, again, plain = ask(engine, prompt, wish), ask(engine, prompt, wish), ask(engine, prompt)
        drain(engine)
        assert first.prompt_logprobs == again.prompt_logprobs and again.n_cached == 0
        assert plain.prompt_logprobs == [None] and plain.generated[:3] == first.generated
        found.append(first.prompt_logprobs)
    assert found[0] == found[1] == found[2] and len(found[0]) == 90 and found[0][0] is None
    likely = expected(prompt[:40], 1)[0]
    assert found[0][40].token_id == prompt[40]
    assert found[0][40].top[0][0] == likely


def test_stats_add_up():
    engine = Engine(FakeProgram(40))
    sequences = [ask(engine, [3] * 40), ask(engine, [3] * 40), ask(engine, [4] * 10)]
    engine.step()
    engine.finish(sequences[2], "abort")
    assert engine.stats().n_running + engine.stats().n_waiting == 2
    drain(engine)
    stats = engine.stats()
    assert stats.n_finished == {"abort": 1, "length": 2}
    assert stats.n_generated == sum(s.n_generated for s in sequences)
    assert (stats.n_prompt, stats.n_cached, stats.occupancy) == (90, 32, 0.0)
    assert stats.n_blocks_kept == engine.pool.n_idle and stats.busy_s <= stats.age_s
    assert stats.n_rows >= 40 + 8 + 10 + 2 * 11
