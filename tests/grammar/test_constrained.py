"""Whatever the logits say, an answer has its form; and nothing else about it changes with the batch."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.engine.engine import Engine
from kvasir.structured import StructuredOutputsParams as Form
from tests.grammar.chance import GRAMMARS, Chance, N, answers, engine
from tests.grammar.words import letters

END = next(iter(letters().eos_ids))
names = st.sampled_from(["a", "name", "é", 'q"', "x y"])
leaves = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": "string", "maxLength": 5}),
    st.just({"type": "integer", "minimum": -5, "maximum": 300}),
    st.just({"type": "number"}),
    st.just({"type": "boolean"}),
    st.just({"type": ["null", "integer"]}),
    st.just({"enum": ["one", "two", 3, None]}),
    st.just({"const": {"k": [1, "v"]}}),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]+$"}),
    st.just({"type": "string", "format": "date"}),
)


def deeper(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(names, inner, min_size=1, max_size=3)
    return st.one_of(
        properties.flatmap(
            lambda p: st.builds(
                lambda required, more: {
                    "type": "object", "properties": p, "required": required, "additionalProperties": more,
                },
                st.lists(st.sampled_from(sorted(p)), unique=True),
                st.booleans(),
            )
        ),
        st.builds(lambda i, n: {"type": "array", "items": i, "maxItems": n}, inner, st.integers(0, 3)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    )  # fmt: skip


schemas = st.recursive(leaves, deeper, max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(schemas, min_size=1, max_size=4))
def test_an_answer_that_ends_fits_its_schema(many) -> None:
    for schema, (text, reason) in zip(many, answers(engine(), [Form(json=s) for s in many]), strict=True):
        assert reason in ("stop", "length")
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema)


def test_most_answers_of_chance_come_to_an_end() -> None:
    found = answers(engine(), [Form(json_object=True)] * 16)
    assert sum(reason == "stop" for _, reason in found) > 8
    assert all(isinstance(json.loads(text), dict) for text, reason in found if reason == "stop")


@settings(max_examples=40, deadline=None)
@given(st.from_regex(r"\A[a-c]{1,3}(\([a-z]\|[0-9]{2}\))?(x\*|y\+|z\?|\[^q\]|\.){0,3}(aa|é){0,2}\Z"))
def test_a_regex_is_matched_by_the_whole_answer(pattern) -> None:
    for text, reason in answers(engine(), [Form(regex=pattern)] * 3, max_tokens=40):
        assert reason == "length" or re.fullmatch(pattern, text), (pattern, text)


def test_choices_are_themselves_and_one_may_begin_another() -> None:
    choices = ["yes", "yes, indeed", 'a "quote"', "line\nbreak", "back\\slash", "é日😀", "\x01"]
    found = answers(engine(), [Form(choice=choices)] * 30, temperature=3.0)
    assert {reason for _, reason in found} == {"stop"}
    assert {text for text, _ in found} <= set(choices) and len({text for text, _ in found}) > 3


def test_a_recursive_grammar_in_lark() -> None:
    balanced = 'start: "(" start* ")" | /[a-c]/'
    for text, reason in answers(engine(), [Form(grammar=balanced)] * 8):
        assert reason == "length" or (re.fullmatch(r"[abc()]+", text) and text.count("(") == text.count(")"))


def test_whitespace_is_bounded() -> None:
    spaces = [t for t in range(N) if letters().token_bytes(t).strip() == b"" and t != END]
    eager = engine(bias=dict.fromkeys(spaces, 50.0))
    for text, _ in answers(eager, [Form(json={"type": "array", "items": {"type": "integer"}})] * 4):
        assert max(map(len, re.findall(r"\s+", text))) <= 24


FORMS = [
    Form(json_object=True),
    Form(json={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}),
    Form(regex="[a-z]{3,30}"),
    Form(choice=["red", "green", "blue"]),
    Form(grammar='start: "a" start "b" | "c"'),
    Form(grammar='root ::= "x" root? "y" [0-9]+'),
]


@pytest.mark.parametrize("n_blocks", [400, 20])
def test_sixteen_at_once_equal_each_alone(n_blocks) -> None:
    wishes = [FORMS[n % len(FORMS)] for n in range(16)]
    at_once = engine(n_blocks, step_tokens=48)
    together = answers(at_once, wishes)
    for n, wish in enumerate(wishes):
        prompt = letters().encode(f"prompt {n}", False)
        alone = answers(engine(), [wish], [f"prompt {n}"], seed=n)
        assert alone[0] == together[n], (n, len(prompt))


def test_drafts_change_no_constrained_answer(monkeypatch) -> None:
    """Here every sequence is drafted for: what its grammar forces, else what followed the same tokens."""
    wishes = [
        *FORMS,
        Form(regex="(abcd){3}[xy]{9}"),
        Form(regex="[ab]{60}"),
        Form(json={"const": "a long text"}),
    ]
    plain = Engine(Chance(), letters().eos_ids, drafter=None)  # type: ignore[arg-type]
    drafted = engine()
    speculation, verdicts = drafted.speculation, list[tuple[int, int]]()
    assert speculation is not None
    monkeypatch.setattr(speculation, "counts", lambda given, rows: [min(5, s.most_drafts) for s in given])
    monkeypatch.setattr(speculation, "verdict", lambda s, n, right: verdicts.append((n, right)))
    assert answers(drafted, wishes, temperature=0.7) == answers(plain, wishes, temperature=0.7)
    assert sum(right for _, right in verdicts) > 20 and any(right < n for n, right in verdicts)


def test_min_tokens_ignore_eos_and_ends_yield_to_the_grammar() -> None:
    wish = [Form(regex="a{1,9}")]
    early = engine(bias={END: 90.0})
    assert answers(early, wish)[0][1] == "stop"
    text, reason = answers(early, wish, min_tokens=2)[0]
    assert len(text) >= 2 and reason == "stop"
    assert answers(early, [Form(regex="a{3}")], min_tokens=50) == [("aaa", "stop")]
    assert answers(early, wish, ignore_eos=True) == [("a" * 9, "stop")]
    assert answers(early, [Form(regex="aab")], logit_bias={END: 100.0, 5: 100.0}) == [("aab", "stop")]


def test_tokens_that_run_out_are_told() -> None:
    text, reason = answers(engine(), [Form(regex="a{50}b")], max_tokens=7)[0]
    assert reason == "length" and set(text) == {"a"}


def test_stop_token_ids_and_penalties_act_within_the_grammar() -> None:
    (b,) = letters().encode("b", False)
    text, reason = answers(engine(), [Form(regex="[ab]{50}")], stop_token_ids=[b])[0]
    assert reason == "stop" and text.endswith("b") and text.count("b") == 1
    text, _ = answers(engine(), [Form(regex="[a-z]{20}")], repetition_penalty=3.0, presence_penalty=1.0)[0]
    assert re.fullmatch("[a-z]{20}", text)


class TestGuide:
    def test_a_prefix_is_valid_as_far_as_it_can_be_accepted(self) -> None:
        ids = letters().encode('{"a": 10}', False)
        guide = GRAMMARS.guide(Form(json_object=True).constraint, [], False)
        assert guide.valid_prefix([*ids, END]) == len(ids)
        assert guide.valid_prefix([*ids[:4], *letters().encode("]", False)]) == 4
        guide.accept(*ids)
        assert guide.complete and guide.allowed().nonzero()[0].tolist() == [END]
        assert guide.valid_prefix(ids) == 0

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 2**32), st.booleans())
    def test_rolling_back_leaves_no_trace(self, steps, seed, thinks) -> None:
        draw = random.Random(seed)
        form = Form(json={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
        prompt = letters().encode("<think>") if thinks else []
        guide, fresh = (GRAMMARS.guide(form.constraint, prompt, False) for _ in range(2))
        kept: list[int] = []
        close = letters().token_id("</think>")
        for n in steps:
            tokens: list[int] = []
            for _ in range(n):
                if guide.complete:
                    break
                able = guide.allowed().nonzero()[0].tolist()
                tokens.append(close if not guide.binds and draw.random() < 0.3 else draw.choice(able))
                guide.accept(tokens[-1])
            back = draw.randint(0, len(tokens))
            guide.rollback(back)
            kept += tokens[: len(tokens) - back]
            again = GRAMMARS.guide(form.constraint, prompt, False)
            again.accept(*kept)
            assert (guide.allowed() == again.allowed()).all() and guide.complete == again.complete
            if kept and kept[-1] in letters().eos_ids:
                break
        assert (fresh.allowed() == GRAMMARS.guide(form.constraint, prompt, False).allowed()).all()

    def test_masks_along_drafts_are_those_of_each_place(self) -> None:
        ids = letters().encode('{"a": [1, 2]}', False)
        guide = GRAMMARS.guide(Form(json_object=True).constraint, [], False)
        along = guide.along(ids)
        for n in range(len(ids) + 1):
            assert (along[n] == guide.allowed()).all()
            guide.accept(*ids[n : n + 1])

    def test_forced_text_is_known_ahead(self) -> None:
        guide = GRAMMARS.guide(Form(regex="abcabc").constraint, [], False)
        assert letters().decode(guide.forced()) == "abcabc"


class TestThinking:
    form = Form(regex="[0-9]{3}")

    def ask(self, prompt: str, bias: dict[str, float], think: bool | None = None) -> tuple[str, str | None]:
        ids = {letters().token_id(mark): value for mark, value in bias.items()}
        made = engine(bias={token: value for token, value in ids.items() if token is not None})
        return answers(made, [self.form], [prompt], think, max_tokens=200, temperature=1.5)[0]

    def test_a_thought_that_the_prompt_left_open_is_free(self) -> None:
        text, reason = self.ask("q<think>", {"</think>": 3.0, "<|end|>": 9.0})
        thought, _, answer = text.partition("</think>")
        assert reason == "stop" and re.fullmatch("[0-9]{3}", answer)
        assert thought and "<|end|>" not in thought

    def test_the_model_may_open_a_thought_itself(self) -> None:
        text, _ = self.ask("q", {"<think>": 20.0, "</think>": 21.0})
        assert re.fullmatch(r"<think>.*</think>[0-9]{3}", text, re.DOTALL)

    def test_but_need_not_and_not_when_it_was_asked_not_to(self) -> None:
        assert re.fullmatch("[0-9]{3}", self.ask("q", {"<think>": -50.0})[0])
        assert re.fullmatch("[0-9]{3}", self.ask("q", {"<think>": 50.0}, think=False)[0])
        assert re.fullmatch("[0-9]{3}", self.ask("<think>\n\n</think>\n\n", {"<think>": 50.0})[0])

    def test_a_thought_of_an_earlier_turn_is_closed(self) -> None:
        assert re.fullmatch("[0-9]{3}", self.ask("<think>x</think>answer q", {"<think>": -50.0})[0])

    def test_a_thought_that_never_ends_ends_by_length(self) -> None:
        assert self.ask("<think>", {"</think>": -50.0})[1] == "length"
