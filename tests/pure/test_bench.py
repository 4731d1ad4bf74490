"""The benchmarks' model files: what they hold is what the models and llama-quantize say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import models
from bench.models import SHAPES, Experts, Recurrent, invented, tensors, write
from bench.page import rivals
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.text.gguf_vocab import vocab_from_gguf

TINY = SHAPES["tiny"]
SMALL = {
    "qwen3": TINY,
    "llama": replace(TINY, arch="llama", pre="llama-bpe"),
    "qwen3moe": replace(TINY, arch="qwen3moe", experts=Experts(4, 2, 256)),
    "qwen35": replace(TINY, arch="qwen35", layers=4, pre="qwen35", recurrent=Recurrent(heads=2, d=128)),
}


@pytest.mark.parametrize("form", ["Q4_0", "Q4_K_M", "Q8_0", "F16"])
@pytest.mark.parametrize("arch", SMALL)
def test_a_file_of_any_shape_is_a_model(arch: str, form: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write(file, arch, SMALL[arch], form)
    checkpoint = open_checkpoint(file)
    plan, weights = build(checkpoint)
    assert plan.n_vocab == TINY.vocab
    assert all(weights[name].n_bytes for name in plan.weights)
    assert vocab_from_gguf(checkpoint.metadata).encoder.encode("hello world", True)


def test_mixes_are_those_of_llama_quantize() -> None:
    shape = SHAPES["qwen3-0.6b"]
    kinds = {t: models.format_of(t, size, shape, "Q4_K_M").name for t, size in tensors(shape)}
    better = [i for i in range(shape.layers) if kinds[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]
    assert kinds["token_embd.weight"] == "Q6_K"
    assert kinds["blk.3.attn_v.weight"] == kinds["blk.0.attn_q.weight"] == "Q4_K"


def test_a_merge_joins_what_is_there_before_it() -> None:
    words, merges = invented(500, 600)
    known = {*"abcdefghijklmnopqrstuvwxyz", "Ġ"}
    assert len(words) == 500
    for word, merge in zip(words, merges, strict=False):
        left, right = merge.split(" ")
        assert {left, right} <= known
        assert left + right == word
        known.add(word)


def test_of_a_figure_in_two_outputs_the_last_counts(tmp_path: Path) -> None:
    machine = '{"cpu": "c", "cores": 2, "memory_gb": 1, "system": "s", "python": "3", "isa": "i", "load": 0, '
    files = []
    for commit, value in (("a", 1.0), ("b", 2.0)):
        row = f'{{"suite": "decode", "model": "m", "what": "w", "kvasir": {value}}}'
        file = tmp_path / commit
        file.write_text(f'title\n{{"machine": {machine}"commit": "{commit}"}}, "rows": [{row}]}}\n')
        files.append(str(file))
    page = rivals(files)
    assert "commit a, b" in page
    assert "| m | w | 2.00 |" in page
