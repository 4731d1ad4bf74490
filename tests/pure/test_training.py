"""The corpus is well formed, held-out questions stay out, and what is exported is what was trained."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest

from training.corpus import CorpusError, duplicates, read_corpus, read_heldout, read_lines
from training.phrasing import (
    TOPIC_TEMPLATES,
    from_topic,
    keywords,
    noisy,
    normalized,
    phrase,
    reworded,
    scrambled,
    telegram,
)
from training.samples import Sampler, random_sum
from training.score import FIXED, UNKNOWABLE, is_right


def test_the_corpus_is_well_formed() -> None:
    corpus = read_corpus()
    assert sum(1 for _ in corpus.all_facts()) > 2000
    assert not duplicates(corpus)


@pytest.mark.parametrize("text", ["no colon", "q: \n", "a: caf\u00e9", "12: x"])
def test_a_bad_line_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.txt").write_text("q: fine\na: fine\n\n" + text, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"bad\.txt:4"):
        list(read_lines(tmp_path / "bad.txt"))


def test_a_record_without_an_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "facts.txt").write_text("q: one\na: two\n\nq: three\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"facts\.txt:4"):
        read_corpus(tmp_path)


def test_held_out_questions_are_never_drawn() -> None:
    banned = frozenset(normalized(check.question) for check in read_heldout())
    sampler = Sampler(read_corpus(), banned, seed=1)
    for sample in islice(iter(sampler.draw, None), 5000):
        for message in sample.messages:
            assert message["role"] != "user" or normalized(message["content"]) not in banned


def test_held_out_questions_are_new() -> None:
    facts = list(read_corpus().all_facts())
    written = {normalized(question) for fact in facts for question in fact.questions}
    made = {
        normalized(from_topic(template, fact.topic))
        for fact in facts
        if fact.topic
        for template in TOPIC_TEMPLATES
    }
    questions = {normalized(check.question) for check in read_heldout()}
    assert len(questions) == 100
    assert not questions & (written | made)
    assert not {normalized(question) for question in UNKNOWABLE} & (written | made)


def test_each_check_has_an_answer_in_the_corpus_and_few_others_pass() -> None:
    answers = [fact.answer for fact in read_corpus().all_facts()]
    for check in (*read_heldout(), *FIXED):
        passing = sum(is_right(check, answer) for answer in answers)
        assert 1 <= passing <= 12, (check.question, passing)


def test_a_banned_question_is_not_phrased() -> None:
    rng = random.Random(0)
    assert phrase(("What is DNS?",), None, "", frozenset({"what is dns"}), rng) is None
    assert phrase(("What is DNS?",), "DNS", "", frozenset({"what is dns"}), rng) is not None


def test_noise_leaves_a_question() -> None:
    rng = random.Random(0)
    texts = {noisy("What is the default gateway?", rng) for _ in range(300)}
    assert len(texts) > 50
    assert all(texts)


def test_sums_are_right() -> None:
    rng = random.Random(0)
    for _ in range(500):
        left, _, right = random_sum(rng)[1].rstrip(".").partition(" = ")
        a, sign, b = left.split()
        assert int(right) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


def test_a_row_is_what_inference_reads() -> None:
    pytest.importorskip("torch")
    from training.batches import encode  # noqa: PLC0415
    from training.chat import render  # noqa: PLC0415
    from training.tokenizer import corpus_texts, train  # noqa: PLC0415

    tokenizer = train(islice(corpus_texts(), 4000))
    sampler = Sampler(read_corpus(), frozenset(), seed=2)
    for sample in islice(iter(sampler.draw, None), 200):
        row = encode(sample, tokenizer, n_context=1024)
        whole = tokenizer.encode(render(sample.messages, sample.tools), add_special_tokens=False).ids
        assert row.ids == whole[:1025]


def test_the_exported_files_hold_the_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    gguf = pytest.importorskip("gguf")
    safetensors = pytest.importorskip("safetensors.numpy")
    from training import export  # noqa: PLC0415
    from training.model import SHAPES, Model  # noqa: PLC0415
    from training.tokenizer import corpus_texts, train  # noqa: PLC0415

    model = Model(SHAPES["draft"])
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    tokenizer = train(islice(corpus_texts(), 4000))
    export.write_hf(tmp_path / "hf", model.shape, weights, tokenizer)
    export.write_gguf(tmp_path / "q.gguf", "draft", model.shape, weights, tokenizer, q8_0=True)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "qwen3"
    stored = safetensors.load_file(tmp_path / "hf" / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    for name, weight in weights.items():
        assert (stored[f"model.{name}"] == weight).all()
        tensor = tensors.pop(export.gguf_name(name))
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        assert torch.allclose(torch.tensor(back), torch.tensor(weight), atol=abs(weight).max() / 200)
    assert not tensors


def test_what_comes_later_changes_nothing_before() -> None:
    torch = pytest.importorskip("torch")
    from training.model import SHAPES, Model, n_parameters  # noqa: PLC0415

    model = Model(SHAPES["draft"])
    assert n_parameters(model) <= 1_000_000
    tokens = torch.randint(0, 4096, (2, 24))
    with torch.no_grad():
        assert torch.allclose(model(tokens)[:, :10], model(tokens[:, :10]), atol=1e-5)


def test_muon_makes_a_matrix_orthogonal() -> None:
    torch = pytest.importorskip("torch")
    from training.muon import orthogonal  # noqa: PLC0415

    torch.manual_seed(0)
    for shape in ((64, 96), (96, 64)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert singular.min() > 0.5
        assert singular.max() < 1.3


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_lowers_the_loss_of_its_batch(optimizer: str) -> None:
    torch = pytest.importorskip("torch")
    from training.batches import Row, stack  # noqa: PLC0415
    from training.model import SHAPES, Model  # noqa: PLC0415
    from training.train import Recipe, one_step, optimizers_for  # noqa: PLC0415

    torch.manual_seed(0)
    model = Model(SHAPES["draft"])
    recipe = Recipe("draft", 1, None, 2e-3, 64, 1, 0.05, 0, optimizer)
    optimizers = optimizers_for(model, recipe)
    assert sum(len(group["params"]) for each in optimizers for group in each.param_groups) == len(
        list(model.parameters())
    )
    batch = stack([Row(list(range(20, 60)), [1.0] * 40)], multiple=8)
    losses = [one_step(model, optimizers, [batch], model.loss) for _ in range(6)]
    assert losses[-1] < losses[0] - 0.5


def test_key_words_carry_the_matter_and_never_a_held_out_question() -> None:
    rng = random.Random(3)
    questions = ("What does a DHCP lease decide?", "how long may a host keep an address from dhcp")
    drawn = {
        telegram(questions, "A DHCP lease is the time a host may use an address.", rng) for _ in range(300)
    }
    assert len(drawn) > 150
    assert all(word in " ".join(drawn) for word in ("DHCP", "lease", "host", "address"))
    assert keywords("What is the use of a MAC address?") == ["MAC", "address"]
    banned = frozenset({"dhcp lease"})
    many = [phrase(("DHCP lease",), None, "The lease of an address.", banned, rng) for _ in range(300)]
    assert "dhcp lease" not in {normalized(text) for text in many if text}


def test_rewording_keeps_what_is_asked_about() -> None:
    rng = random.Random(1)
    forms = {reworded("What is the difference between a hub and a switch?", rng) for _ in range(50)}
    assert len(forms) == 4
    assert all("a hub" in form and "a switch" in form for form in forms)
    assert reworded("Is DNS a protocol?", rng) == "Is DNS a protocol?"


def test_scrambling_keeps_the_matter() -> None:
    rng = random.Random(2)
    for _ in range(200):
        text = scrambled("How does ECC memory protect data?", rng).lower()
        assert "ecc" in text and "memor" in text and "data" in text
