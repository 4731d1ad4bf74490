"""The disk below the prefix cache: what left memory comes back, and nothing that happens there changes an
answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir import faults
from kvasir.backends.base import BLOCK, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.engine import disk as disk_module
from kvasir.engine import index as index_module
from kvasir.engine import spool as spool_module
from kvasir.engine.disk import Disk
from kvasir.engine.engine import Engine
from kvasir.engine.segments import Writer, scan, segments_of
from kvasir.engine.sequence import Sequence
from kvasir.engine.shelf import Shelf, folders, next_key, read_pins, root_key
from kvasir.engine.stats import DiskStats
from kvasir.sampling import SamplingParams
from tests.engine.fake import VOCAB, FakeProgram, expected
from tests.engine.test_engine import drain
from tests.engine.test_prefix import ask
from tests.stepping import program as real_program

MODEL = bytes(range(32))
PROMPT = [(7 * i) % 60 for i in range(100)]
BLOCK_BYTES = BLOCK * 8  # of the fake program
RECORD_BYTES = 80 + 4 * 16 + 8 + 16 + BLOCK_BYTES


def shelf(root: Path, **wishes: object) -> Shelf:
    return Shelf(root, **{"model": MODEL, "quota": 1 << 30, "least_free": 0, **wishes})  # type: ignore[arg-type]


@contextmanager
def running(
    at: Shelf | Path, program: Program | None = None, *, pays: bool = True, **wishes: object
) -> Iterator[Engine]:
    """An engine with a disk; at its end, as when a model is unloaded, it writes what it has.  With `pays` it
    reads whatever it can, although a fake program computes quicker than any disk.
    """
    at = shelf(at) if isinstance(at, Path) else at
    program = program or FakeProgram(60)
    disk = Disk(at, program, program.memory.kv_format, {"name": "fake:latest", "path": "/fake"})
    engine = Engine(program, disk=disk, **{"drafter": None, **wishes})  # type: ignore[arg-type]
    disk.index.ready.wait(5)
    if pays:
        disk._pays = lambda *_: True
    try:
        yield engine
        drain(engine)
        engine.check()
    finally:
        engine.close(10)


def answer(engine: Engine, prompt: list[int] = PROMPT, **wishes: object) -> Sequence:
    sequence = ask(engine, prompt, **wishes)
    drain(engine)
    assert sequence.generated == expected(prompt, 12)
    return sequence


def written(engine: Engine) -> None:
    """Waits until all that left memory is on disk."""
    spool = engine.scheduler.disk.spool
    while not spool.is_empty:
        spool.thread.join(0.01)


def seen(engine: Engine) -> DiskStats:
    return engine.stats().disk


def warm(root: Path | Shelf, **wishes: object) -> None:
    with running(root) as engine:
        assert answer(engine, **wishes).n_cached == 0


def only_segment(root: Path) -> Path:
    (path,) = segments_of(shelf(root).folder)
    return path


@pytest.mark.parametrize("n_slots", [0, 2, 6])
def test_a_prefix_survives_a_restart(tmp_path: Path, n_slots: int):
    with running(tmp_path, FakeProgram(60, n_slots=n_slots)) as engine:
        first = answer(engine)
        assert seen(engine).n_hits == 0 and seen(engine).n_misses == 1
    program = FakeProgram(60, n_slots=n_slots)
    with running(tmp_path, program) as engine:
        again, longer = answer(engine), answer(engine, [*first.tokens, 1, 2, 3])
        # 96 tokens and 11 of the answer were computed; a state is kept where a chunk or an answer ended.
        assert again.n_cached == 96 and longer.n_cached == 96
        stats = seen(engine)
        assert [s.metrics().n_from_disk for s in (again, longer)] == [96, 0]
    assert sum(map(sum, program.steps)) == 4 + 11 + 19 + 11
    assert (stats.n_hits, stats.n_tokens, stats.n_corrupt, stats.n_failed) == (1, 96, 0, 0)
    assert stats.read_bytes > 6 * BLOCK_BYTES - 1


def test_only_what_is_new_is_written_again(tmp_path: Path):
    warm(tmp_path)
    size = only_segment(tmp_path).stat().st_size
    with running(tmp_path) as engine:
        answer(engine)
    assert only_segment(tmp_path).stat().st_size == size
    with running(tmp_path) as engine:
        answer(engine, [*PROMPT, *range(30)])
    grown = only_segment(tmp_path).stat().st_size - size
    assert grown == 2 * RECORD_BYTES, "two blocks more, in the same file"


def test_what_is_evicted_comes_back(tmp_path: Path):
    with running(tmp_path, FakeProgram(12)) as engine:
        answer(engine)
        for n in range(8):
            answer(engine, [n] * 120)
            written(engine)  # a writer that lags drops what comes
        assert answer(engine).n_cached == 96 and seen(engine).n_hits == 1
        assert seen(engine).n_dropped == 0


def test_others_go_on_while_a_prefix_is_read(tmp_path: Path, monkeypatch):
    """A disk that hangs holds up the request that waits for it, for a while, and nobody else."""
    warm(tmp_path)
    monkeypatch.setattr(faults, "_armed", {})
    faults.arm(faults.parse("cache.read:1:hang"), "any")
    monkeypatch.setattr(disk_module, "LOAD_WAIT_S", 0.5)
    with running(tmp_path) as engine:
        stuck, other = ask(engine, PROMPT), ask(engine, [5] * 30)
        for _ in range(14):
            engine.step()
        assert other.finished == "length" and not stuck.generated
        engine.check()
        drain(engine)
        assert stuck.generated == expected(PROMPT, 12) and stuck.n_cached == 0
        assert seen(engine).n_failed == 1


def test_tenants_and_other_models_see_nothing(tmp_path: Path):
    warm(tmp_path, tenant="a")
    with running(tmp_path) as engine:
        assert answer(engine, tenant="b").n_cached == 0
        assert (seen(engine).n_hits, seen(engine).read_bytes) == (0, 0), "nothing was read for it"
        assert answer(engine, tenant="a").n_cached == 96
    other = shelf(tmp_path, model=bytes(32))
    other.prepare()
    own = only_segment(tmp_path)
    (other.folder / own.name).write_bytes(own.read_bytes())
    (other.folder / own.name).chmod(0o600)
    with running(other) as engine:
        assert answer(engine, tenant="a").n_cached == 0


def test_a_key_alone_is_not_believed(tmp_path: Path):
    """Records with right keys, checksums and parents, and other tokens, as if keys had collided."""
    at = shelf(tmp_path)
    at.prepare()
    writer, parent = Writer(at.folder, MODEL, 1 << 20, lambda path, n: None), root_key(MODEL, "f16", "", "")
    for n in range(6):
        key = next_key(parent, tuple(PROMPT[16 * n : 16 * n + 16]))
        writer.append(key, parent, tuple(range(16)), (np.zeros(BLOCK_BYTES, np.uint8),))
        parent = key
    writer.close()
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 0 and seen(engine).n_blocks == 6


def test_a_flipped_bit_in_any_block_is_a_miss_and_a_number(tmp_path: Path):
    warm(tmp_path)
    path = only_segment(tmp_path)
    for n, record in enumerate(scan(path, MODEL)[0][:6]):
        data = bytearray(path.read_bytes())
        data[record.at + 8 * n] ^= 1 << n
        path.write_bytes(data)
        with running(tmp_path) as engine:
            assert answer(engine).n_cached == 16 * n
            assert seen(engine).n_corrupt == 1
            data[record.at + 8 * n] ^= 1 << n
            path.write_bytes(data)
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 96


def test_a_damaged_block_is_replaced_by_what_was_computed(tmp_path: Path):
    warm(tmp_path)
    path = only_segment(tmp_path)
    data = bytearray(path.read_bytes())
    data[scan(path, MODEL)[0][2].at] ^= 4
    path.write_bytes(data)
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 32
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 96 and seen(engine).n_corrupt == 0


@pytest.mark.parametrize("keep", [0, 1, 63, 200, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_gives_what_is_left(tmp_path: Path, keep: float):
    warm(tmp_path)
    path = only_segment(tmp_path)
    whole = [r.end for r in scan(path, MODEL)[0]]
    length = int(keep * path.stat().st_size) if isinstance(keep, float) else keep
    os.truncate(path, length)
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 16 * min(6, sum(end <= length for end in whole))
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 96


def test_a_disk_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with running(blocked) as engine:
        answer(engine)
        answer(engine)
    nearly_full = shelf(tmp_path / "full", least_free=1 << 62)
    warm(nearly_full)
    assert not list(segments_of(nearly_full.folder))

    def read_only(self: Shelf) -> None:
        raise OSError(30, "Read-only file system")

    warm(tmp_path / "good")
    monkeypatch.setattr(Shelf, "prepare", read_only)
    with running(tmp_path / "good") as engine:
        assert answer(engine).n_cached == 96, "what is there is read"
        answer(engine, [3] * 90)
    assert len(scan(only_segment(tmp_path / "good"), MODEL)[0]) == 6


@pytest.mark.parametrize("action", ["oserror", "eio", "raise"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch, action: str):
    monkeypatch.setattr(faults, "_armed", {})
    faults.arm(faults.parse(f"cache.write:4:{action},cache.read:3:{action}"), "any")
    with running(tmp_path) as engine:
        answer(engine)
    assert seen(engine).n_failed == 1 and seen(engine).n_written == 3
    with running(tmp_path) as engine:
        assert answer(engine).n_cached < 48 and seen(engine).n_failed == 1
    with running(tmp_path) as engine:
        assert answer(engine).n_cached == 96


def test_the_quota_holds_and_what_was_used_lately_stays(tmp_path: Path):
    small = shelf(tmp_path, quota=80 * RECORD_BYTES, segment_bytes=5 * RECORD_BYTES)
    warm(small)
    for n in range(12):
        for path in segments_of(small.folder):  # as if days went by
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 1e5))
        with running(small) as engine:
            assert answer(engine).n_cached == 96, f"used every day: {n}"
            answer(engine, [n] * 140)
        total = sum(path.stat().st_size for path in segments_of(small.folder))
        assert total <= small.quota
    with running(small) as engine:
        assert answer(engine, [11] * 140).n_cached == 128
        assert answer(engine, [0] * 140).n_cached < 128, "the oldest went"


def test_the_quota_is_one_for_all_models(tmp_path: Path):
    for n in range(6):
        at = shelf(tmp_path, model=bytes([n] * 32), quota=20 * RECORD_BYTES, segment_bytes=RECORD_BYTES)
        warm(at)
        for path in (p for folder in folders(tmp_path) for p in segments_of(folder)):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 1e5))
    sizes = [p.stat().st_size for folder in folders(tmp_path) for p in segments_of(folder)]
    assert 0 < sum(sizes) <= 20 * RECORD_BYTES
    assert not shelf(tmp_path, model=bytes(32)).folder.exists(), "an empty folder goes too"


def test_a_second_process_reads_and_writes_when_the_first_is_gone(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(index_module, "RETRY_S", 0.0)
    monkeypatch.setattr(spool_module, "LOOK_S", 0.0)
    with running(tmp_path, FakeProgram(12)) as first:
        answer(first)
        answer(first, [1] * 150)
        written(first)
        assert first.scheduler.disk.index.is_mine
        with running(tmp_path) as second:
            answer(second, [2] * 60)
            second.close(10)
            assert seen(second).n_written == 0 and seen(second).n_failed == 0
    assert seen(first).n_written >= 6
    with running(tmp_path) as third:
        assert answer(third).n_cached == 96
        answer(third, [2] * 60)
    assert seen(third).n_written == 4


def test_what_is_slower_to_read_than_to_compute_is_computed(tmp_path: Path):
    warm(tmp_path)
    for rate, cached in ((1.0, 0), (1e12, 96)):
        with running(tmp_path, pays=False) as engine:
            engine.scheduler.disk._rate = rate
            engine.cost.observe(100, 1e-3)
            assert answer(engine).n_cached == cached


def test_a_prompt_that_fails_its_wait_is_not_asked_for_twice(tmp_path: Path):
    warm(tmp_path)
    for path in segments_of(shelf(tmp_path).folder):
        data = bytearray(path.read_bytes())
        data[scan(path, MODEL)[0][0].at] ^= 1
        path.write_bytes(data)
    with running(tmp_path) as engine:
        sequences = [ask(engine, PROMPT) for _ in range(4)]
        drain(engine)
        assert all(s.generated == expected(PROMPT, 12) for s in sequences)
        assert [s.n_cached for s in sequences] == [0, 96, 96, 96] and seen(engine).n_corrupt == 1


def test_pins_reach_the_disk_at_once_and_stay_there_longest(tmp_path: Path):
    small = shelf(tmp_path, quota=64 * RECORD_BYTES, segment_bytes=4 * RECORD_BYTES)
    with running(small) as engine:
        answer(engine, PROMPT[:64], pin="once upon")
        written(engine)
        while not engine.scheduler.disk.index.pins:
            engine.scheduler.disk.spool.thread.join(0.01)
        assert seen(engine).n_written == 4
        engine.step()
        engine.check()
        (pin,) = read_pins(small.folder).values()
        assert (pin.n_tokens, pin.text) == (64, "once upon")
    for n in range(12):
        with running(small) as engine:
            answer(engine, [n] * 140)
    with running(small) as engine:
        assert answer(engine, PROMPT[:65]).n_cached == 64
        assert engine.stats().n_pinned == 4, "what comes from disk and is pinned there is pinned in memory"


requests = st.tuples(
    st.integers(0, 3),  # which beginning it shares
    st.integers(0, 90),  # how much of it
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),  # what follows
    st.integers(0, 1),  # tenant
    st.booleans(),  # whether it is pinned
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(requests, min_size=1, max_size=8),
    st.integers(9, 30),
    st.sampled_from([0, 3]),
    st.integers(0, 2**32),
)
def test_no_schedule_no_restart_and_no_damage_changes_an_answer(
    tmp_path_factory, schedule, n_blocks, n_slots, seed
):
    root, rng = tmp_path_factory.mktemp("prefix"), np.random.default_rng(seed)
    for _ in range(3):
        with running(root, FakeProgram(n_blocks, n_slots=n_slots), step_tokens=24, max_sequences=3) as engine:
            asked = []
            for which, share, rest, tenant, pin in schedule:
                prompt = [(which * 13 + 3 * i) % VOCAB for i in range(share)] + rest
                wish = SamplingParams(temperature=0, max_tokens=6)
                roomy = pin and len(prompt) // BLOCK + engine.stats().n_pinned <= n_blocks // 4
                sequence = ask(engine, prompt, wish, tenant=str(tenant), pin="p" if roomy else None)
                asked.append((sequence, prompt))
                engine.step()
                engine.check()
            drain(engine)
            for sequence, prompt in asked:
                assert sequence.generated == expected(prompt, 6)
        for path in segments_of(shelf(root).folder):
            data = bytearray(path.read_bytes())
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)


@pytest.mark.parametrize("name", ["qwen3", "qwen35", "gemma3", "gpt-oss"])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_families_say_the_same_from_disk(tmp_path: Path, monkeypatch, name: str, kv: str):
    """Windows, sinks, experts and recurrent states, bit for bit: the log probabilities too."""
    monkeypatch.setattr(disk_module, "LEAST_BLOCKS", 1)
    backend = CpuBackend(threads=2, oversubscribe=True)
    wish = SamplingParams(temperature=0, max_tokens=12, logprobs=3)
    found = []
    for _ in range(2):
        made = real_program(name, backend, kv_format=kv)
        prompt = np.random.default_rng(5).integers(0, made.plan.n_vocab, 60).tolist()
        with running(tmp_path, made, step_tokens=24) as engine:
            sequence, tokens = ask(engine, prompt, wish), []
            while engine.has_work:
                tokens += engine.step()
            found.append(([t.token_id for t in tokens], [t.logprob for t in tokens]))
        assert sequence.n_cached == (48 if len(found) == 2 else 0)
    assert found[0] == found[1]
