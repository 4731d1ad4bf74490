"""Runs the benchmarks and writes docs/performance.md: `python bench/page.py`, at a quiet time.

Commit first, so that the figures name a commit; a "+" behind it says that files differed from it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- figures[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
QUESTIONS = ("startup", "decode", "prefill")


def tables(name: str) -> tuple[str, str]:
    """What one benchmark printed: the machine's line, and its title with its table in Markdown."""
    words = [sys.executable, str(ROOT / "bench" / f"{name}.py")]
    printed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    title, machine, *rest = printed.strip().split("\n")
    json.loads(rest.pop())
    heading = title[:1].upper() + title[1:]
    return machine, f"### {heading}\n\n`python bench/{name}.py`\n\n" + "\n".join(rest).strip() + "\n"


def main() -> None:
    found = [tables(name) for name in QUESTIONS]
    machine = found[0][0].replace(", kernels", ",\nkernels")
    body = f"{machine}. Medians, with the lowest and the highest run.\n\n" + "\n".join(
        text for _, text in found
    )
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda m: m[1] + body + m[2], page), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} has the figures of {machine.partition('commit ')[2].partition(',')[0]}")


if __name__ == "__main__":
    main()
