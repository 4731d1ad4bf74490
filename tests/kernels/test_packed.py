"""Repacked weights on disk: the same bits as packed anew; anything odd about a file only has it made anew."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kvasir.backends import packed, packed_file
from kvasir.backends.base import Memory
from kvasir.backends.cpu import CpuBackend, load
from kvasir.backends.packed import Packed, Source, layout_id, source_of, superseded
from kvasir.backends.packed_file import BEGIN, HEAD, MAGIC, SUFFIX
from kvasir.checkpoint.open import open_checkpoint
from kvasir.runner.model import packed_for
from kvasir.settings import Settings
from tests.gguf_files import write_gguf
from tests.kernels.small import USABLE, Sequences, qwen, weights_for

MEMORY = Memory(8, 2, "f32")
PLAN = qwen()
WEIGHTS = weights_for(PLAN, form="Q8_0")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"model")
    return path


def folder_of(model: Path) -> Path:
    return model.parent / "cache" / "packed"


def kept(model: Path, **changed: object) -> Packed:
    source = Source(model, "a" * 64)
    return replace(Packed(folder_of(model), source, 1 << 30, least=0), **changed)  # type: ignore[arg-type]


def logits(how: Packed | None, isa: str = "auto") -> np.ndarray:
    """What the plan gives for one batch, and the file written, if one is to be."""
    program = CpuBackend(2, isa, oversubscribe=True, packed=how).compile(PLAN, WEIGHTS, MEMORY)
    if how and how.writer:
        how.writer.join()
    sequences = Sequences([20, 3], PLAN.table_rows("tokens"), MEMORY)
    return program.step(sequences.batch([(0, 20), (1, 3)]))


def files(model: Path) -> list[Path]:
    return sorted(folder_of(model).glob("*")) if folder_of(model).is_dir() else []


def hit(how: Packed) -> bool:
    """Whether a load with `how` packed nothing."""
    logits(how)
    return how.file is not None and how.writer is None


def test_the_same_bits_with_and_without(model: Path) -> None:
    for isa in USABLE:
        anew = logits(None, isa)
        first, second = kept(model), kept(model, verify=True)
        assert np.array_equal(anew, logits(first, isa)) and first.file is None and first.writer
        assert np.array_equal(anew, logits(second, isa)) and second.file and not second.writer
    assert len(files(model)) == len(USABLE) and all(f.suffix == SUFFIX for f in files(model))
    assert all(f.stat().st_mode & 0o777 == 0o600 for f in files(model))


def damaged(path: Path, at: int, value: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(value)


def with_index(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    """The file with its index changed and the digest set right."""
    raw = path.read_bytes()
    n_bytes = HEAD.unpack(raw[: HEAD.size])[2]
    index = json.loads(raw[HEAD.size : HEAD.size + n_bytes])
    change(index)
    body = json.dumps(index).encode()
    digest = packed_file.hashlib.sha256(body).digest()
    path.write_bytes((HEAD.pack(MAGIC, 1, len(body), digest) + body).ljust(BEGIN, b"\0") + raw[BEGIN:])


def first_stack(index: dict) -> list:  # type: ignore[type-arg]
    return next(iter(index["stacks"].values()))


FAULTS: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "foreign": lambda p: p.write_bytes(b"GGUF" + bytes(999)),
    "cut in its head": lambda p: os.truncate(p, 20),
    "cut in its index": lambda p: os.truncate(p, 200),
    "cut at its end": lambda p: os.truncate(p, p.stat().st_size - 1),
    "longer": lambda p: os.truncate(p, p.stat().st_size + 1),
    "another version": lambda p: damaged(p, 8, b"\x09"),
    "an index without end": lambda p: damaged(p, 12, b"\xff\xff\xff\xff"),
    "a flipped bit in the index": lambda p: damaged(p, HEAD.size + 9, b"\x01"),
    "no index": lambda p: with_index(p, dict.clear),
    "another key": lambda p: with_index(p, lambda i: i.update(key="b" * 64)),
    "beyond the end": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(4, 1 << 40)),
    "in the index": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(4, 0)),
    "an odd place": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(4, BEGIN + 1)),
    "too few bytes": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(5, 64)),
    "no bytes": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(5, 0)),
    "a huge shape": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(1, 1 << 62)),
    "a negative shape": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(1, -8)),
    "a shape that is a text": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(1, "8")),
    "an unknown format": lambda p: with_index(p, lambda i: first_stack(i).__setitem__(0, "Q9_9")),
    "others may write it": lambda p: p.chmod(0o666),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_as_it_should_be_is_made_anew(model: Path, fault: str) -> None:
    anew = logits(kept(model))
    (path,) = files(model)
    FAULTS[fault](path)
    said: list[str] = []
    again = kept(model, say=said.append)
    assert np.array_equal(anew, logits(again))
    assert again.file is None and again.writer and len(said) == 2, said
    assert hit(kept(model)) and len(files(model)) == 1


def test_a_flipped_bit_in_a_weight_is_found_when_asked_for(model: Path) -> None:
    logits(kept(model))
    (path,) = files(model)
    damaged(path, BEGIN + 99, bytes([path.read_bytes()[BEGIN + 99] ^ 1]))
    assert hit(kept(model)), "a start does not read every byte"
    assert not hit(kept(model, verify=True)) and hit(kept(model, verify=True))


def test_a_link_is_not_followed(model: Path) -> None:
    logits(kept(model))
    (path,) = files(model)
    elsewhere = model.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert not hit(kept(model)) and not path.is_symlink() and elsewhere.exists()


def test_a_changed_model_has_a_new_file_and_the_old_one_goes(model: Path) -> None:
    logits(kept(model))
    (old,) = files(model)
    changed = kept(model, source=Source(model, "b" * 64))
    assert not hit(changed) and files(model) == [changed.path] and changed.path != old


def test_other_kernels_do_not_read_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits(kept(model))
    monkeypatch.setattr(packed, "layout_id", lambda kernels: "0" * 16)
    other = kept(model)
    assert not hit(other) and files(model) == [other.path], "of one build only the newest stays"


def test_the_layouts_of_the_builds_are_known_by_what_they_pack() -> None:
    assert len({layout_id(load(isa)) for isa in USABLE}) == len(USABLE)
    own = f"{'1' * 16}-{'2' * 16}-avx2-{'3' * 16}{SUFFIX}"
    assert superseded(own.replace("2222", "4444"), own, "avx2")
    assert superseded(own.replace("3333", "4444"), own, "avx2")
    assert not superseded(own.replace("1111", "4444"), own, "avx2")
    assert not superseded(own.replace("avx2", "portable"), own, "avx2") and not superseded("x", own, "avx2")


def test_a_plan_that_asks_for_more_packs_what_the_file_lacks(model: Path) -> None:
    anew = logits(kept(model))
    (path,) = files(model)
    with_index(path, lambda index: index["stacks"].pop(next(iter(index["stacks"]))))
    again = kept(model)
    assert np.array_equal(anew, logits(again)) and again.file and again.writer
    assert hit(kept(model)) and len(files(model)) == 1


# -- what stands in the way of writing -----------------------------------------------------------


def nothing_kept(model: Path, **changed: object) -> None:
    anew, said = logits(None), list[str]()
    assert np.array_equal(anew, logits(kept(model, say=said.append, **changed)))
    assert files(model) == [] and len(said) == 1 and "not kept" in said[0], said


def test_a_folder_that_cannot_be_made(model: Path) -> None:
    (model.parent / "cache").write_bytes(b"a file in its place")
    said: list[str] = []
    logits(kept(model, say=said.append))
    assert "not kept" in said[-1]


def test_a_folder_that_cannot_be_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: str, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "read-only")
        return opened(path, flags, *more)

    folder_of(model).mkdir(parents=True)
    monkeypatch.setattr(packed_file.os, "open", refuse)
    nothing_kept(model)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync", "fsync", "replace"])
def test_a_disk_that_is_full_or_fails(model: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(packed_file.os, call, fail)
    nothing_kept(model)


def test_a_quota_that_is_too_small_and_a_disk_with_little_room(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_kept(model, quota=1000)
    little = SimpleNamespace(f_bavail=1, f_frsize=4096)
    monkeypatch.setattr(packed_file.os, "statvfs", lambda _: little)
    nothing_kept(model)


def test_a_program_that_ends_leaves_no_half_file(model: Path) -> None:
    how = kept(model)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(packed._Ending, "come", lambda self: True)
    try:
        nothing_kept(model)
    finally:
        monkey.undo()
    assert not hit(how) and hit(kept(model))


@pytest.mark.parametrize(("pieces_s", "left"), [(1000, 2), (4, 100)])
def test_a_program_that_ends_waits_only_for_what_will_be_done_soon(
    monkeypatch: pytest.MonkeyPatch, pieces_s: int, left: int
) -> None:
    monkeypatch.setattr(packed, "END_WAIT_S", 3.0)
    ends, ended = packed._Ending(left), list[str]()

    def write() -> None:
        while ends.n_pieces > 0:
            if ends.come():
                return ended.append("given up")
            time.sleep(1 / pieces_s)
        return ended.append("done")

    ends.thread = threading.Thread(target=write)
    ends.thread.start()
    ends.wait()
    assert ended == ["done" if left < 10 else "given up"]


def test_what_a_killed_process_left_goes(model: Path) -> None:
    folder_of(model).mkdir(parents=True)
    left = folder_of(model) / "other.part"
    left.write_bytes(b"half")
    busy = folder_of(model) / "busy.part"
    with open(busy, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        logits(kept(model))
        assert not left.exists() and busy.exists() and hit(kept(model))


def test_small_models_are_not_kept(model: Path) -> None:
    how = kept(model, least=packed.LEAST_BYTES)
    logits(how)
    assert how.writer is None and files(model) == []


def test_the_quota_takes_the_least_used_and_what_nobody_needs(model: Path) -> None:
    sources = []
    for i, letter in enumerate("abc"):
        path = model.parent / f"{letter}.gguf"
        path.write_bytes(b"x")
        how = kept(path, source=Source(path, letter * 64))
        logits(how)
        assert how.path
        os.utime(how.path, ns=(i, i))
        sources.append((path, how.path))
    size = sources[0][1].stat().st_size
    assert hit(kept(sources[0][0], source=Source(sources[0][0], "a" * 64))), "and so it was used last"
    (folder_of(model) / f"older{SUFFIX}").write_bytes(b"KVPACKED\0")
    logits(kept(model, quota=3 * size))
    assert [p.exists() for _, p in sources] == [True, False, True] and len(files(model)) == 3
    sources[2][0].unlink()
    logits(kept(model, source=Source(model, "e" * 64), quota=9 * size))
    assert [p.exists() for _, p in sources] == [True, False, False], "its model is gone"


# -- several at once -----------------------------------------------------------------------------


def test_while_another_process_writes_it_is_left_to_that_one(model: Path) -> None:
    folder_of(model).mkdir(parents=True)
    how = kept(model)
    how.open(load("auto"))
    assert how.path
    part = how.path.with_suffix(".part")
    with open(part, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        said: list[str] = []
        logits(kept(model, say=said.append))
        assert part.exists() and "another process" in said[0]
    assert not hit(kept(model)) and hit(kept(model)), "its lock ended with it"
    assert not part.exists()


def test_many_threads_at_once(model: Path) -> None:
    anew, found = logits(None), list[bool]()

    def one() -> None:
        found.append(np.array_equal(anew, logits(kept(model))))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6 and hit(kept(model)) and len(files(model)) == 1


PROCESS = """
import sys
from pathlib import Path
from tests.kernels.test_packed import kept, logits
print(logits(kept(Path(sys.argv[1]))).tobytes().hex()[:4000])
"""


def test_two_processes_at_once(model: Path) -> None:
    words = [sys.executable, "-c", PROCESS, str(model)]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {run.communicate()[0] for run in runs}
    assert said == {logits(None).tobytes().hex()[:4000] + "\n"} and hit(kept(model))


# -- the model's identity ------------------------------------------------------------------------


def test_the_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = write_gguf("qwen3", tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(path)
    before = source_of(checkpoint)
    assert source_of(open_checkpoint(path)) == before
    info = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    changed = source_of(open_checkpoint(path))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert len({before.identity, changed.identity, source_of(open_checkpoint(path)).identity}) == 3
    assert packed_for(open_checkpoint(path), Settings(packed_gb=0)) is None
    how = packed_for(open_checkpoint(path), Settings(packed_gb=2))
    assert how and how.quota == 2 * 10**9 and how.source.path == path
