// Activations, and which family multiplies which format.
#include "matmul.h"
#include "tile.h"

#include <cmath>

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using layout::Block;

// 32 floats as int8 with one scale: amax / 127. `bits` of the largest magnitude are compared as integers: NaN is above infinity.
// A scale of NaN where the block is not finite, and of zero where 127 / amax could overflow; the int8 are zeros then.
inline float inverse_scale(uint32_t most, Block& out) {
    float amax;
    std::memcpy(&amax, &most, 4);
    const bool finite = most < 0x7f800000u, tiny = finite && amax < 1e-30f;
    out.scale = !finite ? std::nanf("") : tiny ? 0.0f : amax / 127.0f;
    return finite && !tiny ? 127.0f / amax : 0.0f;
}

#ifdef KVASIR_AVX2

void quantize_block(const float* x, Block& out) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256 v[4];
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    const float inverse = inverse_scale(static_cast<uint32_t>(_mm_cvtsi128_si32(m)), out);
    __m256i q = _mm256_setzero_si256();
    if (inverse != 0.0f) {
        const __m256 by = _mm256_set1_ps(inverse);
        __m256i n[4];
        for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by));
        q = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q), q);
    __m256i sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);  // words of the lanes k % 4 in {0, 1} and in {2, 3}
    sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0x4e));
    sums = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xb1)));
    const __m128i lo = _mm256_castsi256_si128(sums), hi = _mm256_extracti128_si256(sums, 1);
    const __m128i halves = _mm_unpacklo_epi32(lo, hi), both = _mm_add_epi16(lo, hi);
    const int32_t minus = _mm_cvtsi128_si32(both), total = _mm_cvtsi128_si32(_mm_madd_epi16(both, _mm_set1_epi16(1)));
    std::memcpy(out.minus, &minus, 4);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out.half_minus), halves);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out.half_minus_32), _mm_slli_epi16(halves, 5));
    out.minus_8 = 8 * total;
    out.sum = out.scale * static_cast<float>(-total);
}

#else

// Loops over bits and whole arrays, so that compilers vectorize them without fast-math. Equals the other build bit for bit.
void quantize_block(const float* x, Block& out) {
    uint32_t bits[32], most = 0;
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 32; i++) most = std::max(most, bits[i] & 0x7fffffffu);
    const float inverse = inverse_scale(most, out);
    int32_t q[32] = {};
    if (inverse != 0.0f) {
        float shifted[32];
        for (int i = 0; i < 32; i++) shifted[i] = x[i] * inverse;
        for (int i = 0; i < 32; i++) shifted[i] += 12582912.0f;  // 1.5 * 2^23: the low bits become the rounded integer
        std::memcpy(q, shifted, sizeof q);
        for (int i = 0; i < 32; i++) q[i] -= 0x4b400000;
    }
    int32_t sums[2][2] = {};  // [half][lane]
    for (int i = 0; i < 32; i++) {
        out.q[i] = static_cast<int8_t>(q[i]);
        sums[i / 16][(i % 4) / 2] += q[i];
    }
    for (int lane = 0; lane < 2; lane++) {
        out.minus[lane] = static_cast<int16_t>(-(sums[0][lane] + sums[1][lane]));
        for (int half = 0; half < 2; half++) {
            out.half_minus[half][lane] = static_cast<int16_t>(-sums[half][lane]);
            out.half_minus_32[half][lane] = static_cast<int16_t>(-32 * sums[half][lane]);
        }
    }
    out.minus_8 = -8 * (sums[0][0] + sums[0][1] + sums[1][0] + sums[1][1]);
    out.sum = out.scale * static_cast<float>(sums[0][0] + sums[0][1] + sums[1][0] + sums[1][1]);
}

#endif

}  // namespace

size_t activation_bytes(Activation kind, int64_t width) {
    if (kind == Activation::F32) return (static_cast<size_t>(width) * sizeof(float) + 15) / 16 * 16;
    return static_cast<size_t>(width) / 32 * sizeof(Block);
}

size_t activation_stride(Activation kind, int64_t width) {
    constexpr size_t kApart = 320;
    const size_t bytes = activation_bytes(kind, width);
    return bytes >= 1024 && bytes % 1024 < kApart ? bytes - bytes % 1024 + kApart : bytes;
}

void prepare(Activation kind, const float* x, int64_t width, void* out) {
    if (kind == Activation::F32) {
        std::memcpy(out, x, static_cast<size_t>(width) * sizeof(float));
        return;
    }
    Block* blocks = static_cast<Block*>(out);
    for (int64_t b = 0; b < width / 32; b++) quantize_block(x + 32 * b, blocks[b]);
}

void unprepare(Activation kind, const void* prepared, int64_t width, float* out) {
    if (kind == Activation::F32) {
        std::memcpy(out, prepared, static_cast<size_t>(width) * sizeof(float));
        return;
    }
    const Block* blocks = static_cast<const Block*>(prepared);
    for (int64_t k = 0; k < width; k++) out[k] = blocks[k / 32].scale * static_cast<float>(blocks[k / 32].q[k % 32]);
}

void multiply(const Matrix& w, const void* x, size_t x_stride, int64_t T, float* y, int64_t ldy, const float* bias,
              int64_t o_begin, int64_t o_end) {
    o_end = std::min(o_end, w.rows);
    if (T <= 0 || o_begin >= o_end) return;
    const Product p{w.data.get(), w.panel_bytes, w.rows, w.width, static_cast<const uint8_t*>(x), x_stride,
                    T, y, ldy, bias, o_begin, o_end};
    switch (w.format) {
        case Format::F32:
        case Format::F16:
        case Format::BF16: return multiply_floats(w.format, p);
        case Format::Q4_0:
        case Format::Q4_1:
        case Format::Q4_K: return multiply_nibbles(w.format, p);
        case Format::Q5_0:
        case Format::Q5_1:
        case Format::Q5_K: return multiply_fives(w.format, p);
        case Format::Q2_K:
        case Format::Q3_K:
        case Format::Q6_K: return multiply_sixteens(w.format, p);
        case Format::Q8_0: return multiply_bytes(w.format, p);
        case Format::IQ4_NL:
        case Format::IQ4_XS:
        case Format::MXFP4: return multiply_tables(w.format, p);
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
