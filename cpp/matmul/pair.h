// Two panels side by side, and the sums of four that CPUs with VNNI take: lanes 0..7 are the rows of one panel, 8..15 those of the
// next. One register of AVX-512, two of AVX-VNNI; and with KVASIR_EMULATE both are written with AVX2, so that the kernels above can
// be run, bit for bit, where no such CPU is at hand (cpp/emulated). The same for the tiles of AMX.
//
// Everything here is one instruction a function, or its emulation: what only such a CPU can show to be wrong is in this file.
#pragma once

#include <cstdint>
#include <cstring>

#include "../simd.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define KVASIR_FOURS 512
#elif defined(__AVXVNNI__) || defined(KVASIR_EMULATE)
#define KVASIR_FOURS 256
#endif

#if defined(KVASIR_FOURS) && (defined(KVASIR_EMULATE) || (defined(__AMX_TILE__) && defined(__AMX_INT8__)))
#define KVASIR_AMX 1
#endif

#ifdef KVASIR_FOURS

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace simd {

#if KVASIR_FOURS == 512

using Pair = __m512i;
using PairFloats = __m512;

inline Pair beside(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }
inline PairFloats beside(__m256 a, __m256 b) { return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }
inline Floats half_of(PairFloats v, int i) { return i ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v); }
inline Pair load_pair(const void* p) { return _mm512_loadu_si512(p); }
inline PairFloats zero_pair() { return _mm512_setzero_ps(); }
inline PairFloats pair_of(float v) { return _mm512_set1_ps(v); }
inline Pair pair_of_shorts(int v) { return _mm512_set1_epi16(static_cast<short>(v)); }
inline Pair repeat4_pair(const void* p) {  // 4 bytes, in each of the 16 lanes
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}
// acc + u0 s0 + u1 s1 + u2 s2 + u3 s3 in each int32 lane: unsigned bytes by signed ones, nothing saturates.
inline Pair dot4(Pair acc, Pair u, Pair s) { return _mm512_dpbusd_epi32(acc, u, s); }
inline Pair dot_shorts(Pair a, Pair b) { return _mm512_madd_epi16(a, b); }
inline Pair add_ints(Pair a, Pair b) { return _mm512_add_epi32(a, b); }
inline Pair mul_ints(Pair a, Pair b) { return _mm512_mullo_epi32(a, b); }
inline PairFloats to_floats(Pair a) { return _mm512_cvtepi32_ps(a); }
inline PairFloats mul(PairFloats a, PairFloats b) { return _mm512_mul_ps(a, b); }
inline PairFloats fma(PairFloats a, PairFloats b, PairFloats c) { return _mm512_fmadd_ps(a, b, c); }

#else

struct Pair {
    Ints of[2];
};
struct PairFloats {
    Floats of[2];
};

// acc + u0 s0 + u1 s1 + u2 s2 + u3 s3 in each int32 lane: unsigned bytes by signed ones, nothing saturates.
inline Ints dot4(Ints acc, Bytes u, Bytes s) {
#ifdef KVASIR_EMULATE
    const Ints even = dot_shorts(even_codes(u), even_numbers(s)), odd = dot_shorts(odd_codes(u), odd_numbers(s));
    return add_ints(acc, add_ints(even, odd));
#else
    return _mm256_dpbusd_avx_epi32(acc, u, s);
#endif
}

inline Pair beside(Ints a, Ints b) { return {{a, b}}; }
inline PairFloats beside(Floats a, Floats b) { return {{a, b}}; }
inline Floats half_of(const PairFloats& v, int i) { return v.of[i]; }
inline Pair load_pair(const void* p) { return {{load_bytes(p), load_bytes(static_cast<const uint8_t*>(p) + 32)}}; }
inline PairFloats zero_pair() { return {{zero_floats(), zero_floats()}}; }
inline PairFloats pair_of(float v) { return {{all(v), all(v)}}; }
inline Pair pair_of_shorts(int v) { return {{all_shorts(v), all_shorts(v)}}; }
inline Pair repeat4_pair(const void* p) { return {{repeat4(p), repeat4(p)}}; }
inline Pair dot4(const Pair& a, const Pair& u, const Pair& s) { return {{dot4(a.of[0], u.of[0], s.of[0]), dot4(a.of[1], u.of[1], s.of[1])}}; }
inline Pair dot_shorts(const Pair& a, const Pair& b) { return {{dot_shorts(a.of[0], b.of[0]), dot_shorts(a.of[1], b.of[1])}}; }
inline Pair add_ints(const Pair& a, const Pair& b) { return {{add_ints(a.of[0], b.of[0]), add_ints(a.of[1], b.of[1])}}; }
inline Pair mul_ints(const Pair& a, const Pair& b) {
    return {{_mm256_mullo_epi32(a.of[0], b.of[0]), _mm256_mullo_epi32(a.of[1], b.of[1])}};
}
inline PairFloats to_floats(const Pair& a) { return {{to_floats(a.of[0]), to_floats(a.of[1])}}; }
inline PairFloats mul(const PairFloats& a, const PairFloats& b) { return {{mul(a.of[0], b.of[0]), mul(a.of[1], b.of[1])}}; }
inline PairFloats fma(const PairFloats& a, const PairFloats& b, const PairFloats& c) {
    return {{fma(a.of[0], b.of[0], c.of[0]), fma(a.of[1], b.of[1], c.of[1])}};
}

#endif

#ifdef KVASIR_AMX

// Sums [16 rows of x][16 outputs] in a tile: x as 16 rows of 4 Fours bytes, signed; codes as Fours rows of 16 groups of four,
// unsigned, which is how an unpacked block has them. The settings of the tiles hold for a thread until `tiles_off`.
#ifndef KVASIR_EMULATE

struct alignas(64) TileShapes {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];  // of sums, x, codes
    uint8_t rows[16];
};

// GCC's headers do not tell the compiler all that these instructions read: so the shapes are constants, and `settle` comes before
// loads.
template <int Fours> constexpr TileShapes kShapes = {1, 0, {}, {64, 4 * Fours, 64}, {16, 16, Fours}};

template <int Fours> inline void tiles_on() { _tile_loadconfig(&kShapes<Fours>); }
inline void tiles_off() { _tile_release(); }

template <int Fours> inline void dot_tile(const int8_t* x, size_t x_stride, const void* codes, int32_t (*sums)[16]) {
    settle();
    _tile_zero(0);
    _tile_loadd(1, x, x_stride);
    _tile_loadd(2, codes, 64);
    _tile_dpbsud(0, 1, 2);
    _tile_stored(0, sums, 64);
}

#else

template <int Fours> inline void tiles_on() {}
inline void tiles_off() {}

template <int Fours> inline void dot_tile(const int8_t* x, size_t x_stride, const void* codes, int32_t (*sums)[16]) {
    const auto* u = static_cast<const uint8_t*>(codes);
    for (int row = 0; row < 16; row++)
        for (int o = 0; o < 16; o++) {
            int32_t sum = 0;
            for (int k = 0; k < 4 * Fours; k++) sum += x[static_cast<size_t>(row) * x_stride + k] * u[k / 4 * 64 + 4 * o + k % 4];
            sums[row][o] = sum;
        }
}

#endif
#endif

}  // namespace simd
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir

#endif
