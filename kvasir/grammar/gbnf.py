"""GBNF, llama.cpp's notation of grammars, made into Lark.

GBNF knows letters and rules; Lark has a lexer, which takes the longest lexeme and never goes back.  What is
regular becomes a lexeme, since a lexeme is a hundred times quicker to follow than rules over letters; but
only where taking the longest cannot take what belongs to what follows.  M stays whole if there is no lexeme
L (M itself is one) with a text that M can begin with too, and continue by a letter that may follow L; else M
is taken apart, into smaller lexemes and at last into letters.  So both grammars allow the same texts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import reduce

from kvasir.errors import UsageError
from kvasir.grammar.gbnf_reader import ANY, Alt, Chars, Node, Ref, Rep, Rules, Seq, read_rules
from kvasir.records import dataclass

MAX_REGEX = 20_000
MAX_LEXEMES = 1_000
MAX_PEELED = 32
MAX_WORK = 500_000  # steps in search of what swallows what
MAX_PLACES = 400  # letters of a lexeme that is followed letter by letter to find what it could swallow


def lark_of(text: str) -> str:
    """The grammar in Lark.  Raises UsageError with the line for what is no GBNF."""
    try:
        return _Converter(read_rules(text)).lark()
    except RecursionError:
        raise UsageError("the grammar is nested too deeply") from None


@dataclass(frozen=True)
class _Letters:
    """Letters of a node as bit sets over the classes of letters that the grammar tells apart."""

    nullable: bool = False
    first: int = 0


@dataclass
class _Places:
    """A regular node's letters as places in its text (Glushkov's automaton; mutable while it is built).

    `letters[p]` may stand at place p, `after[p]` are the places that may come next, `first` and `last` those
    where a text begins and ends.  A counted repetition counts as one without end: more texts, never fewer.
    """

    number: int
    letters: list[int]
    after: list[set[int]]
    first: set[int]
    last: set[int]
    nullable: bool = False

    @property
    def later(self) -> int:
        """The letters at places that another comes before."""
        return reduce(int.__or__, (self.letters[p] for places in self.after for p in places), 0)


class _Converter:
    """One conversion (mutable)."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.names = {name: "start" if name == "root" else f"r{i}" for i, name in enumerate(rules)}
        self.bounds = sorted(_bounds(rules))
        self._bits_of: dict[tuple[tuple[int, int], ...], int] = {}
        self.regular = _regular(rules)
        self.letters = self._letters_of_rules()
        self.split: set[Node] = set()  # lexemes that have to be taken apart
        self._work = 0
        self._fits: dict[Node, bool] = {}
        self._placed: dict[Node, _Places] = {}
        self._swallowed: dict[tuple[int, int], int] = {}

    def lark(self) -> str:
        while True:
            torn = self._torn(self._follows())
            if not torn:
                break
            self.split |= torn
        lines, done, todo = [], set[str](), ["root"]
        while todo:
            name = todo.pop()
            if name not in done:
                done.add(name)
                lines.append(f"{self.names[name]}: {self._text(self.rules[name], todo) or _EMPTY}")
        return "\n".join(lines) + "\n"

    # -- what a lexeme is ---------------------------------------------------------------------------

    def _whole(self, node: Node) -> bool:
        """Whether the node is one lexeme.  A lexeme is never empty."""
        if isinstance(node, Chars):
            return True
        if node in self.split:
            return False
        known = self._fits.get(node)
        if known is None:
            known = self._fits[node] = (
                not self._of(node).nullable
                and _is_regular(node, self.regular)
                and len(self._places(node).letters) <= MAX_PLACES
                and len(self._regex(node)) <= MAX_REGEX
            )
        return known

    def _apart(self, node: Seq | Alt) -> tuple[Node, ...]:
        """The parts of a node.  A sequence that was a lexeme loses its end first: it may well be that alone
        (the spaces behind a word) that does not belong to it.
        """
        if isinstance(node, Seq) and node in self.split and 2 < len(node.parts) <= MAX_PEELED:
            return Seq(node.parts[:-1]), node.parts[-1]
        return node.parts

    def _regex(self, node: Node) -> str:
        """The node as a regular expression; cut short when it is too long to be a lexeme."""
        if isinstance(node, Chars):
            return _class(node)
        if isinstance(node, Ref):
            return self._regex(self.rules[node.name])
        if isinstance(node, Rep):
            return f"(?:{self._regex(node.node)}){_times(node)}"
        parts, size = list[str](), 0
        for part in node.parts:
            parts.append(self._regex(part))
            size += len(parts[-1])
            if size > MAX_REGEX:
                return "x" * (MAX_REGEX + 1)
        return "".join(parts) if isinstance(node, Seq) else f"(?:{'|'.join(parts)})"

    def _text(self, node: Node, todo: list[str]) -> str:
        """The node in Lark; empty for what matches the empty text alone.  Rules it needs go to `todo`."""
        if not self._of(node).first:
            return ""
        if self._whole(node):
            return f"/{self._regex(node)}/"
        if isinstance(node, Ref):
            todo.append(node.name)
            return self.names[node.name]
        if isinstance(node, Rep):
            if (some := _some(node)) and self._whole(some):
                return f"/{self._regex(some)}/?"
            return f"({self._text(node.node, todo)}){_times(node)}"
        assert isinstance(node, Seq | Alt)
        parts = [self._text(part, todo) for part in self._apart(node)]
        if isinstance(node, Seq):
            return " ".join(part for part in parts if part)
        return f"({' | '.join(part for part in parts if part)}){'' if all(parts) else '?'}"

    # -- which lexemes the lexer would mistake ----------------------------------------------------

    def _torn(self, follows: dict[Node, int]) -> set[Node]:
        if len(follows) > MAX_LEXEMES:
            raise UsageError(f"the grammar has over {MAX_LEXEMES:,} kinds of words")
        ones = [(self._places(one), self._of(one).first, then) for one, then in follows.items()]
        torn = set()
        for (m, _), (its, first, _) in zip(follows.items(), ones, strict=True):
            later = its.later if not isinstance(m, Chars) else 0
            if later and any(
                begin & first and then & later and then & self._swallows(one, its)
                for one, begin, then in ones
            ):
                torn.add(m)
        return torn

    def _swallows(self, a: _Places, b: _Places) -> int:
        """The letters by which a text of `a` can go on as a text of `b`."""
        known = self._swallowed.get((a.number, b.number))
        if known is not None:
            return known
        todo = [(p, q) for p in a.first for q in b.first if a.letters[p] & b.letters[q]]
        seen, found = set(todo), 0
        while todo:
            p, q = todo.pop()
            if p in a.last:
                for r in b.after[q]:
                    found |= b.letters[r]
            self._work += len(a.after[p]) * len(b.after[q]) + 1
            if self._work > MAX_WORK:
                raise UsageError("the grammar has too many words that begin alike")
            more = {(i, j) for i in a.after[p] for j in b.after[q] if a.letters[i] & b.letters[j]} - seen
            seen |= more
            todo += more
        self._swallowed[a.number, b.number] = found
        return found

    def _places(self, node: Node) -> _Places:
        known = self._placed.get(node)
        if known is None:
            known = self._placed[node] = _Places(len(self._placed), [], [], set(), set())
            known.nullable, known.first, known.last = self._place_all(node, known)
        return known

    def _place_all(self, node: Node, into: _Places) -> tuple[bool, set[int], set[int]]:
        if isinstance(node, Chars) or len(into.letters) > MAX_PLACES:
            into.letters.append(self._bits(node) if isinstance(node, Chars) else 0)
            into.after.append(set())
            return False, {len(into.letters) - 1}, {len(into.letters) - 1}
        if isinstance(node, Ref):
            return self._place_all(self.rules[node.name], into)
        if isinstance(node, Rep):
            nullable, first, last = self._place_all(node.node, into)
            if node.high is None or node.high > 1:
                for p in last:
                    into.after[p] |= first
            return nullable or node.low == 0, first, last
        if isinstance(node, Alt):
            parts = [self._place_all(part, into) for part in node.parts]
            return (
                any(n for n, _, _ in parts),
                {p for _, f, _ in parts for p in f},
                {p for _, _, e in parts for p in e},
            )
        nullable, first, last = True, set[int](), set[int]()
        for part in node.parts:
            empty, begin, end = self._place_all(part, into)
            for p in last:
                into.after[p] |= begin
            first |= begin if nullable else set()
            last = last | end if empty else end
            nullable = nullable and empty
        return nullable, first, last

    def _follows(self) -> dict[Node, int]:
        """The lexemes in use, and the letters that may follow each."""
        after: dict[str, int] = {"root": 0}
        follows: dict[Node, int] = {}
        todo = ["root"]

        def walk(node: Node, then: int) -> None:
            if isinstance(node, Rep) and (some := _some(node)) and self._whole(some):
                node = some
            if self._whole(node):
                follows[node] = follows.get(node, 0) | then
            elif isinstance(node, Ref):
                known = after.get(node.name)
                if known is None or then & ~known:
                    after[node.name] = (known or 0) | then
                    todo.append(node.name)
            elif isinstance(node, Rep):
                again = self._of(node.node).first if node.high is None or node.high > 1 else 0
                walk(node.node, then | again)
            elif isinstance(node, Alt):
                for part in node.parts:
                    walk(part, then)
            elif isinstance(node, Seq):
                for part in reversed(self._apart(node)):
                    walk(part, then)
                    letters = self._of(part)
                    then = letters.first | (then if letters.nullable else 0)

        while todo:
            name = todo.pop()
            walk(self.rules[name], after[name])
        return follows

    def _of(self, node: Node) -> _Letters:
        if isinstance(node, Chars):
            return _Letters(False, self._bits(node))
        if isinstance(node, Ref):
            return self.letters[node.name]
        if isinstance(node, Rep):
            inner = self._of(node.node)
            return (
                replace(inner, nullable=inner.nullable or node.low == 0) if node.high != 0 else _Letters(True)
            )
        parts = [self._of(part) for part in node.parts]
        if isinstance(node, Alt):
            return _Letters(any(p.nullable for p in parts), reduce(int.__or__, (p.first for p in parts), 0))
        first, nullable = 0, True
        for part in parts:
            first |= part.first if nullable else 0
            nullable = nullable and part.nullable
        return _Letters(nullable, first)

    def _letters_of_rules(self) -> dict[str, _Letters]:
        self.letters = {name: _Letters() for name in self.rules}
        order, changed = list(self.rules), True
        while changed:  # to the fixed point; both ways, since what a rule needs stands before or behind it
            changed = False
            order.reverse()
            for name in order:
                found = self._of(self.rules[name])
                changed = changed or found != self.letters[name]
                self.letters[name] = found
        return self.letters

    def _bits(self, chars: Chars) -> int:
        """The classes of letters in `chars`: class i is from bounds[i] to before bounds[i + 1]."""
        bits = self._bits_of.get(chars.ranges, 0)
        if bits:
            return bits
        for low, high in chars.ranges:
            a, b = self._place(low), self._place(high + 1)
            bits |= (1 << b) - (1 << a)
        self._bits_of[chars.ranges] = bits
        return bits

    def _place(self, bound: int) -> int:
        low, high = 0, len(self.bounds)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.bounds[middle] < bound else (low, middle)
        return low


