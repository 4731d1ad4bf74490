"""Where one answer stands in its constraint: which tokens may come next."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvasir.errors import UsageError
from kvasir.grammar.thinking import Thinking
from kvasir.records import dataclass

Allowed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ends:
    """A model's logits and its ends: `n_vocab` logits, `ids` the tokens that end a text.

    A matcher needs an end: for a model without one, it is an id behind the vocabulary.
    """

    n_vocab: int
    ids: frozenset[int]

    @property
    def native_ids(self) -> list[int]:
        return sorted(self.ids) or [self.n_vocab]

    @property
    def n_native(self) -> int:
        return self.n_vocab if self.ids else self.n_vocab + 1


class Guide:
    """The constraint of one answer (mutable; one caller at a time, from any thread).

    It sees the tokens that were generated.  While the answer is in its thinking part the grammar sleeps and
    only the ends are forbidden: a constrained answer must not end before it has begun.  `state` is what
    `Thinking.after` says of the prompt; with "may" the first token may open the thinking.
    `native`: a fresh llguidance matcher, owned by the guide; those of one grammar share what they learn.
    `renew` makes one that shares nothing: what others wrote must not be why an answer fails.
    `markers`: tokens that the grammar may name as such, and not as text; `again` gives another matcher like
    the first, which is what going back over a marker takes.
    """

    def __init__(
        self,
        native: Any,
        ends: Ends,
        noun: str = "the constraint",
        thinking: Thinking | None = None,
        state: Literal["open", "may", "closed"] = "closed",
        renew: Callable[[], Any] | None = None,
        markers: frozenset[int] = frozenset(),
        again: Callable[[], Any] | None = None,
    ):
        self._native, self._ends, self._noun, self._renew = native, ends, noun, renew
        self._thinking, self._state, self._markers = thinking, state, markers
        self._again = again
        self._words = np.zeros(-(-ends.n_native // 32), np.uint32)
        self._tokens: list[int] = []
        self._bound_at = None if thinking and state == "open" else 0

    @property
    def binds(self) -> bool:
        """Whether the grammar rules the next token; False in the thinking part."""
        return self._bound_at is not None

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing may follow but an end."""
        return bool(self.binds and self._tokens and self._native.is_stopped() and not self._native.is_error())

    def allowed(self) -> Allowed:
        """Which tokens may come next, bool [V], a new array; ends only where the answer may end.

        Raises UsageError when the grammar needs more work for one token than is allowed, or leads nowhere.
        """
        if not self.binds:
            allowed = np.ones(self._ends.n_vocab, np.bool_)
            allowed[list(self._ends.ids)] = False
            return allowed
        if self.complete:
            allowed = np.zeros(self._ends.n_vocab, np.bool_)
            allowed[list(self._ends.ids)] = True
            return allowed
        self._native.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._native.is_error() and self._renew is not None:
            self._native, self._renew = self._renew(), None
            self._native.consume_tokens(
                [t for t in self._tokens[self._bound_at :] if t not in self._ends.ids]
            )
            self._native.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._native.is_error():
            raise UsageError(f"{self._noun} cannot be followed further: {reason(self._native.get_error())}")
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little", count=self._ends.n_vocab)
        allowed = bits.view(np.bool_)
        if self._state == "may" and not self._tokens and self._thinking and self._thinking.open is not None:
            allowed[self._thinking.open] = True
        return allowed

    def along(self, drafts: Sequence[int]) -> list[Allowed]:
        """What `allowed` gives now and after each of `drafts`, which must be a valid prefix; ends before the
        place from which the grammar cannot be followed further.
        """
        found, n_before = [self.allowed()], len(self._tokens)
        try:
            for token in drafts:
                self.accept(token)
                found.append(self.allowed())
        except UsageError:
            pass
        self.rollback(len(self._tokens) - n_before)
        return found

    def accept(self, *tokens: int) -> None:
        """The tokens that were chosen, each one allowed.  An end changes nothing but is remembered."""
        for token in tokens:
            self._tokens.append(token)
            if self._bound_at is None:
                if (
                    self._thinking
                    and tuple(self._tokens[-len(self._thinking.close) :]) == self._thinking.close
                ):
                    self._bound_at = len(self._tokens)
            elif self._opens(token):
                self._bound_at = None
            elif token not in self._ends.ids:
                self._native.consume_token(token)

    def rollback(self, count: int) -> None:
        """Forgets the last `count` tokens."""
        if not count:
            return
        gone = self._tokens[-count:]
        # A matcher takes a marker for as many bytes as its spelling has, and goes back too far; reset too.
        within = self._bound_at is not None and len(self._tokens) - count >= self._bound_at
        if within and self._markers.isdisjoint(gone):
            self._native.rollback(sum(token not in self._ends.ids for token in gone))
            del self._tokens[-count:]
            return
        kept = self._tokens[:-count]
        if self._again and not self._markers.isdisjoint(self._tokens):
            self._native = self._again()
        else:
            self._native.reset()
        self._tokens, self._bound_at = [], None if self._thinking and self._state == "open" else 0
        self.accept(*kept)

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` might come next, one after the other; an end is not counted."""
        n_valid = 0
        for token in tokens:
            if token in self._ends.ids or self.complete:
                break
            sleeps = self._bound_at is None or self._opens(token, len(self._tokens))
            if not sleeps and not self._native.validate_tokens([token]):
                break
            self.accept(token)
            n_valid += 1
        self.rollback(n_valid)
        return n_valid

    def forced(self) -> list[int]:
        """Tokens that must come next because the grammar leaves no choice of text; often none."""
        if not self.binds or self.complete or (self._state == "may" and not self._tokens):
            return []
        return [int(token) for token in self._native.compute_ff_tokens() if token < self._ends.n_vocab]

    def _opens(self, token: int, place: int | None = None) -> bool:
        first = (len(self._tokens) - 1 if place is None else place) == 0
        return bool(first and self._state == "may" and self._thinking and token == self._thinking.open)


def reason(text: str) -> str:
    """llguidance's reason in one line: its first words, without what it quotes of the source."""
    said = [line for line in text.splitlines() if not re.match(r"\s*(\d+ \||\^)", line)]
    line = " ".join("\n".join(said).replace("<non-verbose/>", "").split())
    return line if len(line) <= 300 else line[:300] + "..."
