"""What codes of 4 and 8 bits mean, in registers: the decoding that the kernels for `weights.Blocks` share.

Codes are read as words of 32 bits.  A block of 32 weights is 4 words of 4-bit codes (word i has weights
4i..4i+3 in its low halves of bytes, 16+4i.. in the high ones) or 8 words of 8-bit codes.

To convert an integer into a float takes as long as two fp32 instructions, on sm_80 as long as four.
Instead the code is put under the bits of 2^23, so that its float is 2^23 + code, and that is subtracted:
two instructions, both exact.  Codes that lie further left in their word need no shift: the float is then
code * 2^S, and the row of x that meets it has been multiplied by 2^-S, once for all rows of weights. FP4's
bits are those of a small float16.  Levels of a table are fetched from it (rare formats).
"""

from __future__ import annotations

import triton
import triton.language as tl

# How far left each of a word's eight codes lies when it is taken: lows of bytes 0 to 3, then highs.
# Those beyond 16 would leave the 23 bits of a float: they are taken after a shift by 12.
LEFT_4 = tl.constexpr((0, 8, 16, 12, 4, 12, 8, 16))
SHIFTED_4 = tl.constexpr((0, 0, 0, 12, 0, 0, 12, 12))
PLACE_4 = tl.constexpr((0, 8, 16, 24, 4, 12, 20, 28))
LEFT_8 = tl.constexpr((0, 8, 0, 8))
SHIFTED_8 = tl.constexpr((0, 0, 16, 16))


@triton.jit
def code4(word, j: tl.constexpr, levels, ZERO: tl.constexpr, FP4: tl.constexpr):
    """Code j of words as float32: (code - ZERO) * 2^LEFT_4[j], a level, or FP4's number * 2^-15 of a
    level."""
    if levels is None:
        bits = word if SHIFTED_4[j] == 0 else word >> SHIFTED_4[j]
        there = (bits & (15 << LEFT_4[j])) | 0x4B000000
        value = there.to(tl.float32, bitcast=True) - (8388608.0 + ZERO * (1 << LEFT_4[j]))
    elif FP4:
        bits = word >> PLACE_4[j]
        half = ((bits & 7) << 9) | ((bits & 8) << 12)
        value = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = tl.load(levels + ((word >> PLACE_4[j]) & 15))
    return value


@triton.jit
def code8(word, j: tl.constexpr, ZERO: tl.constexpr):
    """Code j of words whose bytes had their top bits turned (^ 0x80808080): (code - ZERO) * 2^LEFT_8[j]."""
    bits = word if SHIFTED_8[j] == 0 else word >> SHIFTED_8[j]
    there = (bits & (255 << LEFT_8[j])) | 0x4B000000
    return there.to(tl.float32, bitcast=True) - (8388608.0 + (128 + ZERO) * (1 << LEFT_8[j]))


@triton.jit
def halves(x, N: tl.constexpr):
    """[N, 4] -> four [N]."""
    even, odd = tl.split(tl.reshape(x, (N, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def facing4(x, NB: tl.constexpr, PLAIN: tl.constexpr):
    """A row's [NB * 32] numbers as what faces each of the eight codes of a word: eight [NB * 4]."""
    by_words = tl.reshape(tl.permute(tl.reshape(x, (NB, 2, 4, 4)), (0, 2, 3, 1)), (NB * 4, 4, 2))
    low, high = tl.split(by_words)
    a0, a1, a2, a3 = halves(low, NB * 4)
    b0, b1, b2, b3 = halves(high, NB * 4)
    if PLAIN:
        a1, a2, a3 = a1 * 0.00390625, a2 * 0.0000152587890625, a3 * 0.000244140625
        b0, b1, b2, b3 = b0 * 0.0625, b1 * 0.000244140625, b2 * 0.00390625, b3 * 0.0000152587890625
    return a0, a1, a2, a3, b0, b1, b2, b3


@triton.jit
def facing8(x, NB: tl.constexpr):
    """Likewise for words of four codes: four [NB * 8]."""
    x0, x1, x2, x3 = halves(tl.reshape(x, (NB * 8, 4)), NB * 8)
    return x0, x1 * 0.00390625, x2, x3 * 0.00390625


@triton.jit
def exponents(e):
    """2^(e - 128) as float32; below 2^-126 it is subnormal."""
    wide = e.to(tl.int32)
    bits = tl.where(wide < 2, 0x00200000 << tl.minimum(wide, 1), (wide - 1) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def group_scales(
    scales, supers, row, group, inside, N_GROUPS, N_SUPERS, GROUP: tl.constexpr, FP4: tl.constexpr
):
    """Scales of groups [.., n] of rows, as float32: a float16, 2^(e-128), or an integer times its super
    scale.

    FP4's come times 2^15, what `code4` leaves out.
    """
    s = tl.load(scales + row * N_GROUPS + group, mask=inside, other=0)
    if FP4:
        y = exponents(s) * 32768.0
    elif supers is not None:
        of = tl.load(supers + row * N_SUPERS + group // (256 // GROUP), mask=inside, other=0.0)
        y = of.to(tl.float32) * s.to(tl.float32)
    else:
        y = s.to(tl.float32)
    return y
