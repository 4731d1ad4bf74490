"""safetensors files and folders: as the safetensors package writes them; lies refused; no code run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvasir.checkpoint.open import open_checkpoint
from kvasir.checkpoint.safetensors import read_safetensors
from kvasir.errors import CheckpointError, KvasirError, ModelError
from tests.fuzz_checkpoints import CONFIG, ENTRIES, safetensors_bytes, with_header

Header = dict[str, object]


def folder(path: Path, config: Header | None = None, weights: bytes | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or CONFIG))
    (path / "model.safetensors").write_bytes(weights or safetensors_bytes(ENTRIES))
    return path


def reason(path: Path) -> str:
    with pytest.raises(KvasirError) as e:
        open_checkpoint(path)
    return str(e.value)


def test_reads_the_bytes_that_are_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal(5).astype(np.float16)
    c = np.array([1.0, -2.5, 3e38], np.float32)
    u = rng.integers(0, 256, (2, 3, 4), dtype=np.uint8)
    parts = {"a": ("F32", a), "b": ("F16", b), "u": ("U8", u), "i": ("I64", np.array(-7)), "z": ("BF16", c)}
    header, data = {}, b""
    for name, (dtype, x) in parts.items():
        raw = x.tobytes() if dtype != "BF16" else (x.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(x.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    path = tmp_path / "m.safetensors"
    path.write_bytes(with_header(json.dumps(header).encode() + b"   ", data))
    t = read_safetensors(path)
    assert np.array_equal(t["a"].floats(), a) and np.array_equal(t["b"].floats(), b.astype(np.float32))
    assert (
        t["u"].shape == (2, 3, 4)
        and np.array_equal(t["u"].raw, u.reshape(6, 4))
        and t["u"].format.name == "U8"
    )
    assert t["i"].shape == (1,) and t["i"].floats().tolist() == [-7.0]
    assert np.allclose(t["z"].floats(), c, rtol=1e-2) and t["z"].format.name == "BF16"
    assert not t["a"].raw.flags.owndata and not t["a"].raw.flags.writeable


def test_same_as_the_safetensors_package(tmp_path: Path) -> None:
    x = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "h": np.ones((2, 2), np.float16)}
    save_file(x, tmp_path / "m.safetensors", {"format": "np"})
    ours = read_safetensors(tmp_path / "m.safetensors")
    assert ours.keys() == x.keys()
    assert all(np.array_equal(ours[k].floats(), x[k].astype(np.float32)) for k in x)


def test_a_folder_a_file_and_what_lies_beside(tmp_path: Path) -> None:
    f = folder(tmp_path / "m")
    (f / "tokenizer.json").write_text("{}")
    (f / "chat_template.jinja").write_text("x")
    (f / "other.txt").write_text("x")
    model = open_checkpoint(f)
    assert model.kind == "safetensors" and model.config.architecture == "LlamaForCausalLM"
    assert model.tensors.keys() == ENTRIES.keys() and model.metadata == {}
    assert model.folder == {n: f / n for n in ("tokenizer.json", "chat_template.jinja")}
    assert open_checkpoint(f / "model.safetensors").tensors.keys() == ENTRIES.keys()


def change(name: str, **to: object) -> bytes:
    """A file in which the entry of one tensor says something else."""
    raw = safetensors_bytes(ENTRIES)
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    header[name] |= to
    return with_header(json.dumps(header).encode(), raw[8 + n :])


GOOD = safetensors_bytes(ENTRIES)
BAD: dict[str, tuple[bytes, str]] = {
    "header of 2^64-1": (b"\xff" * 8 + GOOD[8:], "header of 18446744073709551615 bytes"),
    "header beyond the file": ((10_000).to_bytes(8, "little") + GOOD[8:], "bytes are missing"),
    "header over the limit": ((100_000_001).to_bytes(8, "little") + GOOD[8:], "over 100000000"),
    "header of 0": (bytes(8) + GOOD[8:], "no header"),
    "four bytes": (b"abcd", "4 bytes"),
    "no json": (with_header(b"{this is not json}", b""), "not valid JSON"),
    "nested": (with_header(b'{"a":' + b"[" * 200_000, b""), "nested too deeply"),
    "a list": (with_header(b"[1]", b""), "no header"),
    "bad utf-8": (with_header(b'{"\xff\xfe":1}', b""), "not valid JSON"),
    "key twice": (GOOD[:9] + b'"model.w":1,' + GOOD[9:], "cut short|given twice|not valid"),
    "metadata of numbers": (with_header(b'{"__metadata__":{"a":1}}', b""), "__metadata__"),
    "no offsets": (with_header(b'{"a":{"dtype":"F32","shape":[1]}}', b""), "not a description"),
    "unknown dtype": (change("model.w", dtype="F8_E4M3"), "F8_E4M3.*does not read"),
    "dtype a list": (change("model.w", dtype=["F32"]), "does not read"),
    "other dtype": (change("model.w", dtype="F32"), "F32 .* is 192 bytes, data_offsets give 96"),
    "dims overflow": (change("model.w", shape=[2**32, 2**32]), "bytes, data_offsets"),
    "dims beyond 2^63": (change("model.w", shape=[2**64]), "shape"),
    "negative dim": (change("model.w", shape=[-3, -16]), "shape"),
    "zero dim": (change("model.w", shape=[0, 16]), "shape"),
    "bool dim": (change("model.w", shape=[True, 48]), "shape"),
    "float dim": (change("model.w", shape=[3.0, 16]), "shape"),
    "nine dims": (change("model.w", shape=[1] * 9), "shape"),
    "negative offset": (change("model.w", data_offsets=[-96, 0]), "data_offsets"),
    "reversed offsets": (change("model.w", data_offsets=[160, 64]), "data_offsets give -96"),
    "beyond the end": (change("blocks", data_offsets=[10_000, 10_024]), "bytes are missing"),
    "overlap": (change("model.w", data_offsets=[0, 96]), "overlaps"),
    "gap": (change("blocks", data_offsets=[159, 183]), "overlaps|gap"),
    "cut": (GOOD[:-5], "5 bytes are missing"),
    "longer": (GOOD + b"xxx", "3 bytes after the last tensor"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_files(tmp_path: Path, name: str) -> None:
    data, expected = BAD[name]
    f = folder(tmp_path / "m", weights=data)
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(f)


def test_the_same_key_twice(tmp_path: Path) -> None:
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    f = folder(tmp_path / "m", weights=with_header(b"{" + entry + b"," + entry + b"}", b"x"))
    assert "the key 'a' is given twice" in reason(f)


# ---- several files


def sharded(path: Path, edit: Callable[[dict[str, object]], object] = lambda m: None) -> Path:
    f = folder(path)
    (f / "model.safetensors").unlink()
    weight_map: dict[str, object] = {}
    for i in (1, 2):
        entries = {f"{k}.{i}": v for k, v in ENTRIES.items()}
        name = f"model-0000{i}-of-00002.safetensors"
        (f / name).write_bytes(safetensors_bytes(entries))
        weight_map |= dict.fromkeys(entries, name)
    edit(weight_map)
    (f / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return f


def test_sharded(tmp_path: Path) -> None:
    assert len(open_checkpoint(sharded(tmp_path / "m")).tensors) == 2 * len(ENTRIES)


@pytest.mark.parametrize("name", [
    "../out.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "c:\\x.safetensors",
    "x\0.safetensors",
])  # fmt: skip
def test_an_index_does_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "out.safetensors").write_bytes(GOOD)
    text = reason(sharded(tmp_path / "m", lambda m: m.update({"model.w.1": name})))
    assert "not the name of a file" in text or "not a .safetensors file" in text


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    assert "the index has it there" in reason(
        sharded(tmp_path / "a", lambda m: m.update({"x": "model-00001-of-00002.safetensors"}))
    )
    assert "the index does not have it" in reason(sharded(tmp_path / "b", lambda m: m.pop("blocks.1")))
    missing = sharded(tmp_path / "c")
    (missing / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file" in reason(missing)
    assert "weight_map" in reason(sharded(tmp_path / "d", lambda m: m.clear()))
    assert "not a .safetensors file" in reason(sharded(tmp_path / "e", lambda m: m.update({"blocks.1": 7})))


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    """Refused, but for the cache of the hub, whose snapshots are links into its blobs."""
    f = folder(tmp_path / "m")
    (tmp_path / "elsewhere").write_bytes(GOOD)
    (f / "model.safetensors").unlink()
    (f / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "leads out of the model's folder" in reason(f)
    hub = tmp_path / "models--a--b"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "blobs" / "abc").write_bytes(GOOD)
    snapshot = folder(hub / "snapshots" / "rev")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert len(open_checkpoint(snapshot).tensors) == len(ENTRIES)
    (f / "model.safetensors").unlink()
    (f / "model.safetensors").symlink_to("loop")
    (f / "loop").symlink_to("model.safetensors")
    assert reason(f)


# ---- folders without a model, and with code


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model in this folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert "pickle" in reason(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    assert "no config.json" in reason(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "neither architectures nor model_type" in reason(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(GOOD)
    assert "2 .safetensors files" in reason(tmp_path)


@pytest.mark.parametrize("keys", [
    {"auto_map": {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"}},
    {"_attn_implementation_internal": "kernels-community/x"}, {"_attn_implementation": "eager"},
    {"custom_pipelines": {}}, {"rope_parameters": {"auto_map": {}}},
])  # fmt: skip
def test_code_in_the_folder_is_never_run(
    tmp_path: Path, keys: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = folder(tmp_path / "m", {**CONFIG, **keys})
    bad = f"open({str(tmp_path / 'pwned')!r}, 'w')"
    for name in (
        "modeling_x.py",
        "configuration_x.py",
        "__init__.py",
        "config.py",
        "json.py",
        "sitecustomize.py",
    ):
        (f / name).write_text(bad)
    monkeypatch.chdir(f)
    before = set(sys.modules)
    with pytest.raises(CheckpointError, match="names code to run"):
        config = open_checkpoint(f).config
        table = config.table("rope_parameters")
        assert table is not None
    (f / "config.json").write_text(json.dumps(CONFIG))
    open_checkpoint(f)
    assert not (tmp_path / "pwned").exists()
    assert not any("modeling" in m for m in set(sys.modules) - before)
