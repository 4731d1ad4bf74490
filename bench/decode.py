"""How fast one answer grows, and how near that is to what memory allows.

Generating a token reads every weight once, so the limit is bandwidth over bytes a token; the bandwidth is
measured in the same run.  `python bench/decode.py [--model FILE]... [--forms Q4_0 Q8_0] [--runs 5]`
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import Spread, bandwidth, machine, number, report, say
from bench.subject import Costs, arguments, loaded, models

PROMPT = 16  # tokens


def measure(name: str, path: str, runs: int, n_tokens: int, threads: int | None) -> dict[str, object]:
    """One model's row: tokens a second, bytes a second, and their share of the bandwidth."""
    say(f"loading {name}")
    with loaded(path, threads) as llm:
        prompt = [1 + i for i in range(PROMPT)]

        def once() -> float:
            result = llm.generate([prompt], temperature=0, max_tokens=n_tokens, ignore_eos=True)[0]
            return result.metrics.decode_rate

        once()
        rates, bands = [], []
        for i in range(runs):
            bands.append(bandwidth(threads))
            rates.append(once())
            told = f"{number(rates[-1])} tokens/s, memory {number(bands[-1] / 1e9)} GB/s"
            say(f"  {name}: run {i + 1} of {runs}: {told}")
        n_bytes = Costs(llm.model.info.path).n_bytes(PROMPT + n_tokens // 2)
    rate, band = Spread.of(rates), Spread.of([b / 1e9 for b in bands])
    speed = n_bytes * rate.median / 1e9
    return {
        "model": name,
        "tokens/s": rate,
        "MB a token": n_bytes / 1e6,
        "GB/s": speed,
        "memory GB/s": band,
        "per cent of the limit": 100 * speed / band.median,
    }


def main() -> None:
    args = arguments(__doc__, tokens=64)
    about = machine()
    rows = [measure(n, p, args.runs, args.tokens, args.threads) for n, p in models(args)]
    columns = ("model", "tokens/s", "MB a token", "GB/s", "memory GB/s", "per cent of the limit")
    report(f"decode, one sequence, {args.tokens} tokens after {PROMPT}", about, columns, rows)


if __name__ == "__main__":
    main()
