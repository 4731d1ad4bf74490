"""GBNF made into Lark allows the same texts: held to a matcher that walks the GBNF itself."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.errors import UsageError
from kvasir.grammar.gbnf import lark_of
from kvasir.grammar.gbnf_reader import Alt, Chars, Node, Ref, Rep, Rules, Seq, read_rules
from kvasir.structured import Constraint
from tests.grammar.chance import GRAMMARS
from tests.grammar.words import letters

ARITHMETIC = r"""
# sums, one a line
root   ::= (sum "=" ws factor "\n")+
sum    ::= factor ([-+*/] factor)*
factor ::= name | number | "(" ws sum ")" ws
name   ::= [a-z] [a-z0-9_]* ws
number ::= [0-9]+ ws
ws     ::= [ \t\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
LIST = 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ "\\n"'
CHESS = r"""
root ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move ::= (pawn | piece | castle) [+#]?
piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""
KEYWORDS = 'root ::= ("if" | [a-z]+) (" " root)? | "(" root ")" [x-z]*'
TAIL = 'root ::= a "b" | "(" root ")"\na ::= [ab]* "a"?'
DEEP = """root ::= (
  # alternatives over several lines
  "a" |
  "b" root{2} | .{2,3} "é日" )"""


def matches(rules: Rules, text: str) -> bool:
    """Whether the grammar allows `text`: sets of the places where a node can end."""
    busy: set[tuple[Node, int]] = set()

    @cache
    def ends(node: Node, at: int) -> frozenset[int]:
        if isinstance(node, Chars):
            inside = at < len(text) and any(a <= ord(text[at]) <= b for a, b in node.ranges)
            return frozenset({at + 1}) if inside else frozenset()
        if isinstance(node, Ref):
            assert (node, at) not in busy, "the grammars of these tests are not left-recursive"
            busy.add((node, at))
            found = ends(rules[node.name], at)
            busy.discard((node, at))
            return found
        if isinstance(node, Alt):
            return frozenset().union(*(ends(part, at) for part in node.parts))
        if isinstance(node, Seq):
            places = {at}
            for part in node.parts:
                places = {end for place in places for end in ends(part, place)}
            return frozenset(places)
        assert isinstance(node, Rep)
        found, places, n = (set[int]({at}) if node.low == 0 else set()), {at}, 0
        seen: set[tuple[int, int]] = set()
        while places and (node.high is None or n < node.high):
            n += 1
            places = {end for place in places for end in ends(node.node, place)}
            places = {p for p in places if (min(n, node.low), p) not in seen}
            seen |= {(min(n, node.low), p) for p in places}
            found |= places if n >= node.low else set()
        return frozenset(found)

    return len(text) in ends(rules["root"], 0)


def followed(source: str, text: str) -> bool:
    """Whether a guide lets the text be written, a byte at a time, and lets it end there."""
    guide = GRAMMARS.guide(Constraint("gbnf", source), [], False)
    byte_ids = {letters().token_bytes(i): i for i in range(256)}
    tokens = [byte_ids[bytes((byte,))] for byte in text.encode()]
    if guide.valid_prefix(tokens) < len(tokens):
        return False
    guide.accept(*tokens)
    return guide.complete or bool(guide.allowed()[list(letters().eos_ids)].any())


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (ARITHMETIC, ["1+2=x\n", "foo_1 *(3 +4)= 12 \n\n", "a=1\nb=22\n"], ["1+=2\n", "1=2", "=1\n"]),
        (JSON, ["{}", '{"a": [1, -2.5e3, "x\\u00e9"]}', '{"a":\n\t true} '], ["[]", '{"a"}', '{"a": 01}']),
        (LIST, ["- a\n", "- one two\n- é\n"], ["- a", "-a\n", "- \n"]),
        (CHESS, ["1. e4 e5\n2. Nf3 Nc6+\n", "1. O-O exd8=Q#\n12. a1 b2\n"], ["1. e4 e5\n", "2. e4 e5\n"]),
        (KEYWORDS, ["if", "ifx if", "(a)", "((if a)xyz)z", "i f"], ["", "if ", "(a", "(a)a"]),
        (TAIL, ["b", "ab", "abb", "(aab)", "((bb))"], ["a", "aba", "(b"]),
        (DEEP, ["a", "baa", "bbaaa", "xxé日", "\nx(é日"], ["b", "ba", "xé日", "xxxxé日"]),
        ('root ::= "" | "ab"{2} ""', ["abab"], ["ab", "ababab"]),
    ],
)  # fmt: skip
def test_the_usual_grammars(source, good, bad) -> None:
    rules = read_rules(source)
    for text in good:
        assert matches(rules, text) and followed(source, text), text
    for text in bad:
        assert not matches(rules, text) and not followed(source, text), text


TIMES = ["?", "*", "+", "{2}", "{1,}", "{0,2}"]


def bodies(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    plain = st.sampled_from(['"a"', '"ab"', '"ba"', "[ab]", "[^a]", "[a-c]", '"é"', '"c"', *names])
    return st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(" ".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
            st.tuples(inner, st.sampled_from(TIMES)).map(lambda p: f"({p[0]}){p[1]}"),
        ),
        max_leaves=6,
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(bodies(("x",)), bodies(("y",)), bodies(()), st.lists(st.text("abcé(", max_size=7), min_size=4))
def test_any_grammar_allows_the_same_texts(root, x, y, texts) -> None:
    source = f'root ::= "(" root ")" | {root} "c"\nx ::= "b" {x.replace("x", "y")} \n  \ny ::= {y}'
    rules = read_rules(source)
    for text in texts:
        for tried in (text, text + "c", f"({text}c)"):
            assert followed(source, tried) == matches(rules, tried), (source, tried, lark_of(source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("root = 1", "line 1: expected ::="),
        ('a ::= "x"', "has no rule 'root'"),
        ("root ::= b", "has no rule 'b'"),
        ('root ::= "a"\n\nroot ::= "b"', "has two rules 'root'"),
        ('root ::= "a', 'line 1: expected "'),
        ('root ::= ("a"', r"expected \)"),
        ("root ::= [a", "expected ]"),
        ("root ::= [z-a]", "in order"),
        ("root ::= []", "letters between"),
        (r'root ::= "\q"', "an escape"),
        (r'root ::= "\xZZ"', "an escape"),
        (r'root ::= "\U00110000"', "an escape"),
        ('root ::= "a"{3,2}', "counts in order"),
        ('root ::= "a"{99999}', "at most 10,000"),
        ('root ::= "a"{', "expected {m}"),
        ("root ::= <tok>", "tokens by name"),
        ("root ::= " + "(" * 50 + '"a"' + ")" * 50, "nested more than 40"),
        ('root ::= "' + "a" * 70_000 + '"', "70,011 letters, the limit for GBNF is 65,536"),
        ("root ::= " + "(" * 60_000, "nested more than 40"),
        ('root ::= "a"\n' + "\n".join(f'r{i} ::= "a"' for i in range(3000)), "over 1,000 rules"),
    ],
)  # fmt: skip
def test_refusals_say_where(source, message) -> None:
    with pytest.raises(UsageError, match=message):
        lark_of(source)


@given(st.text('root:= "a[]()|*+?{},^-\\x\n#.<!1', max_size=60))
def test_any_text_is_read_or_refused(text) -> None:
    for source in (text, "root ::= " + text):
        try:
            lark_of(source)
        except UsageError as error:
            assert "the grammar" in str(error)
