"""What decode and prefill measure: which models, with which options, and what a step of them costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from bench.measure import RUNS
from bench.models import model_file
from kvasir import LLM
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.plan.ops import Experts
from kvasir.plan.show import op_cost, plan_cost
from kvasir.store.names import listing


class Costs:
    """What a step of the model in a file costs, by its plan and the bytes of its weights in the file."""

    def __init__(self, path: Path | str):
        self.plan, weights = build(open_checkpoint(path))
        self.sizes = {name: weights[name].n_bytes for name in self.plan.weights}

    @property
    def has_experts(self) -> bool:
        return any(isinstance(op, Experts) for op in self.plan.ops)

    def n_bytes(self, past: int) -> float:
        """Bytes that a token needs with `past` tokens behind it, computed by itself."""
        return plan_cost(self.plan, self.sizes, past).n_bytes

    def macs(self, past: int) -> float:
        """Multiply-adds of such a token."""
        return plan_cost(self.plan, self.sizes, past).macs

    def prompt_macs(self, n_tokens: int) -> float:
        """Multiply-adds of a prompt; logits are wanted for its last row alone."""
        pasts = range(1, n_tokens + 1, -(-n_tokens // 64))
        total = 0.0
        for op in self.plan.ops:
            each = sum(op_cost(op, self.sizes, past).macs for past in pasts) / len(pasts)
            total += each * (n_tokens if op.out.rows == "T" else 1)
        return total


def loaded(path: str, threads: int | None, kv_format: str | None = None) -> LLM:
    """The model, computing a token a step: what is guessed right says nothing about speed."""
    llm = LLM(path, threads=threads, kv_format=kv_format)
    llm.model._engine.speculation = None
    return llm


def arguments(doc: str | None, tokens: int) -> argparse.Namespace:
    """The options that decode and prefill share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a name, file or folder, for the usual ones")
    parser.add_argument("--shape", default="qwen3-0.6b", help="a shape of bench/models.py")
    parser.add_argument(
        "--forms", nargs="+", default=["Q4_0", "Q8_0", "Q4_K_M", "F16"], help="number formats"
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--threads", type=int, help="default: one a core")
    return parser.parse_args()


def models(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Name and path of each model to measure, written when its turn comes."""
    if args.model:
        yield from ((name, name) for name in args.model)
        return
    if "mead" in [file.name.removesuffix(":latest") for file in listing()]:
        yield "mead", "mead"
    for form in args.forms:
        yield f"{args.shape} {form}", str(model_file(args.shape, form))
