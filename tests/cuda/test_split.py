"""A model that does not fit: layers and experts on the CPU, with the answers of a model that does."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvasir.backends.base import Memory
from kvasir.backends.cuda import weights as device_weights
from kvasir.backends.cuda.backend import CudaBackend
from kvasir.backends.cuda.place import Speeds
from kvasir.backends.cuda.sizes import Room, buffer_bytes, memory_in, weight_bytes
from kvasir.backends.reference import Reference
from kvasir.checkpoint.tensor import LowRank
from kvasir.errors import CapacityError
from kvasir.plan import Plan
from kvasir.plan.passes import adapt
from tests.cuda.test_weights import QUANTIZED, random
from tests.kernels.small import Sequences, qwen, tensor, weights_for
from tests.kernels.test_program import hybrid
from tests.stepping import error

SPEEDS = Speeds(gpu=3000e9, cpu=40e9, link=50e9)
MEMORY = Memory(16, 4, "f32")
STEPS = [[(0, 9), (1, 3)], [(0, 1), (1, 1)], [(1, 7), (0, 5)]]


def backend(free: int, said: list[str]) -> CudaBackend:
    room = Room(80 << 30, free)
    return CudaBackend("cpu", "f32", room=room, speeds=SPEEDS, say=said.append, threads=2)


def needed(plan: Plan) -> int:
    made = backend(1 << 40, [])
    return made.placement(plan, weights_for(plan), MEMORY).gpu_bytes


@pytest.mark.parametrize("name", ["qwen", "hybrid"])
@pytest.mark.parametrize("short", [0.02, 0.3, 0.6])
def test_answers_do_not_depend_on_what_the_cpu_has(name: str, short: float) -> None:
    plan = adapt({"qwen": lambda: qwen(layers=3), "hybrid": hybrid}[name]())
    weights, said = weights_for(plan), list[str]()
    made = backend(1 << 40, said)
    units = made.placement(plan, weights, MEMORY)
    movable = needed(plan) - fixed(plan)
    free = int((units.gpu_bytes - short * movable) / 0.95)
    split = backend(free, said).compile(plan, weights, MEMORY)
    assert split.placed and split.placed.on_cpu and split.placed.gpu_bytes <= 0.95 * free
    assert len(said) == 1 and "CPU/GPU" in said[0] and "GB are needed" in said[0]
    texts, theirs = Sequences([15, 11], 50, MEMORY), Reference().compile(plan, weights, MEMORY)
    for step in STEPS:
        batch = texts.batch(step)
        assert error(split.step(batch), theirs.step(batch)) < 1e-5
    for p in (split, theirs):
        p.copy_slot(int(texts.slots[0]), int(texts.slots[1]))
    assert len(split.slot(0)) == len(theirs.slot(0)) and len(split.block(0)) == len(theirs.block(0))


def fixed(plan: Plan) -> int:
    """Bytes that never move: those of the placement with every layer on the CPU."""
    low, high = 0, needed(plan)
    while high - low > 64:
        middle = (low + high) // 2
        try:
            backend(middle, []).placement(plan, weights_for(plan), MEMORY)
        except CapacityError:
            low = middle
        else:
            high = middle
    return int(high * 0.95)


def test_adapters_reach_layers_on_both_sides() -> None:
    plan = adapt(qwen(layers=3))
    weights, rng = weights_for(plan), np.random.default_rng(5)
    free = int((needed(plan) - 0.4 * (needed(plan) - fixed(plan))) / 0.95)
    split = backend(free, []).compile(plan, weights, MEMORY)
    theirs = Reference().compile(plan, weights, MEMORY)
    low = {
        f"blk.{i}.ffn_{n}": LowRank(
            tensor("a", rng.standard_normal((4, w.shape[1])).astype(np.float32)),
            tensor("b", rng.standard_normal((w.shape[0], 4)).astype(np.float32)),
            0.2,
        )
        for i in range(3)
        for n in ("gate", "down")
        if (w := plan.weights[f"blk.{i}.ffn_{n}"])
    }
    texts = Sequences([6, 6], 50, MEMORY)
    for p in (split, theirs):
        p.adapt(1, low)
    batch = texts.batch([(0, 6), (1, 6)])
    with_it = type(batch)(**{**vars(batch), "adapters": np.array([1, -1], np.int32)})
    got, want = split.step(with_it), theirs.step(with_it)
    plain = theirs.step(batch)
    assert error(got, want) < 1e-5 and error(want[:6], plain[:6]) > 0.01 and error(got[6:], plain[6:]) < 1e-5


@pytest.mark.parametrize("form", [*QUANTIZED, "F32"])
def test_what_a_weight_takes_is_known_before_it_is_loaded(form: str) -> None:
    plan = Plan("one")
    plan.weight("w", 6, 512)
    t = random(form, 6, 512)
    want = device_weights.load(t, "cpu", torch.bfloat16).n_bytes
    assert weight_bytes(plan, {"w": t}, torch.bfloat16) == {"w": want}


def test_the_cache_takes_what_the_weights_leave() -> None:
    plan = qwen()
    plan.context = 4096
    gb, block = 10**9, 2 * 16 * 2 * 2 * 16 * 2  # layers, tokens, k and v, kv heads, width, float16
    memory = memory_in(plan, 2 * gb, Room(80 * gb, 10 * gb), "f16", None, None)
    left = int(9.2 * gb) - 2 * gb - buffer_bytes(plan, 4096)
    assert memory.n_blocks == min(left // block, 256 * 256) and memory.kv_format == "f16"
    small = memory_in(plan, 2 * gb, Room(80 * gb, 2 * gb), "f16", None, None)
    assert small.n_blocks == 256  # 4,096 tokens, though layers must go for them
    assert memory_in(plan, 2 * gb, Room(80 * gb, 10 * gb), "f16", 77, None).n_blocks == 77
    assert memory_in(plan, 2 * gb, Room(80 * gb, 10 * gb), "q8_0", None, 0.001).n_blocks == 10**6 // (
        block * 9 // 16
    )


def test_a_cache_that_cannot_be_is_refused_with_what_would_fit() -> None:
    plan = qwen()
    with pytest.raises(CapacityError, match=r"needs 40.0 GB and the GPU has 10.0 GB free, room for 35,9"):
        memory_in(plan, 0, Room(80 * 10**9, 10**10), "f16", None, 40)
