"""Tokens to text as they come: only whole characters, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from kvasir.errors import UsageError
from kvasir.text.tokenizer import Tokenizer


class _Matcher:
    """Where one stop string stands (mutable): `matched` of its letters are the end of the text so far.

    Knuth, Morris and Pratt: `back[k]` is the longest proper prefix of the stop that ends its first k letters.
    """

    def __init__(self, stop: str):
        self.stop, self.matched = stop, 0
        self.back = [0] * (len(stop) + 1)
        k = 0
        for at in range(1, len(stop)):
            while k and stop[at] != stop[k]:
                k = self.back[k]
            k += stop[at] == stop[k]
            self.back[at + 1] = k

    def feed(self, letter: str) -> bool:
        """True when `letter` completes the stop."""
        k, stop = self.matched, self.stop
        while k and letter != stop[k]:
            k = self.back[k]
        self.matched = k + (letter == stop[k])
        return self.matched == len(stop)


class Stops:
    """Stop strings in a text that comes in pieces (mutable): nothing is shown that may turn out to be one.

    What `push` and `finish` return, joined, is the text before the stop string that is complete first (and
    that string with `include`); of several complete at one letter, the longest.
    """

    def __init__(self, stops: Sequence[str] = (), include: bool = False):
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise UsageError("a stop string is empty or not a text")
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._include, self._held = include, ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """What is certain once `text` is known; nothing after a stop."""
        if self.stopped is not None:
            return ""
        if not self._matchers:
            return text
        seen = self._held + text
        for at, letter in enumerate(text, len(self._held) + 1):
            done = [matcher.stop for matcher in self._matchers if matcher.feed(letter)]
            if done:
                self.stopped, self._held = done[0], ""
                return seen[:at] if self._include else seen[: at - len(done[0])]
        n_held = max(matcher.matched for matcher in self._matchers)
        self._held = seen[len(seen) - n_held :]
        return seen[: len(seen) - n_held]

    def finish(self) -> str:
        """What was held back: the text ends here, and the next one begins anew."""
        text, self._held = self._held, ""
        for matcher in self._matchers:
            matcher.matched = 0
        return text


class TextStream:
    """The text of one answer, token by token (mutable).

    All that `push` and `finish` return, joined, is `decode` of all ids, cut by `stops` as `Stops` does it.
    `begin=False`: the text continues a prompt, so a SentencePiece vocabulary's first space stays.  `shown`:
    special tokens that are text for who reads on.  A push costs the token's length.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        include_stop: bool = False,
        skip_special: bool = True,
        begin: bool = True,
        shown: frozenset[int] = frozenset(),
    ):
        self._tokenizer, self._stops = tokenizer, Stops(stops, include_stop)
        self._skip_special, self._shown = skip_special, shown
        self._strip = begin and tokenizer.strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.stopped

    def push(self, token_id: int) -> str:
        """The text that is certain once `token_id` is known; often empty, always so after a stop."""
        if self.stopped is not None:
            return ""
        if self._skip_special and self._tokenizer.special(token_id) and token_id not in self._shown:
            return ""
        raw = self._tokenizer.token_bytes(token_id)
        if self._strip and raw:
            self._strip = False
            raw = raw[1:] if raw.startswith(b" ") else raw
        return self._stops.push(self._decoder.decode(raw))

    def finish(self) -> str:
        """What was held back: no more tokens come.  Further calls give nothing."""
        return self._stops.push(self._decoder.decode(b"", True)) + self._stops.finish()
