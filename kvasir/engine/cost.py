"""What a step costs by its number of rows, learned from the steps as they go."""

from __future__ import annotations

from bisect import bisect_left

FORGET = 0.2  # share of the newest measurement in a running mean
DEARER = 0.5  # the same where the newest is above the mean and caution is wanted
EXTRA = 0.7  # of a step's time may be added to it for a prompt that arrives
FEWEST_ROWS = 4  # of a prompt beside answers: with fewer it would hardly get on, whatever they cost
NEAR = 1.3  # a step of about so many times the rows tells what one takes
FEWEST_ALONE = (
    32  # of a prompt in a chunk of its own: with fewer, reading the weights costs more than they do
)
GAPS = 8  # between steps, that a chunk is spread over
LOOK_AGAIN = 64  # steps with prompts, until one goes without


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

    def knows(self, n_rows: int) -> bool:
        """Whether steps of about so many rows were measured."""
        return any(n_rows / NEAR <= rows <= n_rows * NEAR for rows, _ in self._sorted)

    @property
    def rows_known(self) -> float:
        """Rows of the largest steps that were measured; 0 while nothing is known."""
        return self._sorted[-1][0] if self._sorted else 0.0


class Pace:
    """How many rows of prompts may ride along with answers under way.  Mutable.

    A prompt that arrives may make a step so much longer that the time between two tokens stays within
    1 + EXTRA of what it is without.  What a row of a prompt costs depends on how much lies before it, so it
    is taken from the steps themselves; what a step takes without prompts, from one now and then that has
    none.  Where more wait for their first token than read, those who wait count too: for each of them a step
    may take EXTRA more.  Where even FEWEST_ROWS cost more than that, as late in a long prompt beside few
    answers, they are computed all the same.
    """

    def __init__(self) -> None:
        self._alone = StepCost()  # steps without prompts
        self._row_s = 0.0  # a row of a prompt, beside answers
        self._n_mixed = 0  # steps since the last one without prompts
        self._last_s = 0.0  # the last step

    def rows(self, n_decodes: int, n_waiting: int, most: int) -> int:
        """Rows of prompts for a step that has `n_decodes` other rows, while so many sequences wait for their
        first token.
        """
        if self._n_mixed >= LOOK_AGAIN or not self._alone.knows(n_decodes):
            return 0
        if not self._row_s:
            return min(most, FEWEST_ROWS)
        return min(most, max(FEWEST_ROWS, int(self.extra_s(n_decodes, n_waiting) / self._row_s)))

    def extra_s(self, n_decodes: int, n_waiting: int) -> float:
        """Seconds that a step of `n_decodes` rows may take longer for the sake of prompts."""
        return EXTRA * min(n_waiting, 2 * n_decodes + 1) * self._alone.predict(n_decodes)

    def gap_s(self, n_decodes: int, n_waiting: int) -> float:
        """Seconds for prompts behind the last step, of `n_decodes` rows: less where something else on the
        machine held it up, and none where it took as long as both should.
        """
        return self.extra_s(n_decodes, n_waiting) - max(0.0, self._last_s - self._alone.predict(n_decodes))

    def chunk(self, n_decodes: int, n_waiting: int, most: int) -> int:
        """Rows of a chunk of prompts that is computed in the gaps between steps of `n_decodes` rows: so many
        that it takes GAPS of them, since it rests between two ops only, and the longest are a part of it.
        """
        if not self._row_s:
            return min(most, FEWEST_ALONE)
        return min(most, max(FEWEST_ALONE, int(GAPS * self.extra_s(n_decodes, n_waiting) / self._row_s)))

    def read(self, n_rows: int, seconds: float) -> None:
        """Rows of prompts alone took so long."""
        row_s = seconds / n_rows
        self._row_s = self._row_s + FORGET * (row_s - self._row_s) if self._row_s else row_s

    def observe(self, n_decodes: int, n_rows: int, seconds: float) -> None:
        """A step with `n_rows` of prompts beside `n_decodes` others took so long."""
        self._n_mixed = self._n_mixed + 1 if n_rows else 0
        self._last_s = seconds
        if not n_rows:
            self._alone.observe(n_decodes, seconds)
        elif n_decodes:
            row_s = max(seconds - self._alone.predict(n_decodes), 0.02 * seconds) / n_rows
            before_s = self._row_s or row_s
            weight = DEARER if row_s > before_s else FORGET
            self._row_s = before_s + weight * (min(row_s, 3 * before_s) - before_s)


def _bucket(n_rows: int) -> int:
    whole = n_rows.bit_length()
    return 4 * whole + (n_rows << 3 >> whole) % 4 if n_rows > 4 else n_rows
