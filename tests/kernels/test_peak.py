"""The machine's limits, as the benchmarks measure them."""

from __future__ import annotations

import pytest

from kvasir.backends.cpu import kernels


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_peak_counts_multiply_adds(kind: str) -> None:
    assert kernels().peak(kind, 1) > 1e6