_EMPTY = '""'


def _some(node: Rep) -> Rep | None:
    """The repetition without its empty text, if it has one."""
    return replace(node, low=1) if node.low == 0 and node.high != 0 else None


def _times(node: Rep) -> str:
    known = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    shown = str(node.low) if node.low == node.high else f"{node.low},{'' if node.high is None else node.high}"
    return known.get((node.low, node.high), f"{{{shown}}}")


def _class(chars: Chars) -> str:
    def letter(code: int) -> str:
        return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\x{{{code:X}}}"

    if chars == ANY:
        return "(?s:.)"
    return "[" + "".join(letter(a) if a == b else f"{letter(a)}-{letter(b)}" for a, b in chars.ranges) + "]"


def _bounds(rules: Rules) -> set[int]:
    found, todo = set[int](), list(rules.values())
    while todo:
        node = todo.pop()
        if isinstance(node, Chars):
            found |= {bound for low, high in node.ranges for bound in (low, high + 1)}
        elif isinstance(node, Rep):
            todo.append(node.node)
        elif isinstance(node, Seq | Alt):
            todo += node.parts
    return found


def _regular(rules: Rules) -> frozenset[str]:
    """The rules that reach no rule that reaches itself."""
    found, order = set[str](), list(rules)
    while True:
        n_found = len(found)
        order.reverse()
        for name in order:
            if name not in found and _is_regular(rules[name], found):
                found.add(name)
        if len(found) == n_found:
            return frozenset(found)


def _is_regular(node: Node, regular: Collection[str]) -> bool:
    if isinstance(node, Ref):
        return node.name in regular
    if isinstance(node, Rep):
        return _is_regular(node.node, regular)
    return isinstance(node, Chars) or all(_is_regular(part, regular) for part in node.parts)
