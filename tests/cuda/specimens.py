"""Calls of every kernel as an 8B model makes them, on tensors without memory, and what each compiles to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kvasir.backends.cuda.kernels import attend, inputs, recurrent, rows
from kvasir.backends.cuda.kernels import matvec as matvecs
from kvasir.backends.cuda.kernels import matvec_codes as matvec_coded
from kvasir.backends.cuda.kernels.common import Call, Config
from kvasir.backends.cuda.kernels.elementwise import elementwise
from kvasir.backends.cuda.kernels.face import Attention, Paged, Rope, Sampling, Step
from kvasir.backends.cuda.kernels.matvec import Workspace, matvec
from kvasir.backends.cuda.kernels.matvec_codes import matvec_codes
from kvasir.backends.cuda.kernels.norm import norm
from kvasir.backends.cuda.kernels.sample import sample
from kvasir.backends.cuda.weights import Blocks, Dense, Fp8, Weight

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
U8, I8, I32 = torch.uint8, torch.int8, torch.int32


def codes(form: str, O: int, D: int) -> Blocks:  # noqa: E741
    """Weights of 4 or 8 bits as `weights.load` lays them out."""
    four, eight = meta(O, D // 2, dtype=U8), meta(O, D, dtype=I8)
    half, supers = meta(O, D // 32, dtype=F16), meta(O, D // 256, dtype=F16)
    small, low = meta(O, D // 32, dtype=I8), meta(O, D // 32, dtype=U8)
    return {
        "Q4_0": Blocks(four, half, None, None, None, None, 4, 32, 8),
        "Q4_K": Blocks(four, small, low, supers, supers, None, 4, 32, 0),
        "Q6_K": Blocks(eight, meta(O, D // 16, dtype=I8), None, supers, None, None, 8, 16, 32),
        "Q8_0": Blocks(eight, half, None, None, None, None, 8, 32, 0),
        "MXFP4": Blocks(four, low, None, None, None, floats(16), 4, 32, 0, True),
    }[form]


def by_codes(form: str, rows: int = 1, fn: str = "") -> Callable[[], Call]:
    outputs = 12288 if fn else 4096
    weights = outputs * 2 if fn else outputs
    return lambda: matvec_codes(
        meta(rows, 4096), codes(form, weights, 4096), None, meta(rows, outputs), WORK, fn
    )


def step(rows: int, sequences: int) -> Step:
    def ids(*shape: int) -> torch.Tensor:
        return meta(*shape, dtype=I32)

    each = ids(sequences)
    return Step(
        ids(rows), ids(rows), ids(sequences + 1), ids(rows), each, ids(sequences, 512), each, each, each,
        ids(max(rows // 64, 1), 2), rows // sequences,
    )  # fmt: skip


def cache(dtype: torch.dtype = BF16, width: int = 128) -> Paged:
    return Paged(meta(1000, 8, 16, width, dtype=dtype), meta(1000, 8, 16, width, dtype=dtype))


def rows_of(w: Weight, n: int = 16) -> Callable[[], Call]:
    return lambda: rows.some_rows(meta(n, 4096), w, None, meta(n, 4096), WORK)


def of_experts() -> Call:
    """Eight of 128 experts for a row of 64."""
    stack = Dense(meta(128, 1536, 2048))
    pairs = meta(4096, dtype=I32), meta(256, dtype=I32)
    return rows.some_rows(meta(64, 2048), stack, floats(128, 1536), meta(512, 1536), WORK, *pairs, 8, 16)


def delta_call() -> Call:
    q, v, gates = meta(4, 2048), meta(4, 4096), floats(4, 32)
    return recurrent.delta(q, q, v, gates, gates, step(4, 4), floats(5, 32, 128, 128), 16, 32, meta(4, 4096))


def conv_call(which: int) -> Callable[[], Call]:
    return lambda: recurrent.conv(
        meta(4, 8192), floats(8192, 4), step(4, 4), floats(5, 3 * 8192), meta(4, 8192)
    )[which]


def choice() -> Call:
    how = Sampling(floats(4), meta(4, dtype=I32), floats(4), floats(4), meta(4, dtype=torch.float64))
    return sample(floats(4, 151936), how, meta(4, dtype=I32))


TOLD = Attention(32, 8, 0.088)
ALL_TOLD = Attention(64, 8, 0.125, window=128, softcap=30.0, sinks=floats(64))

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
    "Q4_0, 1 row": Specimen(by_codes("Q4_0"), 168, 8192, (STREAMED,), STREAMED),
    "Q4_0, gate and up": Specimen(by_codes("Q4_0", 1, "silu"), 168, 8192, (STREAMED,), STREAMED),
    "Q4_0, 2 rows": Specimen(by_codes("Q4_0", 2), 168, 8192, (STREAMED,), STREAMED),
    "Q4_K, 1 row": Specimen(by_codes("Q4_K"), 168, 8192, (STREAMED,), STREAMED),
    "Q6_K, 1 row": Specimen(by_codes("Q6_K"), 168, 8192, (STREAMED,), STREAMED),
    "Q8_0, 1 row": Specimen(by_codes("Q8_0"), 168, 8192, (STREAMED,), STREAMED),
    "MXFP4, 1 row": Specimen(by_codes("MXFP4"), 168, 8192, (STREAMED,), STREAMED),
    "decode attention": Specimen(
        lambda: attend.decode(meta(4, 4096), cache(), step(4, 4), TOLD, meta(4, 4096), WORK),
        168, 120 * 1024, (COPIED, r"mma\.sync", r"atom\.\S*acq_rel"),
    ),
    "decode attention, windows, caps, sinks": Specimen(
        lambda: attend.decode(meta(4, 4096), cache(F16, 64), step(4, 4), ALL_TOLD, meta(4, 4096), WORK),
        168, 120 * 1024, (COPIED, r"mma\.sync"),
    ),
    "attention by pieces": Specimen(
        lambda: attend.by_pieces(meta(256, 4096), cache(), step(256, 2), TOLD, meta(256, 4096)),
        255, 160 * 1024, (COPIED,), "", (r"wgmma\.mma_async",),
    ),
    "attention by pieces, windows, caps, sinks": Specimen(
        lambda: attend.by_pieces(meta(256, 4096), cache(F16, 64), step(256, 2), ALL_TOLD, meta(256, 4096)),
        255, 160 * 1024, (COPIED,), "", (r"wgmma\.mma_async",),
    ),
    "inputs of attention": Specimen(
        lambda: inputs.inputs(
            meta(4, 4096), meta(4, 1024), meta(4, 1024), floats(128), floats(128), 1e-6,
            Rope(floats(4096, 64), floats(4096, 64)), 32, 8, step(4, 4), cache(), meta(4, 4096), None),
        64, 256, (), r"ld\.global",
    ),
    "16 rows": Specimen(rows_of(Dense(meta(4096, 4096))), 168, 100 * 1024, (COPIED, r"mma\.sync")),
    "64 rows": Specimen(
        rows_of(Dense(meta(4096, 4096)), 64), 168, 120 * 1024, (COPIED,), "", (r"wgmma\.mma_async",)
    ),
    "16 rows, e4m3": Specimen(
        rows_of(Fp8(meta(4096, 4096, dtype=FP8), floats(4096))), 255, 100 * 1024, (COPIED,)
    ),
    "16 rows, Q4_0": Specimen(
        rows_of(codes("Q4_0", 4096, 4096)), 255, 100 * 1024, (r"cp\.async", r"mma\.sync")
    ),
    "64 rows, Q4_K": Specimen(rows_of(codes("Q4_K", 4096, 4096), 64), 255, 120 * 1024, (r"cp\.async",)),
    "16 rows, Q8_0": Specimen(rows_of(codes("Q8_0", 4096, 4096)), 255, 100 * 1024, (r"cp\.async",)),
    "16 rows, MXFP4": Specimen(rows_of(codes("MXFP4", 4096, 4096)), 255, 100 * 1024, (r"cp\.async",)),
    "experts": Specimen(of_experts, 168, 100 * 1024, (COPIED, r"mma\.sync")),
    "decoded rows": Specimen(
        lambda: rows.decoded(codes("Q4_K", 4096, 4096), 0, meta(4096, 4096)), 128, 32 * 1024, (WIDE_STORE,)
    ),
    "choosing": Specimen(choice, 128, 1024, (WIDE_LOAD,)),
    "delta": Specimen(delta_call, 128, 8192, (WIDE_LOAD, WIDE_STORE)),
    "convolution": Specimen(conv_call(0), 64, 4096, (r"ld\.global",)),
    "what a convolution keeps": Specimen(conv_call(1), 64, 4096, (r"ld\.global",)),
}  # fmt: skip


def families() -> Iterator[tuple[Config, Call]]:
    """Every candidate of every kernel that has some, for `make gpu-kernels`."""
    for config in matvecs.CANDIDATES:
        x, out = meta(4, 4096), meta(4, 4096)
        yield config, matvec(x, meta(4096, 4096), None, None, out, WORK, config=config)
    for config in matvec_coded.CANDIDATES:
        w = codes("Q4_K", 4096, 4096)
        yield config, matvec_codes(meta(1, 4096), w, None, meta(1, 4096), WORK, config=config)
    for config in rows.CANDIDATES:
        for weight in (Dense(meta(4096, 4096)), codes("Q4_0", 4096, 4096)):
            yield config, rows.some_rows(meta(16, 4096), weight, None, meta(16, 4096), WORK, config=config)
    for config in attend.CANDIDATES:
        q, pieces = meta(4, 4096), meta(256, 4096)
        yield config, attend.decode(q, cache(), step(4, 4), TOLD, meta(4, 4096), WORK, config)
        yield config, attend.by_pieces(pieces, cache(), step(256, 2), TOLD, meta(256, 4096), config)
