// Where the packed bytes of each quantized format lie: read by repack.cpp, which writes them, and by tile.h, which multiplies.
//
// A panel holds 8 output rows. Along k it is a list of blocks of 32 weights of each row; the K formats put a header of float16
// scales before each 8 blocks. All numbers are as the file has them: nothing is rounded, little grows.
//   header   [d: 8 x f16] [dmin: 8 x f16]                    formats with a scale over 256
//   block    [scales of the block] [low plane] [high plane]
// A plane holds the low or the high bits of 8 x 32 codes. Vector v (0..3) of a block are the weights k = 4v .. 4v+3 of the first
// half ("lo") and of the second half, k + 16 ("hi"); in each the byte of row r and weight k is 4r + k % 4.
//   4 bits: 4 x 32 bytes, vector v: lo in the low nibble, hi in the high one
//   2 bits: 2 x 32 bytes, vector v: byte vector v / 2, lo at bit 2 (v % 2), hi at bit 4 + 2 (v % 2)
//   1 bit:  32 bytes, vector v: lo at bit v, hi at bit 4 + v
//   8 bits: 8 x 32 bytes: lo of v = 0..3, then hi
#pragma once

#include "matmul.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace layout {

enum class Scale {
    Half,        // block: d f16[8]
    HalfMin,     // block: d f16[8], m f16[8]                    w = d q + m
    Exponent,    // block: e u8[8]                               w = 2^(e - 128) q
    Super,       // header d; block: s i8[8]                     w = d s q
    SuperMin,    // header d, dmin; block: s u8[8], m u8[8]      w = d s q - dmin m
    Super16,     // header d; block: s i8[8] of lo, of hi        w = d s q
    Super16Min,  // header d, dmin; block: s | m << 4, u8[8] of lo, of hi
};

enum class Table { None, Iq4, Mxfp4 };

struct Spec {
    int low_bits;   // planes of the code
    int high_bits;
    int offset;     // log2 of what is subtracted from the code; -1 for nothing. A centred sum fits int16, see tile.h
    Scale scale;
    Table table;
};

constexpr Spec spec_of(Format f) {
    switch (f) {
        case Format::Q4_0: return {4, 0, 3, Scale::Half, Table::None};
        case Format::Q4_1: return {4, 0, -1, Scale::HalfMin, Table::None};
        case Format::Q5_0: return {4, 1, 4, Scale::Half, Table::None};
        case Format::Q5_1: return {4, 1, 4, Scale::HalfMin, Table::None};
        case Format::Q8_0: return {8, 0, 7, Scale::Half, Table::None};
        case Format::Q2_K: return {2, 0, -1, Scale::Super16Min, Table::None};
        case Format::Q3_K: return {2, 1, 2, Scale::Super16, Table::None};
        case Format::Q4_K: return {4, 0, -1, Scale::SuperMin, Table::None};
        case Format::Q5_K: return {4, 1, 4, Scale::SuperMin, Table::None};
        case Format::Q6_K: return {4, 2, 5, Scale::Super16, Table::None};
        case Format::IQ4_NL: return {4, 0, 7, Scale::Half, Table::Iq4};
        case Format::IQ4_XS: return {4, 0, 7, Scale::Super, Table::Iq4};
        case Format::MXFP4: return {4, 0, 4, Scale::Exponent, Table::Mxfp4};
        default: return {0, 0, -1, Scale::Half, Table::None};
    }
}

constexpr bool is_super(Scale s) { return s >= Scale::Super; }
constexpr bool has_min(Scale s) { return s == Scale::HalfMin || s == Scale::SuperMin || s == Scale::Super16Min; }
constexpr bool by_halves(Scale s) { return s >= Scale::Super16; }  // a scale for each 16 weights
constexpr int blocks_per_header(Scale s) { return is_super(s) ? 8 : 1; }
constexpr size_t header_bytes(Scale s) { return is_super(s) ? (has_min(s) ? 32 : 16) : 0; }
constexpr size_t scale_bytes(Scale s) {
    switch (s) {
        case Scale::Half: return 16;
        case Scale::HalfMin: return 32;
        case Scale::Exponent:
        case Scale::Super: return 8;
        default: return 16;
    }
}
constexpr size_t plane_bytes(int bits) { return static_cast<size_t>(bits) * 32; }
constexpr size_t block_bytes(const Spec& s) { return scale_bytes(s.scale) + plane_bytes(s.low_bits) + plane_bytes(s.high_bits); }

// The values of the 16 codes, moved up to be unsigned: IQ4 by 128, MXFP4 (in halves) by 16.
constexpr uint8_t kIq4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t kMxfp4[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

// One block of 32 activations, a cache line. Sums are negative, so that adding them, or a multiple, centres a sum of codes; those
// in int16 are by lane: of q with k % 4 in {0, 1} and with k % 4 in {2, 3}. A half is 16 of k.
struct Block {
    float scale;      // amax / 127
    float sum;        // scale * (sum of q): for formats with a minimum
    int32_t minus_8;  // -8 (sum of q)
    int16_t minus[2];
    int16_t half_minus[2][2];
    int16_t half_minus_32[2][2];  // 32 times that: at most 8 * 127 * 32 = 32512
    int8_t q[32];
};
static_assert(sizeof(Block) == 64, "kernels step over activations by 64 bytes");

}  // namespace layout
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
