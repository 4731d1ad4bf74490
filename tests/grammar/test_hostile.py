"""What is built to break a compiler is refused in time and ends nothing; the reason reaches the client."""

from __future__ import annotations

import json
import os
import signal

import pytest

from kvasir.chat import ChatRequest, Delta, Finished
from kvasir.errors import UsageError
from kvasir.grammar import compile as compiling
from kvasir.grammar.compile import Grammars
from kvasir.runner.model import Model
from kvasir.runner.prompt import Prompter
from kvasir.sampling import SamplingParams
from kvasir.structured import Constraint
from kvasir.structured import StructuredOutputsParams as Form
from tests.engine.test_model import INFO
from tests.grammar.chance import N, engine
from tests.grammar.words import letters


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(letters(), N, letters().eos_ids)
    yield made
    made.close()


def chain(n: int) -> str:
    return "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(n)) + f'\nr{n}: "x"'


def referring(n: int) -> str:
    links = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"type": "null"}]} for i in range(n)}
    return json.dumps({"$defs": {**links, f"a{n}": {"type": "string"}}, "$ref": "#/$defs/a0"})


DOUBLING = "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(60)) + 'R60: "x"'
HOSTILE = [
    ("lark", chain(5000), "too deep or too large"),
    ("schema", referring(3000), "too deep or too large"),
    ("lark", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000, "is refused"),
    ("lark", "start: start", "allows no answer"),
    ("lark", 'start: "a', "is refused"),
    ("lark", "start: missing", "is refused"),
    ("lark", "start: <|nothing|>", "is refused"),
    ("lark", DOUBLING, "is refused"),
    ("regex", "(" * 60_000, "is refused"),
    ("regex", "(a{1000}){1000}", "is refused"),
    ("regex", "a(?=b)", "look-around"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", r"[^\x00-\x{10FFFF}]", "allows no answer"),
    ("regex", "()", "allows no answer but an empty one"),
    ("gbnf", "root ::= root", "allows no answer|is refused"),
    ("schema", '{"type": "array", "uniqueItems": true}', "Unimplemented keys"),
    ("schema", '{"x-guidance": {"lenient": true}, "not": {}}', "Unimplemented keys"),
    ("schema", '{"$ref": "http://127.0.0.1:9/x"}', "is refused"),
    ("schema", '{"$ref": "file:///etc/passwd"}', "is refused"),
    ("schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "allows no answer"),
    ("schema", '{"type": "string", "pattern": "(?<=x)*"}', "look-around"),
    ("schema", '{"type": "integer", "minimum": 3, "maximum": 1}', "Unsatisfiable"),
    ("schema", "false", "is refused"),
    ("schema", '{"type": "object", "required": 7}', "is refused"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_refused_with_the_reason(grammars, kind, text, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        grammars.guide(Constraint(kind, text), [], None)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert grammars.guide(Constraint("regex", "a"), [], None).allowed().any()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", r"^+[a-z]$"),
        ("regex", r"(((a+)+)+)+b"),
        ("regex", r".*a.{200}b"),
        ("regex", r"(a|aa)*b"),
        ("schema", '{"type": "string", "pattern": "^{2}x$"}'),
        ("schema", '{"type": "string", "maxLength": 20000000}'),
        ("schema", '{"type": "array", "minItems": 100000, "items": {"type": "null"}}'),
        ("lark", 'start: (("a"*)*)* "b"'),
        ("lark", 'start: s\ns: s s | "a" | s s s'),
        ("gbnf", 'root ::= ("a"*)* "b"'),
    ],
)
def test_what_is_hard_elsewhere_is_followed(grammars, kind, text) -> None:
    guide = grammars.guide(Constraint(kind, text), [], None)
    for _ in range(30):
        if guide.complete:
            break
        guide.accept(int(guide.allowed().nonzero()[0][-1]))


def test_a_compiler_that_takes_too_long_is_ended(grammars, monkeypatch) -> None:
    grammars.guide(Constraint("regex", "once"), [], None)
    monkeypatch.setattr(compiling, "CHECK_S", 0.2)
    os.kill(grammars._checker._process.pid, signal.SIGSTOP)
    with pytest.raises(UsageError, match="takes over 0 s to compile"):
        grammars.guide(Constraint("regex", "never seen [a-z]+"), [], None)
    monkeypatch.undo()
    assert grammars.guide(Constraint("regex", "never seen [a-z]+"), [], None)


def test_a_process_that_was_killed_is_started_again(grammars) -> None:
    grammars.guide(Constraint("regex", "one"), [], None)
    os.kill(grammars._checker._process.pid, 9)
    grammars._checker._process.wait()
    assert grammars.guide(Constraint("regex", "two"), [], None)


def test_many_constraints_are_not_all_kept(grammars) -> None:
    for n in range(100):
        grammars.guide(Constraint("choice", f'["c{n}"]'), [], None)
    assert len(grammars._kept) <= compiling.MAX_KEPT


def test_a_guide_whose_shared_state_broke_goes_on_alone(grammars) -> None:
    constraint = Constraint("regex", "[ab]{9}")
    guide = grammars.guide(constraint, [], False)
    guide.accept(*letters().encode("a", False), *letters().encode("b", False))
    want = guide.allowed()
    guide._native.consume_token(letters().encode("z", False)[0])
    assert guide._native.is_error()
    assert (guide.allowed() == want).all()


class Breaking:
    """A guide that cannot be followed beyond its second token."""

    def __init__(self, guide):
        self.guide, self.n = guide, 0

    def along(self, drafts):
        if self.n >= 2:
            raise UsageError("the constraint cannot be followed further: test")
        return self.guide.along(())

    def accept(self, token):
        self.n += 1
        self.guide.accept(token)

    def valid_prefix(self, tokens):
        return 0

    def forced(self):
        return []

    complete = False


def test_an_answer_that_fails_tells_its_own_client_only(monkeypatch) -> None:
    made = Model(INFO, Prompter(letters(), None), engine(), 0.0)
    whole = made._grammars.guide
    wish = {"max_tokens": 12, "temperature": 0}
    request = ChatRequest(SamplingParams(structured_outputs=Form(regex="[a-z]{9}"), **wish), prompt="q")
    *deltas, end = made.submit(request)
    assert isinstance(end, Finished) and end.reason == "stop"
    text = "".join(d.text for d in deltas if isinstance(d, Delta))
    assert len(text) == 9

    monkeypatch.setattr(made._grammars, "guide", lambda *of: Breaking(whole(*of)))
    failing = made.submit(
        ChatRequest(SamplingParams(n=2, structured_outputs=Form(regex="[a-z]{9}"), **wish), prompt="q")
    )
    monkeypatch.undo()
    beside = made.submit(request)
    with pytest.raises(UsageError, match="cannot be followed further"):
        list(failing)
    *deltas, end = beside
    assert "".join(d.text for d in deltas if isinstance(d, Delta)) == text
    made.check()
    made.close()


def test_a_request_with_a_bad_constraint_is_refused_before_anything_runs() -> None:
    made = Model(INFO, Prompter(letters(), None), engine(), 0.0)
    with pytest.raises(UsageError, match="the regular expression is refused"):
        made.submit(ChatRequest(SamplingParams(structured_outputs=Form(regex="(")), prompt="q"))
    assert not made._engine.has_work
    made.close()
    assert made._grammars._checker._process is None
