"""What stays with the CPU when a model does not fit, with stated sizes; and running it so."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kvasir.backends.cuda.place import Speeds, Unit, live_out, place, stretches, units_of
from kvasir.errors import CapacityError
from tests.kernels.small import qwen
from tests.kernels.test_program import hybrid

GB = 10**9
SPEEDS = Speeds(gpu=3000e9, cpu=40e9, link=50e9)


def layers(n: int, each: int = GB) -> list[Unit]:
    return [Unit(f"blk.{i}.", 10 * i, 10 * i + 9, each, each, 0, 8192) for i in range(n)]


def with_experts(n: int) -> list[Unit]:
    """Layers of 1 GB, 0.9 GB of it experts of which a token reads a sixteenth."""
    found = list[Unit]()
    for i in range(n):
        found.append(Unit(f"blk.{i}.", 10 * i, 10 * i + 9, GB, GB // 10 + 9 * GB // 160, 0, 8192))
        found.append(Unit(f"blk.{i}.experts", 10 * i + 7, 10 * i + 7, 9 * GB // 10, 9 * GB // 160, 0, 12000,
                          f"blk.{i}."))  # fmt: skip
    return found


def test_what_fits_stays_on_the_gpu() -> None:
    found = place(layers(32), 2 * GB, 34 * GB, SPEEDS)
    assert not found.on_cpu and found.share == "100% GPU" and "all 34.0 GB fit in 34.0 GB" in found.reason


@pytest.mark.parametrize(("room", "expected"), [(33.5, 1), (33, 1), (32.9, 2), (17, 17), (2, 32)])
def test_as_few_layers_as_do(room: float, expected: int) -> None:
    found = place(layers(32), 2 * GB, int(room * GB), SPEEDS)
    assert len(found.on_cpu) == expected and found.gpu_bytes <= room * GB
    assert found.slower_s == pytest.approx(expected * layers(1)[0].slower_s(SPEEDS))
    assert f"{expected} of 32 layers" in found.reason and "34.0 GB are needed" in found.reason


def test_the_share_is_of_bytes() -> None:
    assert place(layers(32), 2 * GB, 18 * GB, SPEEDS).share == "47%/53% CPU/GPU"
    assert place(layers(100), 900 * GB, 999 * GB + GB // 2, SPEEDS).share == "1%/99% CPU/GPU"


def test_experts_go_before_layers() -> None:
    found = place(with_experts(32), 2 * GB, 24 * GB, SPEEDS)
    assert all(u.within for u in found.on_cpu) and len(found.on_cpu) == 12  # 10 GB over, 0.9 GB each
    assert "the experts of 12 layers" in found.reason
    tight = place(with_experts(32), 2 * GB, 4 * GB, SPEEDS)  # experts alone free 28.8 GB of the 30
    assert tight.gpu_bytes <= 4 * GB and any(not u.within for u in tight.on_cpu)
    names = {u.name for u in tight.on_cpu}
    assert not any(u.within in names for u in tight.on_cpu)


def test_big_layers_that_nobody_needs_to_move_stay() -> None:
    units = [*layers(4), Unit("blk.4.", 40, 49, 10 * GB, 10 * GB, 0, 8192)]
    found = place(units, 0, 13 * GB, SPEEDS)
    assert sum(u.n_bytes for u in found.on_cpu) == GB


def test_where_nothing_helps_one_message_says_what_is_needed() -> None:
    with pytest.raises(CapacityError) as caught:
        place(layers(4), 8 * GB, 6 * GB, SPEEDS)
    assert "needs 8.0 GB" in caught.value.message and "has 6.0 GB" in caught.value.message
    assert "12.0 GB" in caught.value.message and "KVASIR_BACKEND=cpu" in (caught.value.hint or "")


def test_a_plan_is_cut_where_one_value_crosses() -> None:
    plan = hybrid()
    sizes = {name: 4 * int(w.shape[0]) * int(w.shape[-1]) for name, w in plan.weights.items()}
    states = dict.fromkeys(plan.states, 100)
    units = units_of(plan, sizes, states, 10)
    assert [u.name for u in units] == ["blk.0.", "blk.1.", "blk.1.experts"]
    assert all(len(live_out(plan, u.first, u.last)) == 1 for u in units)
    assert units[0].state_bytes == 200 and units[1].state_bytes == 1000  # two slot states; one of ten blocks
    assert units[2].read_bytes < units[2].weight_bytes / 2
    cut = stretches(plan, units[:2])
    assert [s.where for s in cut] == ["gpu", "cpu", "gpu"]  # neighbours are joined
    assert cut[0].first == 0 and cut[-1].last == len(plan.ops) - 1
    assert all(a.last + 1 == b.first for a, b in pairwise(cut))


def test_layers_of_a_real_shape_are_units() -> None:
    plan = qwen(layers=3)
    units = units_of(plan, dict.fromkeys(plan.weights, 10), dict.fromkeys(plan.states, 1), 4)
    assert [u.name for u in units] == ["blk.0.", "blk.1.", "blk.2."]
    assert units[0].weight_bytes == 10 * 11 and units[0].state_bytes == 4
