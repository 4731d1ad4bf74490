"""Constrained answers of the built-in model, from Python: texts, batches, drafts, vocabularies."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema
import msgspec
import pytest

from kvasir import LLM, SamplingParams, StructuredOutputsParams
from kvasir.errors import UsageError
from kvasir.grammar.compile import Grammars
from kvasir.structured import Constraint
from kvasir.text.tokenizer import Tokenizer
from tests.grammar.words import letters
from tests.pure.tokenizer_pairs import sentencepiece_as_gguf, sentencepiece_model

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "port": {"type": "integer"}},
    "required": ["name", "port"],
}


@pytest.fixture(scope="module")
def llm():
    with LLM("mead", threads=1) as made:
        yield made


def test_plain_keywords_and_vllms_object_say_the_same(llm) -> None:
    (short,) = llm.generate("DNS is", regex="[a-z ]{9}", temperature=0, max_tokens=20)
    params = SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="[a-z ]{9}"), temperature=0, max_tokens=20
    )
    (long,) = llm.generate("DNS is", params)
    assert short.text == long.text and re.fullmatch("[a-z ]{9}", short.text)
    assert short.finish_reason == "stop"
    with pytest.raises(UsageError, match="structured_outputs or regex, not both"):
        llm.generate("x", regex="a", structured_outputs=StructuredOutputsParams(regex="b"))
    with pytest.raises(UsageError, match="got json, regex"):
        llm.generate("x", regex="a", json={})


def test_sixteen_schemas_at_once_equal_each_alone(llm) -> None:
    asked = [[{"role": "user", "content": f"What is port {n}? Answer in JSON."}] for n in range(16)]
    wishes = [SamplingParams(
        structured_outputs=StructuredOutputsParams(json=PERSON), seed=n, temperature=0.9, max_tokens=60
    ) for n in range(16)]  # fmt: skip
    together = llm.chat(asked, wishes, use_tqdm=False)
    assert any(result.finish_reason == "stop" for result in together)
    for result, messages, wish in zip(together, asked, wishes, strict=True):
        (alone,) = llm.chat(messages, wish)
        assert alone.token_ids == result.token_ids
        if result.finish_reason == "stop":
            jsonschema.validate(json.loads(result.text), PERSON)


def test_a_draft_model_changes_no_constrained_answer(llm) -> None:
    wishes = {"json": PERSON, "max_tokens": 60, "temperature": 0.8, "seed": 3}
    asked = [{"role": "user", "content": "What is DNS? Answer in JSON."}]
    with LLM("mead", threads=1, draft="mead-draft") as drafted:
        for seed in range(4):
            (want,) = llm.chat(asked, **{**wishes, "seed": seed})
            (got,) = drafted.chat(asked, **{**wishes, "seed": seed})
            assert got.token_ids == want.token_ids


def test_a_text_without_a_choice_is_written(llm) -> None:
    text = "the port of the web is 443, and that of mail is 25; now you know them both"
    (result,) = llm.generate("x", choice=[text], temperature=0, max_tokens=60)
    assert (result.text, result.finish_reason) == (text, "stop")


def test_several_answers_and_streams(llm) -> None:
    (result,) = llm.generate("Yes or no?", n=3, choice=["yes", "no"], temperature=2.0, seed=5)
    assert {output.text for output in result.outputs} <= {"yes", "no"}
    *_, last = llm.stream("Yes or no?", choice=["yes", "no"], seed=5)
    assert last.finished and last.text in ("yes", "no")


def test_a_stop_string_still_stops(llm) -> None:
    (result,) = llm.generate("x", regex="[ab]{30}", stop="b", temperature=3.0, seed=1, max_tokens=40)
    assert result.finish_reason == "stop" and set(result.text) <= {"a"}


def test_a_description_crosses_to_another_process() -> None:
    for form in (
        StructuredOutputsParams(json=PERSON), StructuredOutputsParams(json='{"type": "null"}'),
        StructuredOutputsParams(regex="a"), StructuredOutputsParams(choice=("a", "b")),
        StructuredOutputsParams(json_object=True), StructuredOutputsParams(grammar='root ::= "a"'),
    ):  # fmt: skip
        params = SamplingParams(structured_outputs=form)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
        assert again.constraint == params.constraint == form.constraint


def vocabulary(kind: str) -> Tokenizer:
    if kind == "bytes":
        return letters()
    sizes = {"bpe": 700, "unigram": 500}
    made = sentencepiece_model(model_type=kind, byte_fallback=True, vocab_size=sizes[kind])
    return Tokenizer.from_gguf(sentencepiece_as_gguf(made))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes"])
@pytest.mark.parametrize("padding", [0, 37])
def test_every_kind_of_vocabulary_can_be_held_to_a_schema(kind, padding) -> None:
    tokenizer = vocabulary(kind)
    grammars = Grammars(tokenizer, tokenizer.n_vocab + padding, tokenizer.eos_ids)
    guide = grammars.guide(Constraint("schema", json.dumps(PERSON)), [], False)
    text = b'{"name": "J\xc3\xb6 \xf0\x9f\x98\x80 ", "port": 53}'
    at = 0
    while at < len(text):
        allowed = guide.allowed()
        assert len(allowed) == tokenizer.n_vocab + padding and not allowed[tokenizer.n_vocab :].any()
        fits = [i for i in allowed.nonzero()[0] if text[at:].startswith(tokenizer.token_bytes(int(i)))]
        assert fits, text[at:]
        guide.accept(int(fits[-1]))
        at += len(tokenizer.token_bytes(int(fits[-1])))
    assert guide.complete
    forced = grammars.guide(Constraint("regex", " ?\\{ one  two é日"), [], False)
    forced.accept(int(forced.allowed().nonzero()[0][0]))
    assert b" { one  two \xc3\xa9\xe6\x97\xa5".endswith(b"".join(map(tokenizer.token_bytes, forced.forced())))
    grammars.close()


def test_importing_does_not_load_the_library() -> None:
    code = (
        "import sys; from kvasir import LLM; import kvasir.api.server; assert 'llguidance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
