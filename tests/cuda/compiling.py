"""Compiles a kernel's `Call` for a GPU that is not here, and says what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvasir.backends.cuda.kernels.common import Call

CAPABILITIES = (80, 90, 100)
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may have
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8",
}  # fmt: skip
DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Compiled:
    """What a kernel needs of one multiprocessor, and its PTX."""

    registers: int  # a thread
    spilled: int  # bytes a thread
    shared: int  # bytes a program
    n_warps: int
    ptx: str

    def has(self, instruction: str) -> bool:
        return re.search(instruction, self.ptx) is not None

    def place(self, instruction: str) -> int:
        """Where the first such instruction stands in the text; fails if there is none."""
        found = re.search(instruction, self.ptx)
        assert found, f"no {instruction}"
        return found.start()


def compiled(call: Call, capability: int) -> Compiled:
    """As the program's launch would compile it: tensors and multiples of 16 are known to be divisible."""
    constants = dict(call.constants_for(capability))
    signature, attributes = {}, {}
    for at, p in enumerate(call.kernel.params):
        name = p.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        given = call.arguments[name]
        if given is None or (isinstance(given, int) and given == 1 and not p.do_not_specialize):
            signature[name], constants[name] = "constexpr", given
        elif isinstance(given, torch.Tensor):
            signature[name], attributes[(at,)] = "*" + TYPES[given.dtype], DIVISIBLE
        elif isinstance(given, int):
            signature[name] = "i32"
            if given % 16 == 0 and not p.do_not_specialize:
                attributes[(at,)] = DIVISIBLE
        else:
            signature[name] = "fp32"
    source = ASTSource(call.kernel, signature, constants, attributes)
    options = {"num_warps": call.config.n_warps, "num_stages": call.config.n_stages}
    if capability >= 90:
        options["launch_pdl"] = True
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = resources(made.asm["cubin"], made.metadata.name)
    return Compiled(registers, spilled, made.metadata.shared, made.metadata.num_warps, made.asm["ptx"])


def resources(cubin: bytes, kernel: str) -> tuple[int, int]:
    """Registers and stack bytes a thread, as cuobjdump reads them in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        said = subprocess.run([cuobjdump(), "-res-usage", f.name], capture_output=True, text=True, check=True)
    text = said.stdout + said.stderr
    found = re.search(rf"Function {kernel}:\s*REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


@cache
def cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
