// Eight float lanes, and the functions of one variable on them. One source for every build: GCC's vector extension becomes
// AVX where there is AVX and pairs of SSE or NEON registers elsewhere; only fma and float16 name instructions.
//
// Law: a lane's result depends on that lane alone, so vector bodies and tails give the same bits. Contraction is off
// (-ffp-contract=off): a fused multiply-add happens where `fma` is written and nowhere else.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace kvasir {
inline namespace KVASIR_ISA_NS {

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

#define KVASIR_INLINE inline __attribute__((always_inline))

constexpr float kInfinity = std::numeric_limits<float>::infinity();

KVASIR_INLINE f8 all(float x) { return f8{x, x, x, x, x, x, x, x}; }
KVASIR_INLINE i8 all_int(int32_t x) { return i8{x, x, x, x, x, x, x, x}; }

KVASIR_INLINE f8 load(const float* p) {
    f8 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
KVASIR_INLINE void store(float* p, f8 v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes (n < 8); the others are zero, or are not written.
KVASIR_INLINE f8 load_some(const float* p, int64_t n) {
    float lanes[8] = {};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
}
KVASIR_INLINE void store_some(float* p, f8 v, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = v[i];
}

KVASIR_INLINE f8 as_floats(i8 v) { return (f8)v; }
KVASIR_INLINE i8 as_ints(f8 v) { return (i8)v; }

KVASIR_INLINE f8 fma(f8 a, f8 b, f8 c) {
#if defined(__FMA__)
    return static_cast<f8>(_mm256_fmadd_ps(a, b, c));
#else
    return a * b + c;
#endif
}

// NaN in x stays; use with the constant second.
KVASIR_INLINE f8 at_most(f8 x, f8 limit) { return x > limit ? limit : x; }
KVASIR_INLINE f8 at_least(f8 x, f8 limit) { return x < limit ? limit : x; }
KVASIR_INLINE f8 magnitude(f8 x) { return as_floats(as_ints(x) & all_int(0x7fffffff)); }
KVASIR_INLINE f8 with_sign(f8 x, f8 sign) {
    return as_floats(as_ints(x) | (as_ints(sign) & all_int(INT32_MIN)));
}

// The sum in one order for all callers: lanes i and i+4, then i and i+2, then the last two.
KVASIR_INLINE float sum(f8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
KVASIR_INLINE bool any(i8 v) {
    typedef int64_t l4 __attribute__((vector_size(32)));
    l4 w = (l4)v;
    return ((w[0] | w[1]) | (w[2] | w[3])) != 0;
}
KVASIR_INLINE float largest(f8 v) {
    f8 w = __builtin_shuffle(v, i8{4, 5, 6, 7, 0, 1, 2, 3});
    v = v > w ? v : w;
    w = __builtin_shuffle(v, i8{2, 3, 0, 1, 6, 7, 4, 5});
    v = v > w ? v : w;
    return v[0] > v[1] ? v[0] : v[1];
}

// x = n ln 2 + r with |r| <= ln 2 / 2: e^r - 1 by its series to r^7 (error 5e-9), and 2^n as two factors so that the ends
// of the range come out right.
struct Exponential {
    f8 less_one;    // e^r - 1
    f8 half, rest;  // half * rest = 2^n
};

KVASIR_INLINE Exponential exponential(f8 x) {
    const f8 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    f8 shifted = fma(x, all(1.44269504f), magic);
    i8 n = as_ints(shifted) - as_ints(magic);
    f8 whole = shifted - magic;
    f8 r = fma(whole, all(-0.693145751953125f), x);
    r = fma(whole, all(-1.42860682e-6f), r);
    f8 p = all(1.0f / 5040);
    p = fma(p, r, all(1.0f / 720));
    p = fma(p, r, all(1.0f / 120));
    p = fma(p, r, all(1.0f / 24));
    p = fma(p, r, all(1.0f / 6));
    p = fma(p, r, all(0.5f));
    i8 low = n >> 1, high = n - low;
    return {fma(p * r, r, r), as_floats((low + 127) << 23), as_floats((high + 127) << 23)};
}

// e^x within 2 units in the last place; 0 below -104, infinity above 88.8.
KVASIR_INLINE f8 exp(f8 x) {
    Exponential e = exponential(at_least(at_most(x, all(89.0f)), all(-104.0f)));
    return (e.less_one + 1.0f) * e.half * e.rest;
}

KVASIR_INLINE float exp_one(float x) { return exp(all(x))[0]; }

// tanh by expm1, so that small arguments keep their digits.
KVASIR_INLINE f8 tanh(f8 x) {
    Exponential e = exponential(at_most(magnitude(x), all(10.0f)) * -2.0f);
    f8 power = e.half * e.rest;
    f8 less = fma(power, e.less_one, power - 1.0f);  // e^-2|x| - 1
    return with_sign(-less / (less + 2.0f), x);
}

KVASIR_INLINE f8 sigmoid(f8 x) { return 1.0f / (1.0f + exp(-x)); }

// The error function within 1.2e-7: a polynomial in x^2 up to 0.9, above it 1 - e^-x^2 P(1 / (1 + x/2)); both fitted for
// this file at Chebyshev nodes.
KVASIR_INLINE f8 erf(f8 x) {
    f8 a = at_most(magnitude(x), all(4.2f)), s = a * a, t = 1.0f / (1.0f + 0.5f * a);
    f8 near = all(8.46282525e-05f);
    near = fma(near, s, all(-0.000816470408f));
    near = fma(near, s, all(0.00520298328f));
    near = fma(near, s, all(-0.026860193f));
    near = fma(near, s, all(0.112837101f));
    near = fma(near, s, all(-0.376126347f));
    near = fma(near, s, all(1.12837917f));
    f8 far = all(0.119687952f);
    far = fma(far, t, all(-0.472340687f));
    far = fma(far, t, all(0.564878566f));
    far = fma(far, t, all(-0.104843449f));
    far = fma(far, t, all(0.34835229f));
    far = fma(far, t, all(0.259545586f));
    far = fma(far, t, all(0.284932075f));
    far = fma(far, t, all(-0.000155272672f));
    f8 y = a < all(0.9f) ? near * a : 1.0f - exp(-s) * far;
    return with_sign(y, x);
}

#if defined(__F16C__)
KVASIR_INLINE f8 load_half(const uint16_t* p) {
    return static_cast<f8>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#else
KVASIR_INLINE f8 load_half(const uint16_t* p) {
    typedef uint16_t h8 __attribute__((vector_size(16)));
    h8 h;
    std::memcpy(&h, p, sizeof h);
    i8 bits = __builtin_convertvector(h, i8);
    // Shifted into a float's fields the number is 2^112 too small, subnormals included; infinities are put right after.
    f8 value = as_floats((bits & 0x7fff) << 13) * 5.192296858534828e33f;
    i8 special = (bits & 0x7c00) == 0x7c00;
    return as_floats(as_ints(value) | (special & 0x7f800000) | ((bits & 0x8000) << 16));
}
#endif

KVASIR_INLINE f8 load_bytes(const int8_t* p) {
#if defined(__AVX2__)
    return static_cast<f8>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
    typedef int8_t b8 __attribute__((vector_size(8)));
    b8 b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, f8);
#endif
}

inline float half_to_float(uint16_t h) {
    uint16_t lanes[8] = {h};
    return load_half(lanes)[0];
}

// Rounded to nearest even; beyond the range of float16 it becomes the largest number, never infinity.
inline uint16_t float_to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t sign = (bits >> 16) & 0x8000, a = bits & 0x7fffffff;
    if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (a >= 0x477fe000) return static_cast<uint16_t>(sign | 0x7bff);
    if (a < 0x38800000) {  // subnormal: adding 0.5 aligns the last bit to 2^-24
        float f;
        std::memcpy(&f, &a, 4);
        f += 0.5f;
        std::memcpy(&a, &f, 4);
        return static_cast<uint16_t>(sign | (a - 0x3f000000));
    }
    a += 0xfff + ((a >> 13) & 1);
    return static_cast<uint16_t>(sign | ((a - 0x38000000) >> 13));
}

#if defined(__F16C__)
KVASIR_INLINE f8 all_half(const uint16_t* p) { return static_cast<f8>(_mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(*p)))); }
KVASIR_INLINE void store_half(uint16_t* p, f8 x) {  // as float_to_half
    x = at_least(at_most(x, all(65504.0f)), all(-65504.0f));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
KVASIR_INLINE f8 all_half(const uint16_t* p) { return all(half_to_float(*p)); }
KVASIR_INLINE void store_half(uint16_t* p, f8 x) {
    for (int i = 0; i < 8; i++) p[i] = float_to_half(x[i]);
}
#endif

// y[i] = f(x[i]) for n values, eight at a time.
template <class F>
KVASIR_INLINE void map(const float* x, float* y, int64_t n, F f) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(y + i, f(load(x + i)));
    if (i < n) store_some(y + i, f(load_some(x + i, n - i)), n - i);
}

template <class F>
KVASIR_INLINE void map2(const float* a, const float* b, float* y, int64_t n, F f) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(y + i, f(load(a + i), load(b + i)));
    if (i < n) store_some(y + i, f(load_some(a + i, n - i), load_some(b + i, n - i)), n - i);
}

// sum f(x[i]): 16 running sums, then in the order of `sum`. f(0) must be 0.
template <class F>
KVASIR_INLINE float reduce(const float* x, int64_t n, F f) {
    f8 a = all(0), b = all(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        a = a + f(load(x + i));
        b = b + f(load(x + i + 8));
    }
    if (i + 8 <= n) {
        a = a + f(load(x + i));
        i += 8;
    }
    if (i < n) b = b + f(load_some(x + i, n - i));
    return sum(a + b);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
