// Eight float lanes, thirty-two byte lanes, and the few operations the kernels need of them: AVX2 + FMA + F16C, or plain loops
// that a compiler turns into whatever vectors it has. Compile with -ffp-contract=off: a fused multiply-add happens where fma()
// is written and nowhere else, so that two instantiations of one template cannot round differently.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define KVASIR_AVX2 1
#include <immintrin.h>
#endif

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace simd {

// float16 bits <-> float32, exact one way and rounded to nearest even the other; no branch, so that loops over it vectorize.
inline float float_of_half(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t body = static_cast<uint32_t>(h & 0x7fffu) << 13;
    const uint32_t scale_bits = 0x77800000u;  // 2^112 moves the exponent's bias from 15 to 127, subnormals included
    float scale, value;
    std::memcpy(&scale, &scale_bits, 4);
    std::memcpy(&value, &body, 4);
    value *= scale;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits |= (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t half_of_float(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00u;
    if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
    if (bits < 0x38800000u) {                        // subnormal: adding 0.5 leaves round(value * 2^24) in the low bits
        float value;
        std::memcpy(&value, &bits, 4);
        value += 0.5f;
        std::memcpy(&bits, &value, 4);
        return sign | static_cast<uint16_t>(bits - 0x3f000000u);
    }
    bits += 0xc8000fffu + ((bits >> 13) & 1u);  // rebias the exponent, round to nearest even
    return sign | static_cast<uint16_t>(bits >> 13);
}

#ifdef KVASIR_AVX2

using Floats = __m256;  // 8 float32
using Ints = __m256i;   // 8 int32
using Shorts = __m256i; // 16 int16
using Bytes = __m256i;  // 32 int8 or uint8

inline Floats zero_floats() { return _mm256_setzero_ps(); }
inline Floats all(float v) { return _mm256_set1_ps(v); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats minus(Floats a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }   // a * b + c
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); } // c - a * b
inline Floats load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline Floats load_bfloat(const void* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16));
}
inline Ints load_u8(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
inline Ints load_i8(const void* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Floats as_floats(Ints v) { return _mm256_castsi256_ps(v); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
template <int N> inline Ints shift_left_ints(Ints a) { return _mm256_slli_epi32(a, N); }
template <int N> inline Ints shift_right_ints(Ints a) { return _mm256_srli_epi32(a, N); }
inline Ints and_ints(Ints a, int32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(mask)); }
inline Ints max_ints(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline Ints all_ints(int32_t v) { return _mm256_set1_epi32(v); }
// Each int32 (of int16 size) into both int16 halves of its lane.
inline Shorts twice(Ints a) { return _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(a, 16)); }

inline Bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Bytes repeat4(const void* p) {  // 4 bytes, in each of the 8 lanes
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}
inline void store_bytes(void* p, Bytes a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
template <int N> inline Bytes bits_right(Bytes a, int mask) {  // each byte >> N, and mask; mask must drop what crosses a byte
    return _mm256_and_si256(N ? _mm256_srli_epi16(a, N) : a, _mm256_set1_epi8(static_cast<char>(mask)));
}
template <int N> inline Bytes bits_left(Bytes a, int mask) {
    return _mm256_and_si256(N ? _mm256_slli_epi16(a, N) : a, _mm256_set1_epi8(static_cast<char>(mask)));
}
inline Bytes or_bytes(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
inline Bytes load_table(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Bytes look_up(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }  // index 0..15

inline Shorts zero_shorts() { return _mm256_setzero_si256(); }
inline Shorts all_shorts(int v) { return _mm256_set1_epi16(static_cast<short>(v)); }
inline Shorts load_shorts(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_shorts(int16_t* p, Shorts a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline Shorts add_shorts(Shorts a, Shorts b) { return _mm256_add_epi16(a, b); }  // wraps: a sum that fits at the end is exact
inline Shorts sub_shorts(Shorts a, Shorts b) { return _mm256_sub_epi16(a, b); }
template <int N> inline Shorts shift_left(Shorts a) { return _mm256_slli_epi16(a, N); }
inline Shorts dot_bytes(Bytes u, Bytes s) { return _mm256_maddubs_epi16(u, s); }  // unsigned by signed, pairs added
inline Ints dot_shorts(Shorts a, Shorts b) { return _mm256_madd_epi16(a, b); }    // pairs added
inline Shorts even_codes(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi16(255)); }  // bytes 0, 2 .. 30, unsigned
inline Shorts odd_codes(Bytes a) { return _mm256_srli_epi16(a, 8); }
inline Shorts even_numbers(Bytes a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }  // signed
inline Shorts odd_numbers(Bytes a) { return _mm256_srai_epi16(a, 8); }
// Keeps the compiler from reassociating the sums around it, which would spill the tile.
inline void pin(Shorts& v) { asm volatile("" : "+x"(v)); }

#else

template <class E, int N> struct Lanes { alignas(16) E v[N]; };
using Floats = Lanes<float, 8>;
using Ints = Lanes<int32_t, 8>;
using Shorts = Lanes<int16_t, 16>;
using Bytes = Lanes<uint8_t, 32>;

#define KVASIR_EACH(Type, n, expression) \
    Type r; \
    for (int i = 0; i < n; i++) r.v[i] = (expression); \
    return r

inline Floats all(float v) { KVASIR_EACH(Floats, 8, v); }
inline Floats zero_floats() { return all(0.0f); }
inline Floats load(const float* p) { KVASIR_EACH(Floats, 8, p[i]); }
inline void store(float* p, const Floats& a) { std::memcpy(p, a.v, sizeof a.v); }
inline Floats add(const Floats& a, const Floats& b) { KVASIR_EACH(Floats, 8, a.v[i] + b.v[i]); }
inline Floats mul(const Floats& a, const Floats& b) { KVASIR_EACH(Floats, 8, a.v[i] * b.v[i]); }
inline Floats minus(const Floats& a) { KVASIR_EACH(Floats, 8, -a.v[i]); }
inline Floats fma(const Floats& a, const Floats& b, const Floats& c) { KVASIR_EACH(Floats, 8, a.v[i] * b.v[i] + c.v[i]); }
inline Floats fnma(const Floats& a, const Floats& b, const Floats& c) { KVASIR_EACH(Floats, 8, c.v[i] - a.v[i] * b.v[i]); }
inline Floats load_half(const void* p) {
    uint16_t h[8];
    std::memcpy(h, p, sizeof h);
    KVASIR_EACH(Floats, 8, float_of_half(h[i]));
}
inline Ints all_ints(int32_t v) { KVASIR_EACH(Ints, 8, v); }
inline Floats as_floats(const Ints& a) {
    Floats r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
inline Floats load_bfloat(const void* p) {
    uint16_t h[8];
    std::memcpy(h, p, sizeof h);
    Ints r;
    for (int i = 0; i < 8; i++) r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(h[i]) << 16);
    return as_floats(r);
}
inline Ints load_u8(const void* p) { KVASIR_EACH(Ints, 8, static_cast<const uint8_t*>(p)[i]); }
inline Ints load_i8(const void* p) { KVASIR_EACH(Ints, 8, static_cast<const int8_t*>(p)[i]); }
inline Floats to_floats(const Ints& a) { KVASIR_EACH(Floats, 8, static_cast<float>(a.v[i])); }
inline Ints add_ints(const Ints& a, const Ints& b) { KVASIR_EACH(Ints, 8, a.v[i] + b.v[i]); }
inline Ints sub_ints(const Ints& a, const Ints& b) { KVASIR_EACH(Ints, 8, a.v[i] - b.v[i]); }
template <int N> inline Ints shift_left_ints(const Ints& a) { KVASIR_EACH(Ints, 8, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N)); }
template <int N> inline Ints shift_right_ints(const Ints& a) { KVASIR_EACH(Ints, 8, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> N)); }
inline Ints and_ints(const Ints& a, int32_t mask) { KVASIR_EACH(Ints, 8, a.v[i] & mask); }
inline Ints max_ints(const Ints& a, const Ints& b) { KVASIR_EACH(Ints, 8, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline Shorts twice(const Ints& a) { KVASIR_EACH(Shorts, 16, static_cast<int16_t>(a.v[i / 2])); }

inline Bytes load_bytes(const void* p) {
    Bytes r;
    std::memcpy(r.v, p, 32);
    return r;
}
inline Bytes repeat4(const void* p) { KVASIR_EACH(Bytes, 32, static_cast<const uint8_t*>(p)[i & 3]); }
inline void store_bytes(void* p, const Bytes& a) { std::memcpy(p, a.v, 32); }
template <int N> inline Bytes bits_right(const Bytes& a, int mask) { KVASIR_EACH(Bytes, 32, static_cast<uint8_t>((a.v[i] >> N) & mask)); }
template <int N> inline Bytes bits_left(const Bytes& a, int mask) { KVASIR_EACH(Bytes, 32, static_cast<uint8_t>((a.v[i] << N) & mask)); }
inline Bytes or_bytes(const Bytes& a, const Bytes& b) { KVASIR_EACH(Bytes, 32, a.v[i] | b.v[i]); }
inline Bytes load_table(const uint8_t* p) { KVASIR_EACH(Bytes, 32, p[i & 15]); }
inline Bytes look_up(const Bytes& table, const Bytes& index) { KVASIR_EACH(Bytes, 32, table.v[index.v[i] & 15]); }

inline Shorts all_shorts(int v) { KVASIR_EACH(Shorts, 16, static_cast<int16_t>(v)); }
inline Shorts zero_shorts() { return all_shorts(0); }
inline Shorts load_shorts(const int16_t* p) { KVASIR_EACH(Shorts, 16, p[i]); }
inline void store_shorts(int16_t* p, const Shorts& a) { std::memcpy(p, a.v, sizeof a.v); }
inline Shorts add_shorts(const Shorts& a, const Shorts& b) { KVASIR_EACH(Shorts, 16, static_cast<int16_t>(a.v[i] + b.v[i])); }
inline Shorts sub_shorts(const Shorts& a, const Shorts& b) { KVASIR_EACH(Shorts, 16, static_cast<int16_t>(a.v[i] - b.v[i])); }
template <int N> inline Shorts shift_left(const Shorts& a) { KVASIR_EACH(Shorts, 16, static_cast<int16_t>(static_cast<uint16_t>(a.v[i]) << N)); }
inline Shorts dot_bytes(const Bytes& u, const Bytes& s) {
    KVASIR_EACH(Shorts, 16, static_cast<int16_t>(u.v[2 * i] * static_cast<int8_t>(s.v[2 * i]) +
                                                 u.v[2 * i + 1] * static_cast<int8_t>(s.v[2 * i + 1])));
}
inline Ints dot_shorts(const Shorts& a, const Shorts& b) { KVASIR_EACH(Ints, 8, a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1]); }
inline Shorts even_codes(const Bytes& a) { KVASIR_EACH(Shorts, 16, a.v[2 * i]); }
inline Shorts odd_codes(const Bytes& a) { KVASIR_EACH(Shorts, 16, a.v[2 * i + 1]); }
inline Shorts even_numbers(const Bytes& a) { KVASIR_EACH(Shorts, 16, static_cast<int8_t>(a.v[2 * i])); }
inline Shorts odd_numbers(const Bytes& a) { KVASIR_EACH(Shorts, 16, static_cast<int8_t>(a.v[2 * i + 1])); }
inline void pin(Shorts&) {}

#undef KVASIR_EACH
#endif

// What is in memory stays there: sums that a tile keeps in memory shall not be copied to the stack as well.
inline void settle() { asm volatile("" : : : "memory"); }

inline Shorts shorts_of(const Bytes& b) {  // the same bits seen as int16
#ifdef KVASIR_AVX2
    return b;
#else
    Shorts r;
    std::memcpy(r.v, b.v, 32);
    return r;
#endif
}

}  // namespace simd
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
