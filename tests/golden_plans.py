"""`python -m tests.golden_plans`: writes the plans of the tiny models to tests/golden/plans, one file a case.

A change to a shared piece then shows, file by file, which models it changes.
"""

from __future__ import annotations

from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from tests.parity.cases import CASES, GOLDEN

PLANS = GOLDEN / "plans"


def text(name: str) -> str:
    """The plan of a case as it is kept."""
    plan, _ = build(open_checkpoint(GOLDEN / name), CASES[name].context)
    return f"{plan}\n"


def main() -> None:
    PLANS.mkdir(exist_ok=True)
    for old in PLANS.glob("*.txt"):
        old.unlink()
    for name in CASES:
        (PLANS / f"{name}.txt").write_text(text(name))


if __name__ == "__main__":
    main()
