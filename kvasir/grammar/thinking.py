"""Which tokens open and close the thinking part of an answer, and where a prompt leaves it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvasir.parsers.marks import CHANNEL, MESSAGE, Pair, State, left_by, pair_of
from kvasir.records import dataclass
from kvasir.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Thinking:
    """A family's marks.  `open` None: there is no such mark, every answer begins outside of the answer
    proper (harmony, whose last channel is the answer); `close`: the ids that end the thinking.
    """

    open: int | None
    close: tuple[int, ...]
    pair: Pair | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Thinking | None:
        """The marks that the vocabulary has as tokens; None for models that do not think."""
        channel, message = tokenizer.token_id(CHANNEL), tokenizer.token_id(MESSAGE)
        if channel is not None and message is not None:
            return cls(None, (channel, *tokenizer.encode("final", False, False), message))
        pair = pair_of(lambda mark: tokenizer.token_id(mark) is not None)
        if pair is None:
            return None
        opened, closed = tokenizer.token_id(pair.open), tokenizer.token_id(pair.close)
        assert closed is not None
        return cls(opened, (closed,), pair)

    def after(self, prompt: Sequence[int], tokenizer: Tokenizer) -> State:
        """Where a prompt leaves an answer: inside the thinking, free to begin with it, or behind it."""
        if self.pair is None:
            return "closed" if tuple(prompt[-len(self.close) :]) == self.close else "open"
        return left_by(tail(prompt, tokenizer, self.pair), self.pair)


def tail(prompt: Sequence[int], tokenizer: Tokenizer, marks: Collection[str]) -> str:
    """The text of a prompt behind its last special token that is none of `marks`."""
    ids = list[int]()
    for token in reversed(prompt):
        if tokenizer.special(token) and tokenizer.piece(token) not in marks:
            break
        ids.append(token)
    return tokenizer.decode(reversed(ids), skip_special=False, begin=False)
