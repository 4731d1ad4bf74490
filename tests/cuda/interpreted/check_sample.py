"""Choosing tokens in Triton's interpreter: what `sampling.choose` gives, ties and odd logits too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends.cuda.kernels.face import Sampling
from kvasir.backends.cuda.kernels.sample import sample
from kvasir.sampling import SamplingParams, choose

WISHES = (
    {"temperature": 0.0}, {"temperature": 0.6, "top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_p": 0.0},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.03}, {"temperature": 1.0},
)  # fmt: skip
DRAWN = (0.5, 0.37, 0.999, 0.0, 0.6, 0.83, 0.21)


def rows(kind: str) -> np.ndarray:
    rng, width = np.random.default_rng(0), 300 if kind == "ties" else 201  # two tiles and one
    x = 3 * rng.standard_normal((len(WISHES), width)).astype(np.float32)
    if kind == "ties":
        return np.round(x)
    if kind == "odd":
        x[:, ::3], x[:, 7], x[:, 11] = -np.inf, np.nan, -0.0
        x[4:, [5, 100, 200]] = np.inf
    return x


@pytest.mark.parametrize("kind", ["ties", "odd"])
def test_the_token_is_the_law_s(kind):
    logits = rows(kind)
    params = [SamplingParams(**w) for w in WISHES]
    kinds = {
        "temperature": torch.float32,
        "top_k": torch.int32,
        "top_p": torch.float32,
        "min_p": torch.float32,
    }
    given = [torch.tensor([getattr(p, name) for p in params], dtype=dtype) for name, dtype in kinds.items()]
    how = Sampling(*given, torch.tensor(DRAWN, dtype=torch.float64))
    out = torch.full((len(params) + 1,), -7, dtype=torch.int32)
    sample(torch.from_numpy(logits.copy()), how, out[:-1]).run()
    told = [{k: float(np.float32(v)) if k != "top_k" else v for k, v in w.items()} for w in WISHES]
    wanted = [choose(x, SamplingParams(**w), d) for x, w, d in zip(logits, told, DRAWN, strict=True)]
    assert out.tolist() == [*wanted, -7]
