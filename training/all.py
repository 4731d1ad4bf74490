"""The whole way from the corpus to the files that ship: `python -m training.all`, about two hours."""

import argparse
import os
import subprocess
import sys


def stages(minutes: float, draft_minutes: float, threads: int) -> list[list[str]]:
    """The modules to run, in order, with their arguments."""
    return [
        ["training.corpus", "--check"],
        ["training.tokenizer"],
        ["training.train", "--model", "mead", "--minutes", str(minutes), "--threads", str(threads)],
        ["training.export", "--model", "mead"],
        ["training.train", "--model", "draft", "--minutes", str(draft_minutes), "--threads", str(threads)],
        ["training.export", "--model", "draft"],
        ["training.score", "--torch", "training/out/mead.pt"],
    ]


def main() -> None:
    """The command line; stops at the first stage that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=75.0, help="for mead")
    parser.add_argument("--draft-minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    for stage in stages(args.minutes, args.draft_minutes, args.threads):
        print("\n$ python -m", *stage, flush=True)
        subprocess.run([sys.executable, "-m", *stage], check=True)


if __name__ == "__main__":
    main()
