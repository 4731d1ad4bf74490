"""How fast a prompt is read: tokens and multiply-adds a second.

`python bench/prefill.py [--model FILE]... [--forms Q4_0 Q8_0] [--runs 5] [--tokens 512]`
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, machine, report, say
from bench.subject import Costs, arguments, models
from kvasir import LLM


def measure(name: str, path: str, runs: int, n_tokens: int, threads: int | None) -> dict[str, object]:
    """One model's row."""
    say(f"loading {name}")
    with LLM(path, threads=threads) as llm:
        n_tokens = min(n_tokens, llm.model.info.context - 2)

        def once(first: int) -> float:
            """Seconds from the first step to the first token.  Each prompt is new: no cache can help."""
            prompt = [1 + (first + i * 7) % 200 for i in range(n_tokens)]
            result = llm.generate([prompt], temperature=0, max_tokens=1, ignore_eos=True)[0]
            return result.metrics.prefill_s

        once(0)
        times = []
        for i in range(runs):
            times.append(once(i + 1))
            say(f"  {name}: run {i + 1} of {runs}: {n_tokens / times[-1]:.0f} tokens/s")
        macs = Costs(llm.model.info.path).prompt_macs(n_tokens)
    return {
        "model": name,
        "prompt": n_tokens,
        "tokens/s": Spread.of([n_tokens / t for t in times]),
        "G multiply-adds/s": Spread.of([macs / t / 1e9 for t in times]),
        "first token after, s": Spread.of(times),
    }


def main() -> None:
    args = arguments(__doc__, tokens=512)
    about = machine()
    rows = [measure(n, p, args.runs, args.tokens, args.threads) for n, p in models(args)]
    columns = ("model", "prompt", "tokens/s", "G multiply-adds/s", "first token after, s")
    report("prefill, one prompt", about, columns, rows)


if __name__ == "__main__":
    main()
