"""What a plan is printed as, and what its tokens cost."""

from __future__ import annotations

import pytest

from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.plan.show import amount, parts, plan_cost, ranges, roofline, show
from tests.parity.cases import CASES, GOLDEN


@pytest.mark.parametrize("name", CASES)
def test_every_op_of_every_model_is_shown_and_costed(name: str) -> None:
    plan, weights = build(open_checkpoint(GOLDEN / name))
    sizes = weights.sizes()
    assert sizes == {n: t.n_bytes for n, t in weights.items()}
    assert sum(len(p.ops) * max(1, len(p.layers)) for p in parts(plan)) == len(plan.ops)
    assert plan_cost(plan, sizes, 20).n_bytes > plan_cost(plan, sizes, 0).n_bytes or "bert" in name
    assert plan.name in show(plan, sizes)
    assert "tokens a second" in roofline(plan, sizes, 20, 1e9, 1e9)


def test_equal_layers_are_folded() -> None:
    plan, weights = build(open_checkpoint(GOLDEN / "gemma3"))
    assert [p.layers for p in parts(plan)] == [(), (0, 1, 2, 3, 4), (5,), ()]
    shown = show(plan, weights.sizes())
    assert "-- 5 layers: 0-4" in shown and "-- layer: 5" in shown
    plan, _ = build(open_checkpoint(GOLDEN / "qwen35"))
    assert [p.layers for p in parts(plan)] == [(), (0, 1, 2), (3,), ()]


def test_cost_of_a_llama_token_by_hand() -> None:
    plan, weights = build(open_checkpoint(GOLDEN / "llama-linear"))
    layer = 32 * 32 * 2 + 16 * 32 * 2 + 3 * 48 * 32
    at_10 = plan_cost(plan, weights.sizes(), 10)
    assert at_10.macs == 2 * layer + 100 * 32 + 2 * 10 * 64
    assert at_10.past_bytes == 2 * 10 * (16 + 16) * 2
    assert plan_cost(plan, weights.sizes(), 10, "q8_0").past_bytes == at_10.past_bytes * 17 / 32
    assert at_10.weight_bytes == 4 * (
        2 * layer + 100 * 32 + 5 * 32 + 32
    )  # all but the table, of which one row


def test_only_chosen_experts_and_what_a_window_holds_are_counted() -> None:
    plan, weights = build(open_checkpoint(GOLDEN / "mixtral"))
    experts = 2 * 4 * 3 * 48 * 32 * 4
    whole = sum(weights.sizes().values()) - 99 * 32 * 4  # one row of the embedding
    assert plan_cost(plan, weights.sizes()).weight_bytes == whole - experts / 2
    plan, weights = build(open_checkpoint(GOLDEN / "mistral"))
    at = [plan_cost(plan, weights.sizes(), n).past_bytes for n in (3, 7, 100)]
    assert at[0] < at[1] == at[2]


def test_numbers_for_people() -> None:
    assert [amount(x, "B") for x in (0, 12, 4096, 999_950, 4.1e9)] == [
        "0 B",
        "12 B",
        "4.1 kB",
        "1 MB",
        "4.1 GB",
    ]
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6-7"
