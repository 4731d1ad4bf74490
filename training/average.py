"""The mean of several checkpoints' weights: `python -m training.average A.pt B.pt --into mead.pt`.

Checkpoints of one run, taken at the ends of two descents of the learning rate, err in different places; their
mean does better on questions in new words than either.  Source: stochastic weight averaging, arXiv
1803.05407.
"""

import argparse
from pathlib import Path

import torch


def average(paths: list[Path], into: Path) -> None:
    """Writes the last checkpoint with the mean of all weights; its optimizer's state is its own."""
    saved = [torch.load(path, weights_only=True) for path in paths]
    shapes = {str(each["shape"]) for each in saved}
    if len(shapes) > 1:
        raise SystemExit(f"the checkpoints are of different models: {', '.join(sorted(shapes))}")
    last = saved[-1]
    last["model"] = {
        name: torch.stack([each["model"][name] for each in saved]).mean(0) for name in last["model"]
    }
    torch.save(last, into)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, required=True)
    args = parser.parse_args()
    average(args.checkpoints, args.into)


if __name__ == "__main__":
    main()
