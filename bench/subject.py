"""What decode and prefill measure: which models, with which options, and what a step of them costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from bench.measure import RUNS
from bench.models import model_file
from kvasir import LLM
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.plan import ops
from kvasir.store.names import listing


@dataclass(frozen=True)
class Cost:
    """What a step moves from memory and computes, as the plan counts it."""

    n_bytes: float
    n_products: float


def cost(llm: LLM, rows: int, position: int) -> Cost:
    """The cost of a step of `rows` tokens of one sequence, `position` tokens into it on average.

    Weights count as the file has them, each read once; logits are wanted for one row.
    """
    plan, weights = build(open_checkpoint(llm.model.info.path))
    n_bytes = n_products = 0.0
    for op in plan.ops:
        share = op.k / weights[op.gate.name].shape[0] if isinstance(op, ops.Experts) else 1.0
        if isinstance(op, ops.Linear | ops.Experts):
            n_bytes += sum(weights[w.name].n_bytes for w in op.weights) * min(1.0, share * rows)
            size = sum(prod(w.shape) for w in op.weights if len(w.shape) > 1)
            n_products += size * share * (rows if op.out.rows == "T" else 1)
        elif isinstance(op, ops.Attend) and op.cache:
            past = min(position, op.window or position)
            n_bytes += 2 * op.cache.width * past
            n_products += rows * past * (op.q.width + op.out.width)
    return Cost(n_bytes, n_products)


def arguments(doc: str | None, tokens: int) -> argparse.Namespace:
    """The options that decode and prefill share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a name, file or folder, for the usual ones")
    parser.add_argument("--shape", default="qwen3-0.6b", help="a shape of bench/models.py")
    parser.add_argument("--forms", nargs="+", default=["Q4_0", "Q8_0", "Q4_K", "F16"], help="number formats")
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
