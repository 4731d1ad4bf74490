"""Outputs full of NaN in buffers full of NaN: what is not written, or written beside, shows."""

from __future__ import annotations

import numpy as np
import torch

from tests.cuda.interpreted import quick  # noqa: F401  makes the interpreter patch its language less often

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = (torch.float32, torch.float16)


class Poisoned:
    """A matrix [rows, width] inside a larger buffer."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        self.whole = torch.full((rows + 3, width + 5), float("nan"), dtype=dtype)
        self.view = self.whole[1 : rows + 1, :width]

    def holds(self, wanted: np.ndarray, tolerance: float | None = None) -> None:
        """The matrix is `wanted`, relative to its largest number, and nothing beside it was touched."""
        got = self.view.float().numpy()
        assert got.shape == wanted.shape
        assert np.isfinite(got).all(), "not all was written"
        limit = (tolerance or TOLERANCE[self.whole.dtype]) * max(float(np.abs(wanted).max()), 1e-3)
        assert np.abs(got - wanted).max() <= limit, f"{np.abs(got - wanted).max()} > {limit}"
        beside = self.whole.clone()
        beside[1 : len(got) + 1, : got.shape[1]] = float("nan")
        assert beside.isnan().all(), "written beside the output"


def strided(x: np.ndarray, dtype: torch.dtype, more: int = 3) -> torch.Tensor:
    """x as columns of a wider matrix whose other columns are NaN."""
    whole = torch.full((x.shape[0], x.shape[1] + more), float("nan"), dtype=dtype)
    whole[:, : x.shape[1]] = torch.from_numpy(x).to(dtype)
    return whole[:, : x.shape[1]]


def exact(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """x rounded to what `dtype` holds, in float32."""
    return torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(dtype).float().numpy()
