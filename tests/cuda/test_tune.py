"""`kvasir tune`: the fastest right candidate is kept, wrong and broken ones never, damage is survived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvasir.backends.cuda import tune
from kvasir.backends.cuda.tune import Config, Found, Tables, Trial, best, file_of, load, save
from tests.kernels.small import qwen

GPU = "NVIDIA H100 80GB HBM3"
A, B, C = ({"block": n} for n in (16, 32, 64))


def trial(times: dict[int, float], wrong: tuple[int, ...] = (), key: str = "k") -> Trial:
    def run(config: Config) -> float:
        if config["block"] not in times:
            raise RuntimeError("too much shared memory")
        return times[config["block"]]

    return Trial("gemv", key, [A, B, C], run, lambda c: c["block"] not in wrong)


def test_the_fastest_that_is_right_wins() -> None:
    assert best(trial({16: 3.0, 32: 2.0, 64: 1.0})) == Found(C, 1.0, 3.0)
    assert best(trial({16: 3.0, 32: 2.0, 64: 1.0}, wrong=(64,))) == Found(B, 2.0, 3.0)
    assert best(trial({32: 2.0})) == Found(B, 2.0, 2.0)
    assert best(trial({})) is None


def test_a_table_is_kept_and_grows(tmp_path: Path) -> None:
    said, path = list[str](), file_of(GPU, tmp_path)
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    save(path, GPU, tune.tune([trial({16: 3.0, 32: 1.5}), trial({}, key="none")], said.append))
    assert "2.00 times the rule" in said[0] and "no candidate works" in said[1]
    save(path, GPU, {"gemv": {"other": A}, "norm": {"k": C}})
    tables = Tables(GPU, tmp_path, tmp_path / "none")
    assert tables.chosen("gemv", "k") == B and tables.chosen("gemv", "other") == A
    assert tables.chosen("norm", "k") == C and tables.chosen("norm", "?") is None
    assert Tables("another", tmp_path, tmp_path).chosen("norm", "k") is None
    assert [f.name for f in tmp_path.iterdir()] == [path.name]  # no half-written file is left


def test_the_users_table_stands_before_the_packages(tmp_path: Path) -> None:
    own, packaged = tmp_path / "own", tmp_path / "packaged"
    save(file_of(GPU, packaged), GPU, {"gemv": {"k": A, "only here": C}})
    save(file_of(GPU, own), GPU, {"gemv": {"k": B}})
    tables = Tables(GPU, own, packaged)
    assert tables.chosen("gemv", "k") == B and tables.chosen("gemv", "only here") == C


def test_a_damaged_table_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for text in ("", "{", "[]", '{"version": 9, "kernels": {}}', '{"version": 1, "kernels": 3}'):
        path.write_text(text)
        assert load(path) == {}
    path.write_text(json.dumps({"version": 1, "kernels": {"a": {"k": {"block": "x"}, "l": A}, "b": 7}}))
    assert load(path) == {"a": {"l": A}}


def test_what_is_tried_for_a_model_is_keyed_as_the_kernels_ask() -> None:
    pytest.importorskip("torch")
    trials = pytest.importorskip("kvasir.backends.cuda.trials")
    plan = qwen(layers=1)
    assert trials.shapes(plan) == [(32, 64), (64, 64), (64, 96), (96, 64), (100, 64)]
    rule = trials.matvec.default(96, 64, 2, 2)
    assert trials.cut_of(trials.flat(rule)) == rule
    assert tune.key_of((2, 96, 64, 0)) == "2x96x64x0"
