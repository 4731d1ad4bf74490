#include "decode.h"

#include <cstring>

#include "lanes.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

// Sources of the layouts: the GGUF specification's format table and the decoders of the `gguf` package (MIT), which the
// tests compare with. Every decoder turns one block into floats.

const int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t kFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled e2m1

float half_at(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return half_to_float(h);
}

uint32_t word_at(const uint8_t* p) {
    uint32_t w;
    std::memcpy(&w, p, 4);
    return w;
}

void f32(const uint8_t* b, float* y) { std::memcpy(y, b, 4); }
void f16(const uint8_t* b, float* y) { *y = half_at(b); }
void bf16(const uint8_t* b, float* y) {
    uint32_t bits = static_cast<uint32_t>(b[0]) << 16 | static_cast<uint32_t>(b[1]) << 24;
    std::memcpy(y, &bits, 4);
}

// Weights i and i + 16 of a block share byte i.
void q4_0(const uint8_t* b, float* y) {
    float d = half_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * static_cast<float>((b[2 + i] & 15) - 8);
        y[i + 16] = d * static_cast<float>((b[2 + i] >> 4) - 8);
    }
}

void q4_1(const uint8_t* b, float* y) {
    float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = d * static_cast<float>(b[4 + i] & 15) + m;
        y[i + 16] = d * static_cast<float>(b[4 + i] >> 4) + m;
    }
}

void q5_0(const uint8_t* b, float* y) {
    float d = half_at(b);
    uint32_t fifth = word_at(b + 2);
    for (int i = 0; i < 16; i++) {
        int low = (b[6 + i] & 15) | static_cast<int>(fifth >> i & 1) << 4;
        int high = (b[6 + i] >> 4) | static_cast<int>(fifth >> (i + 16) & 1) << 4;
        y[i] = d * static_cast<float>(low - 16);
        y[i + 16] = d * static_cast<float>(high - 16);
    }
}

void q5_1(const uint8_t* b, float* y) {
    float d = half_at(b), m = half_at(b + 2);
    uint32_t fifth = word_at(b + 4);
    for (int i = 0; i < 16; i++) {
        int low = (b[8 + i] & 15) | static_cast<int>(fifth >> i & 1) << 4;
        int high = (b[8 + i] >> 4) | static_cast<int>(fifth >> (i + 16) & 1) << 4;
        y[i] = d * static_cast<float>(low) + m;
        y[i + 16] = d * static_cast<float>(high) + m;
    }
}

void q8_0(const uint8_t* b, float* y) {
    float d = half_at(b);
    for (int i = 0; i < 32; i++) y[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
}

// 16 scales (low nibble) and minima (high nibble), then 2-bit weights, then d and dmin.
void q2_k(const uint8_t* b, float* y) {
    const uint8_t *scales = b, *q = b + 16;
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < 256; i++) {
        int byte = i / 128 * 32 + i % 32, shift = i % 128 / 32 * 2;
        float dl = d * static_cast<float>(scales[i / 16] & 15), ml = dmin * static_cast<float>(scales[i / 16] >> 4);
        y[i] = dl * static_cast<float>(q[byte] >> shift & 3) - ml;
    }
}

// The third bit of each weight in 32 bytes, low bits, 16 six-bit scales in 12 bytes, d.
void q3_k(const uint8_t* b, float* y) {
    const uint8_t *third = b, *q = b + 32, *s = b + 96;
    float d = half_at(b + 108);
    for (int i = 0; i < 256; i++) {
        int g = i / 16;
        int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4, high = s[8 + g % 4] >> (g / 4 * 2) & 3;
        float dl = d * static_cast<float>((low | high << 4) - 32);
        int byte = i / 128 * 32 + i % 32, shift = i % 128 / 32 * 2;
        int missing = (third[i % 32] >> (i / 32) & 1) ? 0 : 4;
        y[i] = dl * static_cast<float>((q[byte] >> shift & 3) - missing);
    }
}

