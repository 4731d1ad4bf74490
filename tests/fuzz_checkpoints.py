"""Fuzzes the checkpoint readers: valid small files, broken where it hurts, opened under a memory bound.

    python -m tests.fuzz_checkpoints --seconds 600
    python -m tests.fuzz_checkpoints --cases 400 --seed 7

A model that opens and a KvasirError are both fine.  Anything else (another exception, a crash, over 256 MB,
over 5 seconds) is a bug: the case is printed with its seed and its files are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.gguf import Strings
from kvasir.checkpoint.gguf_names import NAMES
from kvasir.checkpoint.open import open_checkpoint
from kvasir.errors import KvasirError

MEMORY_BYTES = 256 << 20
CASE_SECONDS = 5
INTEGERS = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 31, 32, 33, 255, 256, 65535, 65536, 1 << 20, (1 << 24) + 1),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1),
]
TEXTS = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"a" * 300,
    b"../../x",
    b"blk.0.attn_q.weight",
    "é\u202e".encode(),
    b"general.alignment",
]
JSONS: list[object] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        0.5,
        -0.0,
        1e300,
        2**31,
        2**63,
        2**64,
        10**400,
        "",
        "x",
        "1",
        [],
        {},
        [[]],
    ),
    *(
        [0],
        [-1],
        [2**63, 2],
        [0, 2**64],
        [1.0],
        ["a"],
        [None],
        {"a": 1},
        "F32",
        "U8",
        "F8_E4M3",
        "../x.safetensors",
    ),
    *(float("inf"), "/etc/passwd", "\ud800", [[[[[[]]]]]], [1] * 9, [1] * 100_000),
]


# type and value of a GGUF key value
VALUES: list[tuple[int, object]] = [
    *((4, n) for n in INTEGERS if n < 2**32),
    *((10, n) for n in INTEGERS),
    *((6, x) for x in (0.0, -1.0, 1e-6, 1e30, float("nan"), float("inf"))),
    *(
        (7, 0),
        (7, 1),
        (7, 2),
        (8, ""),
        (8, "none"),
        (8, "yarn"),
        (8, "{{ 1 }}"),
        (8, "x" * 5000),
        (8, "adapter"),
    ),
    *((9, ["a", "b"]), (9, [0]), (9, [1, 2]), (9, [[1], [2, 3]]), (9, list(range(300))), (9, [""] * 100_000)),
]


# ---- GGUF, field by field


@dataclass(frozen=True)
class Field:
    """A piece of a GGUF file: an integer of `size` bytes, or plain bytes where that is 0."""

    size: int
    value: int
    raw: bytes
    group: str

    def bytes(self) -> bytes:
        return (
            self.raw if self.size == 0 else (self.value % (1 << 8 * self.size)).to_bytes(self.size, "little")
        )


def number(size: int, value: int, group: str) -> Field:
    return Field(size, value, b"", group)


def text(value: str, group: str) -> list[Field]:
    raw = value.encode()
    return [number(8, len(raw), group), Field(0, 0, raw, group)]


def key_value(key: str, kind: int, value: object) -> list[Field]:
    """The fields of one key value; a list is an array of texts, of u32, or of arrays of u32."""
    head = [*text(key, key), number(4, kind, key)]
    if kind == 8:
        return [*head, *text(str(value), key)]
    if kind == 9 and isinstance(value, list) and isinstance(value[0], str):
        return [
            *head,
            number(4, 8, key),
            number(8, len(value), key),
            *(f for v in value for f in text(v, key)),
        ]
    if kind == 9 and isinstance(value, list) and isinstance(value[0], list):
        inner = [
            g
            for v in value
            for g in (number(4, 4, key), number(8, len(v), key), *(number(4, x, key) for x in v))
        ]
        return [*head, number(4, 9, key), number(8, len(value), key), *inner]
    if kind == 9 and isinstance(value, list):
        return [*head, number(4, 4, key), number(8, len(value), key), *(number(4, v, key) for v in value)]
    if kind == 6:
        return [*head, Field(0, 0, struct.pack("<f", value), key)]
    assert isinstance(value, int)
    return [*head, number({7: 1, 4: 4, 10: 8}[kind], value, key)]


Key = tuple[str, int, object]
Announced = tuple[str, list[int], int, int]  # name, dims as in the file, type, bytes
KEYS: list[Key] = [
    ("general.architecture", 8, "llama"),
    ("general.alignment", 4, 32),
    ("llama.block_count", 4, 1),
    ("llama.embedding_length", 4, 32),
    ("llama.attention.head_count", 4, 2),
    ("llama.attention.head_count_kv", 9, [1, 1]),
    ("llama.rope.dimension_count", 4, 16),
    ("llama.rope.freq_base", 6, 10000.0),
    ("llama.rope.scaling.type", 8, "linear"),
    ("llama.rope.scaling.factor", 6, 2.0),
    ("llama.expert_gating_func", 4, 1),
    ("llama.ssm.inner_size", 4, 64),
    ("llama.ssm.time_step_rank", 4, 2),
    ("llama.vocab_size", 10, 4),
    ("llama.nested", 9, [[1, 2], [3]]),
    ("split.count", 4, 1),
    ("tokenizer.ggml.tokens", 9, ["<s>", "a", "b", "é"]),
    ("tokenizer.ggml.token_type", 9, [3, 1, 1, 1]),
    ("tokenizer.ggml.add_bos_token", 7, 1),
    ("tokenizer.chat_template", 8, "{{ messages }}"),
]
TENSORS: list[Announced] = [
    ("token_embd.weight", [32, 4], 8, 4 * 34),
    ("blk.0.attn_q.weight", [32, 32], 2, 32 * 18),
    ("blk.0.ffn_down_exps.weight", [32, 2, 3], 30, 32 * 2 * 3 * 2),
    ("output_norm.weight", [32], 0, 128),
]


def gguf_fields(
    keys: Sequence[Key] = KEYS, tensors: Sequence[Announced] = TENSORS, alignment: int = 32
) -> list[Field]:
    """A small GGUF file, valid as its parts are."""
    fields = [Field(0, 0, b"GGUF", "magic"), number(4, 3, "version")]
    fields += [number(8, len(tensors), "n_tensors"), number(8, len(keys), "n_kv")]
    for key in keys:
        fields += key_value(*key)
    at, data = 0, b""
    for name, dims, kind, n_bytes in tensors:
        fields += [*text(name, name), number(4, len(dims), name), *(number(8, d, name) for d in dims)]
        fields += [number(4, kind, name), number(8, at, name)]
        data += bytes(i * 37 % 251 for i in range(n_bytes)) + bytes(-n_bytes % alignment)
        at = len(data)
    head = len(join(fields))
    return [*fields, Field(0, 0, bytes(-head % alignment), "padding"), Field(0, 0, data, "data")]


def odd_gguf(rng: random.Random) -> list[Field]:
    """A well-formed file that says odd things: values of other types and sizes, records twice, other dims."""
    keys, tensors = list(KEYS), list(TENSORS)
    for _ in range(rng.choice([1, 1, 2, 4])):
        i, j = rng.randrange(len(keys)), rng.randrange(len(tensors))
        name, dims, kind, n_bytes = tensors[j]
        match rng.randrange(6):
            case 0 | 1 | 2:
                keys[i] = (keys[i][0], *rng.choice(VALUES))
            case 3:
                keys.append(
                    (
                        rng.choice([k[0] for k in KEYS] + [f"llama.{own}" for own in NAMES]),
                        *rng.choice(VALUES),
                    )
                )
            case 4:
                d = rng.randrange(len(dims))
                tensors[j] = (
                    name,
                    [*dims[:d], rng.choice(INTEGERS), *dims[d + 1 :]],
                    rng.choice([kind, 0, 8]),
                    n_bytes,
                )
            case _:
                tensors.append(
                    (
                        rng.choice([name, "token_types.weight", "rope_factors_long.weight"]),
                        dims,
                        kind,
                        n_bytes,
                    )
                )
    return gguf_fields(keys, tensors)


def join(fields: list[Field]) -> bytes:
    return b"".join(f.bytes() for f in fields)


def break_fields(fields: list[Field], rng: random.Random) -> list[Field]:
    """One lie in one place."""
    fields = list(fields)
    i = rng.randrange(len(fields))
    f = fields[i]
    match rng.randrange(6):
        case 0 | 1 if f.size:
            near = [f.value + d for d in (-1, 1, 32, -32)] + [
                f.value * 2,
                rng.getrandbits(64),
                rng.getrandbits(6),
            ]
            fields[i] = replace(f, value=rng.choice([*INTEGERS, *near]))
        case 0 | 1 | 2:
            fields[i] = Field(0, 0, rng.choice(TEXTS), f.group)
        case 3:
            del fields[i]
        case 4:
            record = [g for g in fields if g.group == f.group]
            fields[i:i] = record
        case _:
            j = rng.randrange(len(fields))
            fields[i], fields[j] = fields[j], fields[i]
    return fields


def break_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, or with bytes put in."""
    raw = bytearray(data)
    at = rng.randrange(len(raw) + 1) if raw else 0
    match rng.randrange(4):
        case 0:
            return bytes(raw[:at])
        case 1:
            for _ in range(rng.choice([1, 1, 2, 8])):
                if raw:
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case 2:
            raw[at:at] = rng.randbytes(rng.choice([1, 4, 8, 40]))
        case _:
            raw[at : at + 8] = rng.choice(INTEGERS).to_bytes(8, "little")
    return bytes(raw)


