"""Files of cache blocks: what is damaged, cut short or somebody else's is never read as what it is not.

`EVERY_BIT=1` flips all 524,288 bits of the 64 kB file and cuts it at each byte: some minutes; else a sample,
with every bit of some heads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvasir import faults
from kvasir.engine import segments
from kvasir.engine.segments import HEAD_BYTES, Damaged, Record, Writer, open_safely, read, scan, segments_of
from kvasir.engine.shelf import next_key, root_key

MODEL = bytes(range(32))
ROOT = root_key(MODEL, "f16", "tenant", "")
PIECES = (1200, 600, 5888)  # bytes: eight records and the head make 64 kB
N = 8
STEP = 1 if os.environ.get("EVERY_BIT") else 211


def block(number: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(number)
    return tuple(rng.integers(0, 256, n, dtype=np.uint8) for n in PIECES)


def chain(count: int, root: bytes = ROOT) -> list[tuple[bytes, bytes, tuple[int, ...]]]:
    """Key, parent and tokens of the blocks of a prefix."""
    found, parent = [], root
    for n in range(count):
        tokens = tuple(range(16 * n, 16 * n + 16))
        found.append((next_key(parent, tokens), parent, tokens))
        parent = found[-1][0]
    return found


CHAIN = chain(N)


def write(folder: Path, segment_bytes: int = 1 << 20, count: int = N) -> list[Record]:
    writer = Writer(folder, MODEL, segment_bytes, lambda path, n: None)
    records = [writer.append(*CHAIN[n], block(n)) for n in range(count)]
    writer.close()
    return records


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path)
    (path,) = segments_of(tmp_path)
    assert 62_000 < path.stat().st_size < 66_000
    return path


def readable(path: Path, wanted: int = -1) -> set[int]:
    """Which of the blocks come back, each asserted to be itself; `wanted`: only this one is read in full."""
    found = set()
    by_key = {record.key: record for record in scan(path, MODEL)[0]}
    with open_safely(path) as opened:
        for n, (key, parent, tokens) in enumerate(CHAIN):
            if key not in by_key:
                continue
            if wanted in (-1, n):
                pieces = tuple(np.zeros(size, np.uint8) for size in PIECES)
                try:
                    read(opened, by_key[key], key, parent, tokens, pieces)
                except Damaged:
                    continue
                assert all(np.array_equal(a, b) for a, b in zip(pieces, block(n), strict=True))
            found.add(n)
    return found


def heads(records: list[Record]) -> Iterator[range]:
    return (range(r.at - len(r.head), r.at) for r in records)


def test_what_is_written_comes_back(file: Path):
    records, end, n_damaged = scan(file, MODEL)
    assert [(r.key, r.parent, r.tokens) for r in records] == CHAIN
    assert end == file.stat().st_size and n_damaged == 0
    assert readable(file) == set(range(N))
    assert file.stat().st_mode & 0o777 == 0o600
    assert scan(file, MODEL, records[4].end)[0] == records[5:]


def test_a_flipped_bit_loses_its_own_block_at_most(file: Path):
    records, whole = scan(file, MODEL)[0], file.read_bytes()
    owner = dict.fromkeys(range(len(whole)), -1)
    for n, record in enumerate(records):
        owner |= dict.fromkeys(range(record.at - len(record.head), record.end), n)
    in_heads = [8 * at + bit for head in heads(records[::3]) for at in head for bit in range(8)]
    in_pieces = range(8 * HEAD_BYTES, 8 * len(whole), STEP)
    with open(file, "r+b", buffering=0) as raw:
        for bit in sorted({*range(8 * HEAD_BYTES), *in_heads, *in_pieces}):
            at, n = bit // 8, owner[bit // 8]
            raw.seek(at)
            raw.write(bytes([whole[at] ^ 1 << bit % 8]))
            expected = set() if at < HEAD_BYTES else set(range(N)) - {n}
            assert readable(file, n) == expected, f"bit {bit}"
            raw.seek(at)
            raw.write(whole[at : at + 1])
    assert readable(file) == set(range(N)), "the test put back what it changed"


def test_a_file_cut_at_any_byte_keeps_what_is_before(file: Path):
    records, size = scan(file, MODEL)[0], file.stat().st_size
    near = {at + d for r in records for at in (r.at - len(r.head), r.at, r.end) for d in (-1, 0, 1)}
    for length in sorted({*range(0, size, STEP), *range(HEAD_BYTES + 2), *near} - {size + 1}, reverse=True):
        os.truncate(file, length)
        kept = [r for r in records if r.end <= length]
        found, end, _ = scan(file, MODEL)
        assert found == kept, length
        assert end == (kept[-1].end if kept else HEAD_BYTES if length >= HEAD_BYTES else 0), length


def test_a_torn_tail_goes_when_the_file_is_written_again(file: Path):
    records = scan(file, MODEL)[0]
    os.truncate(file, records[5].end + 1000)
    again, end, _ = scan(file, MODEL)
    writer = Writer(file.parent, MODEL, 1 << 20, lambda path, n: None)
    writer.resume(file, end)
    writer.append(*CHAIN[6], block(6))
    writer.close()
    assert again == records[:6] and list(segments_of(file.parent)) == [file]
    assert readable(file) == set(range(7)) and file.stat().st_size == records[6].end


def test_two_blocks_swapped(file: Path):
    records, data = scan(file, MODEL)[0], bytearray(file.read_bytes())
    a, b = (slice(records[n].at, records[n].end) for n in (2, 5))
    data[a], data[b] = data[b], data[a]
    file.write_bytes(data)
    assert readable(file) == set(range(N)) - {2, 5}, "the numbers alone"
    write_whole = bytearray(data)
    write_whole[a], write_whole[b] = data[b], data[a]
    a, b = (slice(records[n].at - len(records[n].head), records[n].end) for n in (2, 5))
    write_whole[a], write_whole[b] = write_whole[b], write_whole[a]
    file.write_bytes(write_whole)
    assert readable(file) == set(range(N)), "with their heads they are still themselves"


def test_a_file_of_another_model_or_one_that_others_can_write_is_not_read(file: Path):
    assert scan(file, bytes(32))[0] == []
    file.chmod(0o620)
    with pytest.raises(OSError, match="only its user"):
        scan(file, MODEL)
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        scan(file, MODEL)


def test_a_record_is_compared_by_its_tokens_and_not_by_its_key_alone(file: Path):
    record = scan(file, MODEL)[0][3]
    key, parent, tokens = CHAIN[3]
    pieces = tuple(np.zeros(size, np.uint8) for size in PIECES)
    with open_safely(file) as opened:
        for wrong in (
            (key, parent, (*tokens[:15], 1)),
            (key, CHAIN[1][0], tokens),
            (CHAIN[4][0], parent, tokens),
        ):
            with pytest.raises(Damaged, match="another block"):
                read(opened, record, *wrong, pieces)
        with pytest.raises(Damaged, match="another shape"):
            read(opened, record, key, parent, tokens, pieces[:2])


def test_keys_depend_on_all_that_the_numbers_do():
    made = [
        (MODEL, "f16", "a", "b"), (bytes(32), "f16", "a", "b"), (MODEL, "f32", "a", "b"),
        (MODEL, "f16", "ab", ""), (MODEL, "f16", "", "ab"), (MODEL, "f16", "a", "c"),
    ]  # fmt: skip
    known = {root_key(*each) for each in made}
    assert len(known) == 6
    assert len({next_key(ROOT, (1, 2)), next_key(ROOT, (2, 1)), next_key(CHAIN[0][0], (1, 2))}) == 3


def test_a_write_that_fails_leaves_nothing_and_the_next_one_stands(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(faults, "_armed", {})
    faults.arm(faults.parse("cache.write:3:oserror"), "any")
    writer = Writer(tmp_path, MODEL, 1 << 20, lambda path, n: None)
    for n in range(4):
        if n == 2:
            with pytest.raises(OSError, match="No space"):
                writer.append(*CHAIN[n], block(n))
        writer.append(*CHAIN[n], block(n))
    writer.close()
    (path,) = segments_of(tmp_path)
    assert readable(path) == {0, 1, 2, 3} and scan(path, MODEL)[2] == 0


def test_segments_are_begun_when_one_is_full_and_when_somebody_removed_it(tmp_path: Path):
    write(tmp_path, segment_bytes=20_000)
    paths = list(segments_of(tmp_path))
    assert len(paths) == 4 and all(p.stat().st_size <= 20_000 for p in paths)
    assert not [p for p in tmp_path.iterdir() if p.suffix == segments.PART]
    writer = Writer(tmp_path, MODEL, 1 << 20, lambda path, n: None)
    gone = writer.append(*CHAIN[0], block(0)).path
    gone.unlink()
    there = writer.append(*CHAIN[1], block(1)).path
    writer.close()
    assert there != gone and readable(there) == {1}
