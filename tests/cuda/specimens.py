"""Calls of every kernel as an 8B model makes them, on tensors without memory, and what each compiles to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kvasir.backends.cuda.kernels import matvec as matvecs
from kvasir.backends.cuda.kernels.common import Call, Config
from kvasir.backends.cuda.kernels.elementwise import elementwise
from kvasir.backends.cuda.kernels.matvec import Workspace, matvec
from kvasir.backends.cuda.kernels.norm import norm

BF16, F16, F32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
WIDE_LOAD, WIDE_STORE = r"ld\.global\S*\.v4\.b32", r"st\.global\S*\.v4\.b32"
STREAMED = r"ld\.global\.L1::evict_first\S*\.v4\.b32"  # weights: 16 bytes a thread, read once
COPIED = r"cp\.async\.cg\.shared\.global \[[^]]+\], \[[^]]+\], 0x10"  # 16 bytes into shared memory


@dataclass(frozen=True)
class Specimen:
    """A call; the registers a thread and bytes of shared memory it may take; instructions it must have.

    `early`: what must be loaded before the wait.  `hopper`: instructions needed on sm_90.
    """

    call: Callable[[], Call]
    registers: int
    shared: int
    needs: tuple[str, ...] = ()
    early: str = ""
    hopper: tuple[str, ...] = ()


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def floats(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=F32)


WORK = Workspace.on("meta")

SPECIMENS: dict[str, Specimen] = {
    "rms norm and sum": Specimen(
        lambda: norm(meta(8, 4096), meta(8, 4096), floats(4096), None, 1e-6, 1, "rms", floats(8, 4096),
                     meta(8, 4096)),
        64, 16384, (WIDE_LOAD, WIDE_STORE), WIDE_LOAD,
    ),
    "layer norm": Specimen(
        lambda: norm(meta(8, 768), None, floats(768), floats(768), 1e-6, 1, "layer", None, meta(8, 768)),
        64, 8192, (WIDE_LOAD,), WIDE_LOAD,
    ),
    "l2 norm of heads": Specimen(
        lambda: norm(meta(8, 2048), None, None, None, 1e-6, 16, "l2", None, meta(8, 2048)),
        64, 8192, (WIDE_LOAD, WIDE_STORE),
    ),
    "gate times up": Specimen(
        lambda: elementwise("glu", meta(8, 12288), meta(8, 12288), meta(8, 12288), fn="silu"),
        48, 0, (WIDE_LOAD, WIDE_STORE),
    ),
    "matvec, 1 row": Specimen(
        lambda: matvec(meta(1, 4096), meta(4096, 4096), None, None, meta(1, 4096), WORK),
        64, 16384, (STREAMED, COPIED), STREAMED,
    ),
    "matvec, 4 rows": Specimen(
        lambda: matvec(meta(4, 4096), meta(4096, 4096), None, None, meta(4, 4096), WORK),
        96, 16384, (STREAMED, COPIED), STREAMED,
    ),
    "matvec, 1 row, split": Specimen(
        lambda: matvec(meta(1, 4096), meta(512, 4096), None, floats(512), meta(1, 512), WORK),
        64, 16384, (STREAMED, r"atom\.\S*acq_rel"), STREAMED,
    ),
    "matvec, gate and up, 1 row": Specimen(
        lambda: matvec(meta(1, 4096), meta(24576, 4096), None, None, meta(1, 12288), WORK, "silu"),
        96, 32768, (STREAMED, COPIED), STREAMED,
    ),
    "matvec, gate and up, 4 rows": Specimen(
        lambda: matvec(meta(4, 4096), meta(24576, 4096), None, None, meta(4, 12288), WORK, "silu"),
        168, 32768, (STREAMED, COPIED), STREAMED,
    ),
    "matvec, e4m3": Specimen(
        lambda: matvec(meta(1, 4096), meta(4096, 4096, dtype=FP8), floats(4096), None, meta(1, 4096), WORK),
        64, 16384, (STREAMED, COPIED), STREAMED,
    ),
}  # fmt: skip


def matvec_family() -> Iterator[tuple[Config, Call]]:
    for config in matvecs.CANDIDATES:
        x, out = meta(4, 4096), meta(4, 4096)
        yield config, matvec(x, meta(4096, 4096), None, None, out, WORK, config=config)


# All candidates of a kernel, for `make gpu-kernels`.
FAMILIES: dict[str, Callable[[], Iterator[tuple[Config, Call]]]] = {"matvec": matvec_family}
