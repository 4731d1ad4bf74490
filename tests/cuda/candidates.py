"""Compiles every candidate of every kernel for GPUs that are not here: `make gpu-kernels`, some minutes.

What `kvasir tune` may try must fit (else this exits with 1); it may spill and be slow, which the table shows.
"""

from __future__ import annotations

import sys

from tests.cuda.compiling import CAPABILITIES, SHARED, compiled
from tests.cuda.specimens import families


def main() -> int:
    bad = 0
    for config, call in families():
        for capability in CAPABILITIES:
            made = compiled(call, capability)
            fits = made.registers * made.n_warps * 32 <= 65536 and made.shared <= SHARED[capability]
            bad += not fits
            sizes = " ".join(f"{name}={n}" for name, n in config.sizes.items())
            print(
                f"sm_{capability:<4}{call.kernel.__name__:22}{sizes:36} warps {config.n_warps}"
                f"{made.registers:5} registers {made.spilled:4} spilled {made.shared:7} shared"
                f"{'' if fits else '  DOES NOT FIT'}",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
