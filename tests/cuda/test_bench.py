"""bench/gpu.py tries its own logic with a model of two layers; no figure of it counts."""

# ruff: noqa: E402
from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from bench import gpu
from kvasir.plan import Plan


def test_all_rows_and_checks_are_told_and_the_table_is_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "greedy_equals_reference", lambda device: "tried by test_program.py")
    assert gpu.main(["--tiny", "--device", "cpu", "--runs", "1"]) == 0
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert [r["case"] for r in told["rows"]] == [c.name for c in gpu.CASES]
    assert all(
        r["here"]["median"] > 0 and r["% of the limit"] > 0 and r["met"] in ("yes", "no")
        for r in told["rows"]
    )
    assert "graph replay against eager: equal" in out and "the same bits; costs" in out
    assert "| case | published | bar | here | % of the limit | met |" in out


def test_shapes_are_those_of_the_published_models() -> None:
    def weights(plan: Plan) -> int:
        return sum(w.shape[0] * (w.shape[1] if len(w.shape) > 1 else 1) for w in plan.weights.values())

    assert weights(gpu.plan_of(gpu.LLAMA_8B)) == 8_030_261_248  # as Hugging Face counts Llama-3-8B
    assert 0.74e9 < weights(gpu.plan_of(gpu.SHAPES["qwen3-0.6b"])) < 0.76e9  # with an output of its own


def test_work_of_a_prompt() -> None:
    n = 2048
    assert gpu.prefill_work(gpu.LLAMA_8B, n) == pytest.approx(
        2 * n * 6.98e9 + 2 * 32 * n * n * 4096, rel=0.01
    )
