"""Number formats of weights: one table, a row a format: name, GGUF type, block, bytes, decoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kvasir.quant import decode
from kvasir.records import dataclass

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """A way to write a row of weights as bytes: `block` weights in `block_bytes` bytes, block after block.

    `ggml_type` is the number that GGUF gives the format, -1 where it has none.
    `decode(raw [n, row bytes], width)` gives float32 [n, width].
    """

    name: str
    ggml_type: int
    block: int
    block_bytes: int
    decode: Callable[[Bytes, int], Floats]

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights; `width` must be a multiple of `block`."""
        assert width % self.block == 0, f"{width} is not a multiple of {self.block}"
        return width // self.block * self.block_bytes


F32 = Format("F32", 0, 1, 4, decode.plain("<f4"))
F16 = Format("F16", 1, 1, 2, decode.plain("<f2"))
BF16 = Format("BF16", 30, 1, 2, decode.bf16)

Q4_0 = Format("Q4_0", 2, 32, 18, decode.blocks(decode.Q4_0, decode.q4_0_floats))
Q4_1 = Format("Q4_1", 3, 32, 20, decode.blocks(decode.Q4_1, decode.q4_1_floats))
Q5_0 = Format("Q5_0", 6, 32, 22, decode.blocks(decode.Q5_0, decode.q5_0_floats))
Q5_1 = Format("Q5_1", 7, 32, 24, decode.blocks(decode.Q5_1, decode.q5_1_floats))
Q8_0 = Format("Q8_0", 8, 32, 34, decode.blocks(decode.Q8_0, decode.q8_0_floats))
Q2_K = Format("Q2_K", 10, 256, 84, decode.blocks(decode.Q2_K, decode.q2_k_floats))
Q3_K = Format("Q3_K", 11, 256, 110, decode.blocks(decode.Q3_K, decode.q3_k_floats))
Q4_K = Format("Q4_K", 12, 256, 144, decode.blocks(decode.Q4_K, decode.q4_k_floats))
Q5_K = Format("Q5_K", 13, 256, 176, decode.blocks(decode.Q5_K, decode.q5_k_floats))
Q6_K = Format("Q6_K", 14, 256, 210, decode.blocks(decode.Q6_K, decode.q6_k_floats))
IQ4_NL = Format("IQ4_NL", 20, 32, 18, decode.blocks(decode.IQ4_NL, decode.iq4_nl_floats))
IQ4_XS = Format("IQ4_XS", 23, 256, 136, decode.blocks(decode.IQ4_XS, decode.iq4_xs_floats))
MXFP4 = Format("MXFP4", 39, 32, 17, decode.blocks(decode.MXFP4, decode.mxfp4_floats))

# Not weights of a matrix, but a file may carry them: position ids, masks, packed blocks of another layout.
U8 = Format("U8", -1, 1, 1, decode.plain("u1"))
BOOL = Format("BOOL", -1, 1, 1, decode.plain("u1"))
I8 = Format("I8", 24, 1, 1, decode.plain("i1"))
I16 = Format("I16", 25, 1, 2, decode.plain("<i2"))
I32 = Format("I32", 26, 1, 4, decode.plain("<i4"))
I64 = Format("I64", 27, 1, 8, decode.plain("<i8"))
F64 = Format("F64", 28, 1, 8, decode.plain("<f8"))

WEIGHT_FORMATS: tuple[Format, ...] = (
    *(F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4),
)
FORMATS: dict[str, Format] = {f.name: f for f in (*WEIGHT_FORMATS, U8, BOOL, I8, I16, I32, I64, F64)}
BY_GGML_TYPE: dict[int, Format] = {f.ggml_type: f for f in FORMATS.values() if f.ggml_type >= 0}

# Formats that GGUF files may use and Kvasir does not read, for the message that says so.
UNREAD_GGML_TYPES: dict[int, str] = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{21: "IQ3_S", 22: "IQ2_S", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"},
    **{34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"},
    **{40: "NVFP4", 41: "Q1_0"},
}
