"""GGUF files: equal to what the gguf package reads, and refused with a clear error when they lie."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from kvasir.checkpoint.files import give_back, map_file
from kvasir.checkpoint.gguf import Strings, read_gguf, string_ends
from kvasir.checkpoint.open import Checkpoint, open_checkpoint
from kvasir.errors import CheckpointError, KvasirError, ModelError
from kvasir.quant.encode import encode
from kvasir.quant.formats import FORMATS
from tests.fuzz_checkpoints import KEYS, TENSORS, Field, gguf_fields, join, number

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_key(key: str, kind: int, value: object) -> bytes:
    return join(gguf_fields([k for k in KEYS if k[0] != key] + [(key, kind, value)]))


def with_tensor(name: str = "x", dims: tuple[int, ...] = (32,), kind: int = 0, n_bytes: int = 128) -> bytes:
    return join(gguf_fields(KEYS, [*TENSORS, (name, list(dims), kind, n_bytes)]))


def reason(path: Path) -> str:
    with pytest.raises(KvasirError) as e:
        open_checkpoint(path)
    return str(e.value)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    w.add_block_count(2)
    w.add_embedding_length(64)
    w.add_rope_freq_base(1e6)
    w.add_array("general.tags", ["a", "é", ""])
    w.add_array("x.ints", [1, -2, 3])
    w.add_array("x.bools", [True, False])
    w.add_bool("x.bool", True)
    w.add_float64("x.double", 0.1)
    w.add_int64("x.negative", -(2**40))
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((3, 5, 64)).astype(np.float32)
    w.add_tensor("f32", floats)
    w.add_tensor("f16", floats[0].astype(np.float16))
    w.add_tensor("q8", encode(floats[0], FORMATS["Q8_0"]), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

    model = read_gguf(tmp_path / "m.gguf")
    their = gguf.GGUFReader(tmp_path / "m.gguf")
    ours = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in model.metadata.items()}
    for key, value in their.fields.items():
        if not key.startswith("GGUF."):
            assert ours[key] == value.contents(), key
    assert isinstance(model.metadata["general.tags"], Strings)
    for t in their.tensors:
        mine = model.tensors[t.name]
        assert mine.raw.tobytes() == t.data.tobytes()
        assert mine.shape == tuple(int(d) for d in reversed(t.shape))
        assert not mine.raw.flags.owndata and not mine.raw.flags.writeable
    assert np.array_equal(model.tensors["f32"].floats(), floats)


def test_versions(tmp_path: Path) -> None:
    data = join(gguf_fields())
    assert open_checkpoint(write(tmp_path / "3", data)).kind == "gguf"
    second = open_checkpoint(write(tmp_path / "2", data[:4] + b"\2" + data[5:]))
    assert second.config.int("num_hidden_layers") == 1
    assert "version 1" in reason(write(tmp_path / "1", data[:4] + b"\1" + data[5:]))
    assert "big-endian" in reason(write(tmp_path / "be", data[:4] + b"\0\0\0\3" + data[8:]))


def test_config_goes_by_hugging_face_names(tmp_path: Path) -> None:
    c = open_checkpoint(write(tmp_path / "m.gguf", join(gguf_fields()))).config
    assert c.architecture == "llama"
    assert (c.int("num_hidden_layers"), c.int("hidden_size"), c.int("num_attention_heads")) == (1, 32, 2)
    assert c.int("num_key_value_heads") == 1 and c.ints("num_key_value_heads") == [1, 1]
    assert c.float("rope_theta") == 10000.0 and c.int("vocab_size") == 4 and c.bool("tie_word_embeddings")
    assert not c.has("partial_rotary_factor") and c.str("scoring_func") == "softmax"
    scaling = c.table("rope_scaling")
    assert scaling and scaling.str("rope_type") == "linear"
    assert c.unread() == [
        "linear_value_head_dim",
        "llama.nested",
        "llama.rope.scaling.factor",
        "llama.ssm.time_step_rank",
    ]


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    keys = [("general.alignment", 4, alignment) if k[0] == "general.alignment" else k for k in KEYS]
    path = write(tmp_path / "m.gguf", join(gguf_fields(keys, TENSORS, alignment)))
    their = gguf.GGUFReader(path)
    for t in their.tensors:
        assert open_checkpoint(path).tensors[t.name].raw.tobytes() == t.data.tobytes()


def test_every_cut_is_refused(tmp_path: Path) -> None:
    """At each byte of the header, and in the data."""
    data = join(gguf_fields())
    path = tmp_path / "m.gguf"
    for n in [*range(0, len(data) - 900, 7), *range(len(data) - 900, len(data), 97), len(data) - 1]:
        assert reason(write(path, data[:n]))
    assert f"{128} bytes are missing" in reason(write(path, data[:-128]))
    for n in (1, 4, 23):
        assert f"{n} bytes" in reason(write(path, data[:n]))


def test_lying_counts_cost_nothing(tmp_path: Path) -> None:
    """Every integer of the header, replaced by large ones: refused at once, nothing allocated."""
    fields = gguf_fields()
    path = tmp_path / "m.gguf"
    started = time.monotonic()
    n = 0
    for i, f in enumerate(fields):
        if f.size == 8:
            for value in (2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64 - 32):
                write(path, join([*fields[:i], number(8, value, f.group), *fields[i + 1 :]]))
                n += 1
                try:
                    open_checkpoint(path).config.int("vocab_size")
                except KvasirError:
                    continue
                raise AssertionError((f, value))
    assert n > 250 and time.monotonic() - started < 10


BAD = {
    "duplicate key": (join(gguf_fields([*KEYS, KEYS[0]])), "given twice"),
    "duplicate tensor": (join(gguf_fields(KEYS, [*TENSORS, TENSORS[0]])), "given twice"),
    "alignment 0": (with_key("general.alignment", 4, 0), "power of two"),
    "alignment 3": (with_key("general.alignment", 4, 3), "power of two"),
    "alignment 2^31": (with_key("general.alignment", 4, 2**31), "power of two"),
    "alignment text": (with_key("general.alignment", 8, "32"), "power of two"),
    "no architecture": (join(gguf_fields(KEYS[1:])), "general.architecture"),
    "architecture number": (with_key("general.architecture", 4, 1), "general.architecture"),
    "adapter": (with_key("general.type", 8, "adapter"), "no model by itself"),
    "bool of 2": (with_key("x.b", 7, 2), "bool of value 2"),
    "token of 2 MB": (with_key("tokenizer.ggml.tokens", 9, ["a", "b" * (2 << 20)]), "2097152 bytes long"),
    "zero dim": (with_tensor(dims=(32, 0)), r"dimensions \[32, 0\]"),
    "negative dim": (with_tensor(dims=(32, 2**64 - 1)), "dimensions"),
    "five dims": (with_tensor(dims=(1, 1, 1, 1, 1)), "5 dimensions"),
    "product overflows": (with_tensor(dims=(2**32, 2**32, 2**32), n_bytes=0), "bytes are missing"),
    "product is 2^64": (with_tensor(dims=(2**32, 2**30), n_bytes=0), "bytes are missing"),
    "not whole blocks": (with_tensor(dims=(33,), kind=8), "multiple of 32"),
    "unread format": (with_tensor(dims=(256,), kind=16), "IQ2_XXS"),
    "unknown format": (with_tensor(dims=(256,), kind=999), "unknown type 999"),
    "long name": (with_tensor(name="x" * 300), "300 bytes long"),
    "empty name": (with_tensor(name=""), "has the name ''"),
    "control name": (with_tensor(name="a\x1b[2J"), "has the name"),
    "nested too deep": (
        join([*gguf_fields([])[:3], number(8, 1, ""), number(8, 1, ""), Field(0, 0, b"x", "")])
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 50,
        "nests arrays deeper",
    ),
    "pickle": (b"\x80\x02}q\x00." + bytes(20), "pickle"),
    "zip": (b"PK\x03\x04" + bytes(40), "pickle"),
    "something else": (b"hello, this is no model at all", "neither GGUF nor safetensors"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_files(tmp_path: Path, name: str) -> None:
    data, expected = BAD[name]
    text = reason(write(tmp_path / "blob", data))
    assert re.search(expected, text), text


def test_overlap_and_misplaced_tensors(tmp_path: Path) -> None:
    fields = gguf_fields()
    last = {f.group: i for i, f in enumerate(fields)}
    at = last["blk.0.attn_q.weight"]
    path = tmp_path / "m.gguf"
    assert "overlap" in reason(write(path, join([*fields[:at], number(8, 0, ""), *fields[at + 1 :]])))
    assert "alignment" in reason(write(path, join([*fields[:at], number(8, 161, ""), *fields[at + 1 :]])))


COUNTS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}


@pytest.mark.parametrize("key", list(COUNTS))
@pytest.mark.parametrize("kind, value", [(4, 0), (10, 2**63), (8, "2"), (6, 2.0), (7, 1)])
def test_counts_of_zero_or_of_another_type(tmp_path: Path, key: str, kind: int, value: object) -> None:
    model = open_checkpoint(write(tmp_path / "m.gguf", with_key(f"llama.{key}", kind, value)))
    with pytest.raises(CheckpointError, match=re.escape(f"m.gguf: llama.{key} is")):
        model.config.int(COUNTS[key])


def test_tokens_that_are_not_text(tmp_path: Path) -> None:
    data = join(gguf_fields()).replace("é".encode(), b"\xff\xfe")
    tokens = open_checkpoint(write(tmp_path / "m.gguf", data)).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Strings) and len(tokens) == 4
    with pytest.raises(CheckpointError, match="string 3 is not UTF-8"):
        tokens[3]


def split(folder: Path, n: int = 3, total: int | None = None) -> Path:
    for i in range(n):
        keys = [k for k in KEYS if k[0] != "split.count"] if i == 0 else []
        keys += [("split.count", 4, n), ("split.no", 4, i), ("split.tensors.count", 4, total or n)]
        data = join(gguf_fields(keys, [(f"t{i}", [32], 0, 128)]))
        write(folder / f"m-{i + 1:05}-of-{n:05}.gguf", data)
    return folder / f"m-00001-of-{n:05}.gguf"


def test_split_files(tmp_path: Path) -> None:
    first = split(tmp_path)
    assert list(open_checkpoint(first).tensors) == ["t0", "t1", "t2"]
    assert list(open_checkpoint(tmp_path).tensors) == ["t0", "t1", "t2"]
    assert "-00001-of-00003.gguf" in reason(tmp_path / "m-00002-of-00003.gguf")
    assert "announces 9 tensors" in reason(split(tmp_path, 3, 9))
    split(tmp_path)
    (tmp_path / "m-00003-of-00003.gguf").write_bytes((tmp_path / "m-00002-of-00003.gguf").read_bytes())
    assert "part 3 of 3" in reason(first)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    assert "m-00002-of-00003.gguf is missing" in reason(first)


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "link.gguf").symlink_to("/dev/zero")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "w.bin").write_bytes(b"x" * 100)
    started = time.monotonic()
    here = (str(tmp_path / "pipe.gguf"), str(tmp_path / "link.gguf"))
    for path in ("/dev/zero", "/dev/random", "/proc/self/mem", *here):
        with pytest.raises(CheckpointError, match="not a regular file"):
            open_checkpoint(path)
    for path in (str(tmp_path / "missing.gguf"), "a\0b", str(tmp_path)):
        with pytest.raises((ModelError, CheckpointError)):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="0 bytes"):
        open_checkpoint(tmp_path / "empty.gguf")
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(tmp_path / "w.bin")
    assert time.monotonic() - started < 1


def big_vocabulary(path: Path, n: int) -> Checkpoint:
    w = gguf.GGUFWriter(path, "llama")
    w.add_token_list([f"token{i}" for i in range(n)])
    w.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        model = open_checkpoint(path)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.15, times
    return model


def test_a_large_vocabulary_opens_at_once(tmp_path: Path) -> None:
    tokens = big_vocabulary(tmp_path / "m.gguf", 150_000).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Strings) and len(tokens) == 150_000
    assert tokens[149_999] == "token149999" and tokens[:2] == ["token0", "token1"]


def test_the_data_of_a_large_file_is_not_read(tmp_path: Path) -> None:
    """1 GB with a hole for data opens in milliseconds, and adds nothing to the memory in use."""
    path = write(tmp_path / "m.gguf", join(gguf_fields(KEYS, [*TENSORS, ("big", [1 << 28], 0, 0)])))
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size + (1 << 30))
    started = time.perf_counter()
    model = open_checkpoint(path)
    assert time.perf_counter() - started < 0.2
    assert model.tensors["big"].n_bytes == 1 << 30 and model.n_bytes > 1 << 30


def test_fuzz_for_a_moment() -> None:
    """Some hundred broken files under a memory bound; tests/fuzz_checkpoints.py does more of it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_checkpoints", "--cases", "500", "--seed", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_string_is_looked_for_without_decoding_the_others():
    texts = ["", "a", "äb", "<|im_end|>", "<|im_end|", "b"]
    raw = b"".join(len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts)
    data = np.frombuffer(raw + b"\xff" * 4, np.uint8)
    from_file = Strings(data, string_ends(data, len(texts)), "a test")
    assert all(text in from_file for text in texts)
    assert not any(text in from_file for text in ("c", "ä", "<|im_end", "\ud800", 1, None))
    assert from_file._texts is None
    assert "a" not in Strings(data, string_ends(data, 0), "a test")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells which pages are mapped")
def test_pages_that_are_given_back_can_be_read_again(tmp_path):
    path = tmp_path / "some.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    data = map_file(path)
    assert int(data[::4096].sum()) == 0 and resident_kb(path) > 900
    give_back([data[5:9], np.zeros(3, np.uint8)])
    assert resident_kb(path) == 0
    assert data[255] == 255 and bytes(data) == path.read_bytes()


def resident_kb(path: Path) -> int:
    """How much of a mapped file is in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith(str(path)))
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])
