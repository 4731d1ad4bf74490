"""What a constraint costs: compiling it, the mask of a token, and a step's answers at once.

The vocabulary is that of the model file; the masks are those on the way of a text that fits, after one pass
to warm up.  `bars`: what a step still has to do when the masks are there.
`python bench/grammar.py [--model qwen3-0.6b-Q4_0]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, machine, report
from kvasir.checkpoint.gguf import read_gguf
from kvasir.engine.masks import bars_of, permit
from kvasir.grammar.compile import Grammars, vocabulary
from kvasir.grammar.guide import Ends, Guide
from kvasir.structured import Constraint, schema
from kvasir.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "more": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"enum": ["x", "y"]}}},
    },
    "required": ["name", "age"],
}  # fmt: skip
SUMS = 'root ::= sum ("\\n" sum)*\nsum ::= term ([-+*/] term)*\nterm ::= [0-9]+ | [a-z]+ | "(" sum ")"'
CASES = {
    "any JSON": (Constraint("json"), '{"name": "Some One", "list": [1, 2.5e3, {"k": "v"}], "t": "a, b"}'),
    "schema": (schema(PERSON), '{"name": "Some One", "age": 42, "tags": ["al", "be"], "more": {"a": 1.5}}'),
    "regex": (Constraint("regex", r"[a-z0-9._]{1,64}@[a-z0-9.-]{1,64}\.[a-z]{2,8}"), "some.one@example.org"),
    "choice": (Constraint("choice", '["the first", "the second", "the third one"]'), "the third one"),
    "GBNF": (Constraint("gbnf", SUMS), "(a+12)*(bc-3)\n7/x"),
}  # fmt: skip


def us(work: Callable[[], object]) -> float:
    begin = perf_counter()
    work()
    return (perf_counter() - begin) * 1e6


def walk(guide: Guide, ids: list[int], logits: np.ndarray) -> tuple[list[float], list[float]]:
    """Microseconds of each mask, and of each application to the logits."""
    masks, uses = [], []
    for token in ids:
        begin = perf_counter()
        bars = bars_of(guide.allowed())
        masks.append((perf_counter() - begin) * 1e6)
        assert bars[token] == 0, "the text does not fit"
        uses.append(us(lambda made=bars: permit(logits, made, ())))  # type: ignore[misc]
        guide.accept(token)
    return masks, uses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen3-0.6b-Q4_0", help="a file of bench/out, or a path")
    parser.add_argument("--answers", type=int, default=16)
    args = parser.parse_args()
    path = Path(args.model) if args.model.endswith(".gguf") else Path("bench/out") / f"{args.model}.gguf"
    about = machine()
    tokenizer = Tokenizer.from_gguf(read_gguf(path).metadata)
    ends = Ends(tokenizer.n_vocab, tokenizer.eos_ids)
    once = us(lambda: vocabulary(tokenizer, ends)) / 1e6
    grammars = Grammars(tokenizer, tokenizer.n_vocab, tokenizer.eos_ids)
    grammars.guide(Constraint("regex", "warm"), [], False)
    heads = ("constraint", "compile ms", "mask us", "bars us", f"{args.answers} masks ms")
    rng, rows = np.random.default_rng(0), []
    for name, (constraint, text) in CASES.items():
        compiled = us(lambda c=constraint: grammars.guide(c, [], False)) / 1e3  # type: ignore[misc]
        ids = tokenizer.encode(text, add_special=False)
        logits = rng.normal(size=tokenizer.n_vocab).astype(np.float32)
        walk(grammars.guide(constraint, [], False), ids, logits)
        masks, uses = walk(grammars.guide(constraint, [], False), ids, logits.copy())
        guides = [grammars.guide(constraint, [], False) for _ in range(args.answers)]
        steps = []
        with ThreadPoolExecutor(2) as pool:
            for token in ids:
                begin = perf_counter()
                for done in [pool.submit(lambda g=g: bars_of(g.allowed())) for g in guides]:
                    done.result()
                steps.append((perf_counter() - begin) * 1e3)
                for guide in guides:
                    guide.accept(token)
        spreads = {heads[2]: Spread.of(masks), heads[3]: Spread.of(uses), heads[4]: Spread.of(steps)}
        rows.append({"constraint": name, "compile ms": compiled, **spreads})
    grammars.close()
    title = f"constraints over {tokenizer.n_vocab:,} tokens, which take {once:.2f} s once"
    report(title, about, heads, rows)


if __name__ == "__main__":
    main()
