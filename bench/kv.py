"""What a format of the KV cache changes: mead's probabilities over its whole context, beside those of f32.

`python bench/kv.py [--texts 4] [--model FILE]`.  KL: mean divergence from f32 in nats a token; a token
differs when its likeliest successor does.  Past: what a token with a full context behind it reads of the
cache.  Quantized weights round activations, and any small change moves some of them: a file with F32
weights shows what the cache alone does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import ROOT, machine, report
from kvasir.backends.base import BLOCK, Batch, Floats, Memory
from kvasir.backends.cpu import CpuBackend
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.plan.show import plan_cost
from kvasir.runner.prompt import tokenizer_of
from kvasir.settings import KV_FORMATS
from kvasir.store.names import find


def whole(tokens: list[int]) -> Batch:
    """One sequence from its beginning, and logits for each of its tokens."""
    rows = np.arange(len(tokens), dtype=np.int32)
    blocks = np.arange(-(-len(tokens) // BLOCK), dtype=np.int32)[None]
    starts, slots = np.asarray([0, len(tokens)], np.int32), np.zeros(1, np.int32)
    return Batch(np.asarray(tokens, np.int32), rows, starts, blocks, slots, rows)


def log_softmax(x: Floats) -> Floats:
    x = x - x.max(1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=4, help="how many contexts of text")
    parser.add_argument("--model", default="mead", help="a name or a file")
    args = parser.parse_args()
    checkpoint = open_checkpoint(find(args.model).path)
    plan, weights = build(checkpoint)
    text = "".join(p.read_text() for p in sorted((ROOT / "training" / "corpus").glob("*.txt")))
    tokens = tokenizer_of(checkpoint).encode(text)
    step = len(tokens) // args.texts
    texts = [tokens[i * step : i * step + plan.context] for i in range(args.texts)]
    logits: dict[str, Floats] = {}
    for kv in KV_FORMATS:
        program = CpuBackend().compile(plan, weights, Memory(plan.context // BLOCK, kv_format=kv))
        logits[kv] = np.concatenate([program.step(whole(t)) for t in texts])
    want, rows = log_softmax(logits["f32"]), []
    for kv in KV_FORMATS:
        got = log_softmax(logits[kv])
        rows.append({
            "cache": kv,
            "bytes of past": plan_cost(plan, weights.sizes(), plan.context, kv).past_bytes,
            "KL": f"{float((np.exp(want) * (want - got)).sum(1).mean()):.2e}",
            "greatest logit error": f"{float(np.abs(logits[kv] - logits['f32']).max()):.2e}",
            "tokens that differ": f"{int((got.argmax(1) != want.argmax(1)).sum())} of {len(got)}",
        })  # fmt: skip
    columns = ("cache", "bytes of past", "KL", "greatest logit error", "tokens that differ")
    question = f"{Path(args.model).name} over {plan.context} tokens, {args.texts} texts"
    report(question, machine(), columns, rows)


if __name__ == "__main__":
    main()
