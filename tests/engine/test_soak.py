"""A short turn of `make soak`: many requests, half of them cancelled, and every block comes back."""

from __future__ import annotations

from tests import soak


def test_requests_that_come_and_go_leave_nothing_behind() -> None:
    tally = soak.run(n_requests=600, seconds=240, n_clients=24, n_blocks=300)
    assert tally.counts["answered"] > 150 and tally.counts["cancelled"] > 150
    assert sum(tally.counts.values()) == 600