// Six-bit scale and minimum of group g out of the 12 bytes that Q4_K and Q5_K share.
void scale_and_min(const uint8_t* s, int g, int& scale, int& min) {
    if (g < 4) {
        scale = s[g] & 63;
        min = s[g + 4] & 63;
    } else {
        scale = (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
        min = (s[g + 4] >> 4) | (s[g] >> 6) << 4;
    }
}

void q4_k(const uint8_t* b, float* y) {
    float d = half_at(b), dmin = half_at(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, min;
        scale_and_min(b + 4, g, scale, min);
        float dl = d * static_cast<float>(scale), ml = dmin * static_cast<float>(min);
        for (int i = 0; i < 32; i++)
            y[g * 32 + i] = dl * static_cast<float>(b[16 + g / 2 * 32 + i] >> (g % 2 * 4) & 15) - ml;
    }
}

void q5_k(const uint8_t* b, float* y) {
    float d = half_at(b), dmin = half_at(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, min;
        scale_and_min(b + 4, g, scale, min);
        float dl = d * static_cast<float>(scale), ml = dmin * static_cast<float>(min);
        for (int i = 0; i < 32; i++) {
            int q = (b[48 + g / 2 * 32 + i] >> (g % 2 * 4) & 15) | (b[16 + i] >> g & 1) << 4;
            y[g * 32 + i] = dl * static_cast<float>(q) - ml;
        }
    }
}

void q6_k(const uint8_t* b, float* y) {
    const uint8_t *low = b, *high = b + 128, *scales = b + 192;
    float d = half_at(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, k = i % 128;
        int q = (low[half * 64 + k % 64] >> (k / 64 * 4) & 15) | (high[half * 32 + k % 32] >> (k / 32 * 2) & 3) << 4;
        float dl = d * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
        y[i] = dl * static_cast<float>(q - 32);
    }
}

void iq4_nl(const uint8_t* b, float* y) {
    float d = half_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * static_cast<float>(kIq4[b[2 + i] & 15]);
        y[i + 16] = d * static_cast<float>(kIq4[b[2 + i] >> 4]);
    }
}

void iq4_xs(const uint8_t* b, float* y) {
    float d = half_at(b);
    int high = b[2] | b[3] << 8;
    for (int g = 0; g < 8; g++) {
        int scale = (b[4 + g / 2] >> (g % 2 * 4) & 15) | (high >> (2 * g) & 3) << 4;
        float dl = d * static_cast<float>(scale - 32);
        for (int i = 0; i < 16; i++) {
            y[g * 32 + i] = dl * static_cast<float>(kIq4[b[8 + g * 16 + i] & 15]);
            y[g * 32 + i + 16] = dl * static_cast<float>(kIq4[b[8 + g * 16 + i] >> 4]);
        }
    }
}

void mxfp4(const uint8_t* b, float* y) {
    uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : static_cast<uint32_t>(b[0] - 1) << 23;
    float d;  // half of 2^(b[0] - 127), since the table is doubled
    std::memcpy(&d, &bits, 4);
    for (int i = 0; i < 16; i++) {
        y[i] = d * static_cast<float>(kFp4[b[1 + i] & 15]);
        y[i + 16] = d * static_cast<float>(kFp4[b[1 + i] >> 4]);
    }
}

template <void (*block)(const uint8_t*, float*), int weights, int bytes>
void rows(const uint8_t* raw, int64_t width, float* out) {
    for (int64_t i = 0; i < width / weights; i++) block(raw + i * bytes, out + i * weights);
}

}  // namespace

void decode(Format format, const uint8_t* raw, int64_t width, float* out) {
    switch (format) {
        case Format::F32: return rows<f32, 1, 4>(raw, width, out);
        case Format::F16: return rows<f16, 1, 2>(raw, width, out);
        case Format::BF16: return rows<bf16, 1, 2>(raw, width, out);
        case Format::Q4_0: return rows<q4_0, 32, 18>(raw, width, out);
        case Format::Q4_1: return rows<q4_1, 32, 20>(raw, width, out);
        case Format::Q5_0: return rows<q5_0, 32, 22>(raw, width, out);
        case Format::Q5_1: return rows<q5_1, 32, 24>(raw, width, out);
        case Format::Q8_0: return rows<q8_0, 32, 34>(raw, width, out);
        case Format::Q2_K: return rows<q2_k, 256, 84>(raw, width, out);
        case Format::Q3_K: return rows<q3_k, 256, 110>(raw, width, out);
        case Format::Q4_K: return rows<q4_k, 256, 144>(raw, width, out);
        case Format::Q5_K: return rows<q5_k, 256, 176>(raw, width, out);
        case Format::Q6_K: return rows<q6_k, 256, 210>(raw, width, out);
        case Format::IQ4_NL: return rows<iq4_nl, 32, 18>(raw, width, out);
        case Format::IQ4_XS: return rows<iq4_xs, 256, 136>(raw, width, out);
        case Format::MXFP4: return rows<mxfp4, 32, 17>(raw, width, out);
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
