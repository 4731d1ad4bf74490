"""The engine on the CUDA backend, torch on the CPU: the reference's tokens, however they come about."""

# ruff: noqa: E402
from __future__ import annotations

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvasir.backends.base import Memory, Program
from kvasir.backends.cuda.backend import CudaBackend
from kvasir.backends.reference import Reference
from kvasir.checkpoint.tensor import LowRank
from kvasir.engine.engine import Engine
from kvasir.llm import LLM
from kvasir.plan.passes import adapt
from kvasir.sampling import SamplingParams
from tests.cuda.test_graphs import StandIn
from tests.kernels.small import qwen, tensor, weights_for

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = [[3, 5, 7, 9], list(range(20, 60)), [3, 5, 7, 9, 11, 13], [40] * 17, [2]]


@cache
def program(kind: str, n_blocks: int = 64) -> Program:
    plan = adapt(qwen())
    backend = Reference() if kind == "reference" else CudaBackend("cpu", "f32", recorder=StandIn(),
                                                                  in_background=False)  # fmt: skip
    return backend.compile(plan, weights_for(plan), Memory(n_blocks, 1, "f32"))


def answers(
    p: Program, params: list[SamplingParams], *, ahead: bool = False, drafter: str | None = None,
    most: int = 8, adapters: tuple[str, ...] = (), reuse: bool = True,
) -> tuple[list[list[int]], Engine]:  # fmt: skip
    """What each prompt is answered, all at once; and the engine that did it."""
    engine = Engine(p, (1,), most, drafter=drafter, reuse=reuse, ahead=p if ahead else None)
    for name in set(adapters) - {""}:
        engine.adapters.load(name, low_rank(p))
    rows = []
    for i, prompt in enumerate(PROMPTS):
        adapter = adapters[i] if adapters else ""
        rows.append(engine.sequence(prompt, params[i % len(params)], adapter=adapter))
        engine.add(rows[-1])
    while engine.has_work:
        engine.step()
    engine.check()
    return [s.generated for s in rows], engine


def low_rank(p: Program) -> dict[str, LowRank]:
    rng = np.random.default_rng(7)
    made = {}
    for name in ("blk.0.attn_q", "blk.1.ffn_up", "blk.1.ffn_down"):
        o, d = p.plan.weights[name].shape
        a, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, d), (o, 4)))
        made[name] = LowRank(tensor("a", a), tensor("b", b), 0.1)
    return made


CUTS = [(0.9, 0, 1.0), (1.2, 9, 0.9), (0.7, 0, 0.8), (0, 0, 1.0), (1.0, 3, 1.0)]
SEEDED = [
    SamplingParams(seed=i, temperature=t, top_k=k, top_p=p, max_tokens=20 + i, ignore_eos=i % 2 == 0)
    for i, (t, k, p) in enumerate(CUTS)
]


@pytest.mark.parametrize("params", [[GREEDY], SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_tokens_are_the_references(ahead: bool, params: list[SamplingParams]) -> None:
    want, _ = answers(program("reference"), params)
    got, engine = answers(program("cuda"), params, ahead=ahead)
    assert got == want
    assert (engine.pilot is not None and engine.pilot.n_ahead > 15) == ahead
    assert program("cuda").graphs.n_replayed > 0


@pytest.mark.parametrize("ahead", [False, True])
def test_preemption_and_waiting_change_nothing(ahead: bool) -> None:
    want, _ = answers(program("reference"), [GREEDY])
    tight = answers(program("cuda", 9), [GREEDY], ahead=ahead)
    few = answers(program("cuda"), [GREEDY], ahead=ahead, most=2)
    assert tight[0] == few[0] == want and tight[1].totals.n_preempted > 0


@pytest.mark.parametrize("ahead", [False, True])
def test_drafts_change_nothing(ahead: bool) -> None:
    want, _ = answers(program("reference"), [GREEDY])
    assert answers(program("cuda"), [GREEDY], drafter="ngram", ahead=ahead)[0] == want


def test_what_the_host_must_choose_is_not_begun_ahead() -> None:
    bent = [
        SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.3),
        SamplingParams(temperature=0, max_tokens=9, logprobs=2),
        SamplingParams(temperature=0, max_tokens=9, min_tokens=5),
        SamplingParams(temperature=0, max_tokens=9, allowed_token_ids=(4, 5, 6)),
        SamplingParams(temperature=0, max_tokens=9, logit_bias={7: 3.0}),
    ]
    want, _ = answers(program("reference"), bent)
    got, engine = answers(program("cuda"), bent, ahead=True)
    assert got == want and engine.pilot and engine.pilot.n_ahead == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_adapters_answer_side_by_side(ahead: bool) -> None:
    mixed = ("", "x", "", "x", "x")
    want, _ = answers(program("reference"), [GREEDY], adapters=mixed)
    assert answers(program("cuda"), [GREEDY], adapters=mixed, ahead=ahead)[0] == want
    assert want != answers(program("reference"), [GREEDY])[0]


def test_a_client_that_leaves_in_the_air_disturbs_nobody() -> None:
    want, _ = answers(program("reference"), [GREEDY])
    p = program("cuda")
    engine = Engine(p, (1,), 8, drafter=None, ahead=p)
    rows = [engine.sequence(prompt, GREEDY) for prompt in PROMPTS]
    for row in rows:
        engine.add(row)
    for n in range(60):
        engine.step()
        if n == 9:
            assert engine.pilot and engine.pilot.is_flying
            engine.finish(rows[1], "abort")
    assert not engine.has_work and [r.generated for i, r in enumerate(rows) if i != 1] == want[:1] + want[2:]
    engine.check()


def test_mead_says_what_it_says_on_the_reference() -> None:
    said = []
    for backend in ("torch", "reference"):
        with LLM("mead", backend=backend, max_model_len=128, kv_format="f32") as llm:
            (result,) = llm.generate(["DNS is"], temperature=0, max_tokens=16)
            said.append(list(result.outputs[0].token_ids))
    assert said[0] == said[1] and len(said[0]) > 3
