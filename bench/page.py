"""Writes figures into docs/performance.md, at a quiet time.

`python bench/page.py` runs the benchmarks of Kvasir alone and writes what they gave.
`python bench/page.py rivals FILE...` and `python bench/page.py quality FILE` write what bench/rivals.py and
bench/quality.py printed into files; of a figure that is in several files the last one counts.
Commit first, so that the figures name a commit; a "+" behind it says that files differed from it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import ROOT, line, table

PAGE = ROOT / "docs" / "performance.md"
QUESTIONS = ("startup", "decode", "prefill")


def own() -> str:
    """The benchmarks of Kvasir alone, run now."""
    found = [tables(name) for name in QUESTIONS]
    return wrapped(found[0][0]) + "\n" + "\n".join(text for _, text in found)


def tables(name: str) -> tuple[str, str]:
    """What one benchmark printed: the machine's line, and its title with its table in Markdown."""
    words = [sys.executable, str(ROOT / "bench" / f"{name}.py")]
    printed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    title, machine, *rest = printed.strip().split("\n")
    json.loads(rest.pop())
    heading = title[:1].upper() + title[1:]
    return machine, f"### {heading}\n\n`python bench/{name}.py`\n\n" + "\n".join(rest).strip() + "\n"


def wrapped(machine: str) -> str:
    return machine.replace(", kernels", ",\nkernels") + ". Medians, with the lowest and the highest run.\n"


def rivals(files: list[str]) -> str:
    """A table a suite, of all outputs of bench/rivals.py together."""
    told = [json.loads(Path(file).read_text().strip().split("\n")[-1]) for file in files]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for output in told:
        for row in output["rows"]:
            rows[row["model"], row["what"]] = row
    commits = ", ".join(dict.fromkeys(o["machine"]["commit"] for o in told))
    parts = [wrapped(line({**told[-1]["machine"], "commit": commits}))]
    for suite in dict.fromkeys(row["suite"] for row in rows.values()):
        members = [row for row in rows.values() if row["suite"] == suite]
        parts.append(f"### {suite.capitalize()}\n\n{table(*columns_of(members))}\n")
    return "\n".join(parts)


def columns_of(rows: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns in which rows have something, and the rows."""
    ends = ("of the best", "bar", "per cent of the limit", "others, %")
    names = dict.fromkeys(k for row in rows for k, v in row.items() if v is not None and k not in ends)
    last = [c for c in ends if any(row.get(c) is not None for row in rows)]
    return [n for n in names if n != "suite"] + last, rows


def quality(file: str) -> str:
    title, machine, *rest = Path(file).read_text().strip().split("\n")
    about = wrapped(machine.partition(", load")[0]).partition(". Medians")[0]  # nothing is timed
    return f"{about}.\n\n{title[:1].upper()}{title[1:]}\n" + "\n".join(rest[:-1]) + "\n"


def put(name: str, body: str) -> None:
    """Between the marks of `name` in the page."""
    block = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
    page = PAGE.read_text(encoding="utf-8")
    if not block.search(page):
        raise SystemExit(f"{PAGE.name} has no place for {name}")
    PAGE.write_text(block.sub(lambda m: m[1] + body + m[2], page), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} has new figures: {name}")


def main() -> None:
    name, files = sys.argv[1] if sys.argv[1:] else "figures", sys.argv[2:]
    if name == "figures":
        put(name, own())
    elif name in ("rivals", "quality") and files:
        put(name, rivals(files) if name == "rivals" else quality(files[0]))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
