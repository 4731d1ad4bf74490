"""Same seeds, same texts, on real models: the prefix cache, drafts and company change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kvasir import LLM, SamplingParams
from kvasir.backends.base import Memory, Program
from kvasir.backends.cpu import CpuBackend
from kvasir.engine.engine import Engine
from kvasir.errors import UsageError
from kvasir.runner.model import draft_model
from kvasir.sampling import SamplingParams as Params
from tests.stepping import program

QUESTIONS = [
    "What is a VLAN?", "Explain DNS in one sentence", "What is a VLAN and what is it for?",
    "Repeat: one two three one two three one two three one two",
]  # fmt: skip


def texts(llm: LLM, params: SamplingParams) -> list[tuple[int, ...]]:
    conversations = [[{"role": "user", "content": q}] for q in QUESTIONS]
    return [r.token_ids for r in llm.chat(conversations, params, use_tqdm=False)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_mead_says_the_same_with_a_draft_model_and_again_from_the_cache(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=48)
    with LLM("mead") as plain:
        first = texts(plain, params)
        again = texts(plain, params)
        hit = plain.chat([{"role": "user", "content": QUESTIONS[3]}], params)[0]
        assert hit.metrics.n_cached >= 16 and hit.token_ids == first[3]
        plain.model.check()
    with LLM("mead", draft="mead-draft") as drafted:
        guessed = texts(drafted, params)
    assert first == again == guessed


def test_a_draft_with_another_vocabulary_is_refused() -> None:
    with LLM("mead") as llm:
        own = llm.model.prompter.tokenizer
    near = SimpleNamespace(n_vocab=own.n_vocab, piece=lambda i: own.piece(i) if i != 7 else "?")
    for other in (SimpleNamespace(n_vocab=own.n_vocab + 1), near):
        with pytest.raises(UsageError, match="another vocabulary"):
            draft_model("mead-draft", other, CpuBackend(threads=1), Memory(8))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen3", "qwen35", "gemma3", "gpt-oss", "qwen3-moe"])
def test_families_give_the_same_tokens_from_the_cache_and_with_drafts(name: str) -> None:
    """Windows, sinks, experts and recurrent states; prompts that begin alike, in small steps."""
    backend = CpuBackend(threads=2, oversubscribe=True)
    vocab = program(name).plan.n_vocab
    rng = np.random.default_rng(1)
    trunk = rng.integers(0, vocab, 60).tolist()
    prompts = [trunk[: int(n)] + rng.integers(0, vocab, 5).tolist() for n in rng.integers(20, 60, 6)]
    wish = Params(temperature=0, max_tokens=14)

    def run(p: Program, together: bool, **wishes: object) -> list[list[int]]:
        engine = Engine(p, max_sequences=3, step_tokens=24, **wishes)  # type: ignore[arg-type]
        found = []
        for prompt in prompts:
            sequence = engine.sequence(prompt, wish)
            engine.add(sequence)
            found.append(sequence)
            while engine.has_work and not together:
                engine.step()
        while engine.has_work:
            engine.step()
            engine.check()
        if wishes.get("reuse", True):
            assert sum(s.n_cached for s in found) > 0
        return [s.generated for s in found]

    alone = run(program(name, backend), False, reuse=False, drafter=None)
    assert run(program(name, backend), True) == alone
    assert run(program(name, backend), False) == alone