def write_gguf(folder: Path, rng: random.Random) -> Path:
    """A broken GGUF file, or a split one whose second part may be broken too."""
    odd = rng.random() < 0.4
    fields = odd_gguf(rng) if odd else gguf_fields()
    for _ in range(rng.choice([0, 0, 0, 1] if odd else [0, 1, 1, 1, 2, 3])):
        fields = break_fields(fields, rng)
    data = join(fields)
    if rng.random() < (0.05 if odd else 0.3):
        data = break_bytes(data, rng)
    path = folder / rng.choice(["model.gguf", "blob", "m-00001-of-00002.gguf"])
    path.write_bytes(data)
    if path.name.startswith("m-"):
        (folder / "m-00002-of-00002.gguf").write_bytes(break_bytes(data, rng))
    return path


# ---- safetensors folders


def safetensors_bytes(entries: dict[str, tuple[str, list[int]]]) -> bytes:
    """A valid file of these names: (dtype, shape)."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in entries.items():
        n = sizes[dtype]
        for d in shape:
            n *= d
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    return with_header(json.dumps(header).encode(), bytes(i % 251 for i in range(at)))


def with_header(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


ENTRIES = {"model.norm.weight": ("F32", [16]), "model.w": ("BF16", [3, 16]), "blocks": ("U8", [2, 3, 4])}
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_local_experts": 4,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "layer_types": ["full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "torch_dtype": "bfloat16",
    "eos_token_id": [1, 2],
}


def break_json(value: object, rng: random.Random) -> object:
    """One value somewhere in it replaced, removed, or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {
                    **value,
                    rng.choice(["auto_map", "x", "", "num_experts", "\0", "a" * 600]): value[key],
                }
            case _:
                return {**value, key: break_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        i = rng.randrange(len(value))
        return [*value[:i], break_json(value[i], rng), *value[i + 1 :]]
    return rng.choice(JSONS)


def break_text(raw: bytes, rng: random.Random) -> bytes:
    """JSON text with a key given twice, nested too deeply, or with broken bytes."""
    match rng.randrange(4):
        case 0:
            return raw[:1] + raw[1:-1] + b"," + raw[1:]
        case 1:
            return b'{"a":' + b"[" * 100_000
        case 2:
            return raw.replace(b"1", b"1" * 5000, 1)
        case _:
            return break_bytes(raw, rng)


def dump(value: object, rng: random.Random, often: float) -> bytes:
    for _ in range(rng.choice([0, 1, 1, 2]) if rng.random() < often else 0):
        value = break_json(value, rng)
    raw = json.dumps(value).encode()
    return break_text(raw, rng) if rng.random() < 0.15 * often else raw


def write_safetensors(folder: Path, rng: random.Random) -> Path:
    """A folder with config.json and one file, or two and an index; something in it is broken."""
    (folder / "config.json").write_bytes(dump(CONFIG, rng, 0.4))
    (folder / "modeling_x.py").write_text("raise SystemExit('code of the model was run')")
    sharded = rng.random() < 0.4
    names = (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        if sharded
        else ["model.safetensors"]
    )
    weight_map: dict[str, object] = {}
    for i, name in enumerate(names):
        entries = {f"{k}.{i}": v for k, v in ENTRIES.items()}
        weight_map |= dict.fromkeys(entries, name)
        good = safetensors_bytes(entries)
        n = int.from_bytes(good[:8], "little")
        header = dump(json.loads(good[8 : 8 + n]), rng, 0.7)
        raw = with_header(header, good[8 + n :])
        if rng.random() < 0.2:
            raw = rng.choice(INTEGERS).to_bytes(8, "little") + raw[8:]
        (folder / name).write_bytes(break_bytes(raw, rng) if rng.random() < 0.2 else raw)
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_bytes(dump(index, rng, 0.5))
    return folder


# ---- running


def use(path: Path) -> None:
    """What a program does with a model: opens it, reads texts, configuration and weights."""
    model = open_checkpoint(path)
    for value in model.metadata.values():
        if isinstance(value, Strings):
            value.texts()
    for tensor in model.tensors.values():
        values = tensor.floats()
        assert values.shape == tensor.shape and tensor.raw.shape[1] == tensor.format.row_bytes(
            tensor.shape[-1]
        )
    read_all(model.config)
    with suppress(KvasirError):
        model.config.check_all_read()


def read_all(config: Config) -> None:
    """Every reader on every key: only KvasirErrors may come."""
    for key in (
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "vocab_size",
        "rms_norm_eps",
        *CONFIG,
    ):
        readers: list[Callable[[str], object]] = [
            config.int,
            config.float,
            config.str,
            config.bool,
            config.ints,
        ]
        for reader in (*readers, config.floats, config.strs, config.bools, config.table):
            with suppress(KvasirError):
                reader(key)
        with suppress(KvasirError):
            config.must(key, "silu", 1, True)
    for key in ("rope_scaling", "rope_parameters"):
        with suppress(KvasirError):
            table = config.table(key)
            if table is not None:
                table.float("factor", 1.0)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"over {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def bound_memory() -> None:
    """No more address space than now and MEMORY_BYTES."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run_case(seed: int, number: int) -> str:
    """Opened, refused, or a description of the bug."""
    rng = random.Random(f"{seed}:{number}")
    write = write_gguf if rng.random() < 0.6 else write_safetensors
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        path = write(folder, rng)
        with time_limit(CASE_SECONDS):
            use(path)
        return "opened"
    except KvasirError as e:
        if not e.message or len(str(e)) > 1500:
            return f"an error text of {len(str(e))} characters: {str(e)[:200]}"
        return "refused"
    except (Exception, SystemExit):
        kept = Path(tempfile.gettempdir()) / f"fuzz-bug-{seed}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
        return f"kept in {kept}\n{traceback.format_exc()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of GGUF and safetensors.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=0, help="so many, whatever the time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    use_once = run_case(0, 0)  # so that what is imported on first use counts as "now"
    bound_memory()
    counts = {"opened": 0, "refused": 0}
    bugs = [] if use_once in counts else [use_once]
    started, number = time.monotonic(), 0
    while number < options.cases if options.cases else time.monotonic() - started < options.seconds:
        outcome = run_case(options.seed, number)
        if outcome in counts:
            counts[outcome] += 1
        else:
            bugs.append(outcome)
            print(f"BUG: seed {options.seed}, case {number}: {outcome}", flush=True)
        number += 1
    print(f"{number} cases: {counts['opened']} opened, {counts['refused']} refused, {len(bugs)} bugs")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
