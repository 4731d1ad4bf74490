"""What `kvasir tune` tries for a model on this GPU: its products of one to four rows, cut in every way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F

from kvasir.backends.cuda.kernels import matvec
from kvasir.backends.cuda.kernels.common import Config as Cut
from kvasir.backends.cuda.tune import Config, Trial, file_of, key_of, save, tune
from kvasir.plan import Plan, ops

ROWS = (1, 2, 4)
RUNS = 20
CLOSE = 2e-2  # of the greatest value: bf16's rounding
COLD_BYTES = 1 << 28  # weights are read from memory, not from a cache: copies of them up to so many bytes


def flat(cut: Cut) -> dict[str, int]:
    """A configuration as a table keeps it."""
    return {**cut.sizes, "n_warps": cut.n_warps, "n_stages": cut.n_stages}


def cut_of(config: Config) -> Cut:
    sizes = {k: v for k, v in config.items() if k not in ("n_warps", "n_stages")}
    return Cut(sizes, config.get("n_warps", 4), config.get("n_stages", 1))


def shapes(plan: Plan) -> list[tuple[int, int]]:
    """Outputs and width of every product of the plan, each once."""
    return sorted({(op.weight.shape[0], op.weight.shape[1]) for op in plan.ops if isinstance(op, ops.Linear)})


def trials(plan: Plan, device: torch.device) -> Iterator[Trial]:
    """The rule's own configuration first, and then the candidates."""
    for outputs, width in shapes(plan):
        size = outputs * width * 2
        copies = [
            torch.randn(outputs, width, device=device, dtype=torch.bfloat16) for _ in range(_copies(size))
        ]
        for rows in ROWS:
            x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
            out = torch.empty(rows, outputs, device=device, dtype=torch.bfloat16)
            rule = matvec.default(outputs, width, rows, 2)
            yield Trial(
                "matvec",
                key_of((rows, outputs, width, 0)),
                [flat(rule), *(flat(c) for c in matvec.CANDIDATES)],
                partial(_seconds, x, copies, out),
                partial(_right, x, copies[0], out),
            )


def _copies(size: int) -> int:
    return max(1, min(COLD_BYTES // size, 16))


def _call(x: torch.Tensor, data: torch.Tensor, out: torch.Tensor, config: Config) -> None:
    work = matvec.Workspace.on(x.device)
    matvec.matvec(x, data, None, None, out, work, config=cut_of(config)).run()


def _right(x: torch.Tensor, data: torch.Tensor, out: torch.Tensor, config: Config) -> bool:
    _call(x, data, out.fill_(float("nan")), config)
    want = F.linear(x, data).float()
    return bool((out.float() - want).abs().max() <= CLOSE * want.abs().max())


def _seconds(x: torch.Tensor, copies: list[torch.Tensor], out: torch.Tensor, config: Config) -> float:
    """The best of `RUNS` rounds over all copies, a call."""
    took = list[float]()
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for data in copies:
            _call(x, data, out, config)
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) / 1e3 / len(copies))
    return min(took)


def tune_plan(plan: Plan, device: str = "cuda") -> Mapping[str, Mapping[str, Config]]:
    """Measures all trials and keeps the table; what was found."""
    gpu = torch.cuda.get_device_name(torch.device(device))
    table = tune(list(trials(plan, torch.device(device))), print)
    save(file_of(gpu), gpu, table)
    print(f"kept in {file_of(gpu)}")
    return table
