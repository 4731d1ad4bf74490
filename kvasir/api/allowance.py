"""How much a key may still use: buckets that fill as time passes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from kvasir.api.keys import Key


class Bucket:
    """Holds what may be used in one minute, and fills within one.  Mutable and thread-safe."""

    def __init__(self, per_minute: int, now: Callable[[], float] = monotonic):
        self._most, self._now = float(per_minute), now
        self._level, self._at = self._most, now()
        self._lock = threading.Lock()

    def wait_s(self, amount: float) -> float:
        """Seconds until it holds `amount`; 0 if it does."""
        with self._lock:
            return self._wait_s(amount)

    def take(self, amount: float) -> float:
        """Takes `amount` if it is there; else the seconds until it is."""
        with self._lock:
            wait_s = self._wait_s(amount)
            if not wait_s:
                self._level -= amount
            return wait_s

    def spend(self, amount: float) -> None:
        """Takes `amount` though there may be less: the rest is owed."""
        with self._lock:
            self._wait_s(0)
            self._level -= amount

    def _wait_s(self, amount: float) -> float:
        now = self._now()
        self._level = min(self._most, self._level + (now - self._at) * self._most / 60)
        self._at = now
        missing = amount - self._level
        return missing * 60 / self._most if missing > 1e-6 else 0.0


class Allowance:
    """What one key may use.  Mutable and thread-safe.

    What a request costs in tokens is known when it is done; so one is let in while any are left, and what it
    took beyond them is owed.
    """

    def __init__(self, key: Key, now: Callable[[], float] = monotonic):
        self._key = key
        self._requests = Bucket(key.requests_per_minute, now) if key.requests_per_minute else None
        self._tokens = Bucket(key.tokens_per_minute, now) if key.tokens_per_minute else None

    def ask(self) -> tuple[str, float]:
        """Lets a request in: "" and 0; or says why not, and the seconds to wait."""
        name = self._key.name
        if self._tokens and (wait_s := self._tokens.wait_s(1)):
            return f"key {name} has used its {self._key.tokens_per_minute:,} tokens a minute", wait_s
        if self._requests and (wait_s := self._requests.take(1)):
            return f"key {name} may ask {self._key.requests_per_minute:,} times a minute", wait_s
        return "", 0.0

    def spend(self, n_tokens: int) -> None:
        """So many tokens of prompts and answers were used."""
        if self._tokens:
            self._tokens.spend(n_tokens)
