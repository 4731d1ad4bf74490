"""What a step costs by its number of rows, learned from the steps as they go."""

from __future__ import annotations

from bisect import bisect_left

FORGET = 0.2  # share of the newest measurement in a running mean


class StepCost:
    """Seconds of a step of so many rows, from running means by size.  Mutable.

    Sizes share a mean within a quarter of a power of two; between means it is interpolated, beyond them it is
    proportional.  It decides how much is computed together and never what is computed.
    """

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}  # bucket -> rows, seconds
        self._sorted: list[tuple[float, float]] = []

    def observe(self, n_rows: int, seconds: float) -> None:
        """A step of `n_rows` took so long."""
        bucket = _bucket(n_rows)
        rows, mean = self._means.get(bucket, (float(n_rows), seconds))
        # One step may have been held up by something else on the machine: it counts for twice the mean.
        seconds = min(seconds, 2 * mean)
        self._means[bucket] = (rows + FORGET * (n_rows - rows), mean + FORGET * (seconds - mean))
        self._sorted = sorted(self._means.values())

    def predict(self, n_rows: float) -> float:
        """Seconds of a step of `n_rows`; 0 while nothing is known."""
        known = self._sorted
        if not known:
            return 0.0
        at = bisect_left(known, (n_rows, 0.0))
        if at == 0:
            return known[0][1]
        if at == len(known):
            rows, seconds = known[-1]
            return seconds * n_rows / rows
        (r0, s0), (r1, s1) = known[at - 1], known[at]
        return s0 + (s1 - s0) * (n_rows - r0) / (r1 - r0)

    @property
    def rows_known(self) -> float:
        """Rows of the largest steps that were measured; 0 while nothing is known."""
        return self._sorted[-1][0] if self._sorted else 0.0

    def rows_within(self, n_rows: int, factor: float, most: int) -> int:
        """How many rows more than `n_rows`, up to `most`, keep a step within `factor` of its time."""
        limit = factor * self.predict(n_rows)
        if not limit:
            return most
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.predict(n_rows + middle) <= limit:
                low = middle
            else:
                high = middle - 1
        return low


def _bucket(n_rows: int) -> int:
    whole = n_rows.bit_length()
    return 4 * whole + (n_rows << 3 >> whole) % 4 if n_rows > 4 else n_rows
