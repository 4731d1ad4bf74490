// Activations, and which family multiplies which format.
#include "matmul.h"
#include "tile.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using layout::Block;

// 32 floats as int8 with one scale. Loops over bits and whole arrays, so that compilers vectorize them without fast-math.
void quantize_block(const float* x, Block& out) {
    uint32_t bits[32], most = 0;
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 32; i++) most = std::max(most, bits[i] & 0x7fffffffu);  // as integers: NaN is above infinity
    float amax;
    std::memcpy(&amax, &most, 4);
    int32_t q[32] = {};
    if (most >= 0x7f800000u) {
        out.scale = std::nanf("");  // not finite in, not finite out
    } else if (amax < 1e-30f) {
        out.scale = 0.0f;  // 127 / amax could overflow
    } else {
        const float inverse = 127.0f / amax;
        float shifted[32];
        for (int i = 0; i < 32; i++) shifted[i] = x[i] * inverse;
        for (int i = 0; i < 32; i++) shifted[i] += 12582912.0f;  // 1.5 * 2^23: the low bits become the rounded integer
        std::memcpy(q, shifted, sizeof q);
        for (int i = 0; i < 32; i++) q[i] -= 0x4b400000;
        out.scale = amax / 127.0f;
    }
    int32_t sums[2][2] = {};  // [half][lane]
    for (int i = 0; i < 32; i++) {
        out.q[i] = static_cast<int8_t>(q[i]);
        sums[i / 16][(i % 4) / 2] += q[i];
    }
    for (int lane = 0; lane < 2; lane++) {
        out.minus[lane] = static_cast<int16_t>(-(sums[0][lane] + sums[1][lane]));
        out.minus_lo[lane] = static_cast<int16_t>(-sums[0][lane]);
    }
    out.sum = out.scale * static_cast<float>(sums[0][0] + sums[0][1] + sums[1][0] + sums[1][1]);
}

}  // namespace

size_t activation_bytes(Activation kind, int64_t width) {
    if (kind == Activation::F32) return (static_cast<size_t>(width) * sizeof(float) + 15) / 16 * 16;
    return static_cast<size_t>(width) / 32 * sizeof(Block);
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
