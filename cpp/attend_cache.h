// How a paged cache keeps keys and values: float32, float16, or bytes with a float16 scale for every 32 numbers (q8_0).
//
// A tile is one kv head's 16 tokens: keys turned, [d][16], so that lanes are tokens and no sum runs across lanes; then values,
// [16][stride], so that lanes are columns. With q8_0 scales stand behind either: [ceil(d / 32)][16 tokens], float16.
// Law: reading a number gives the same float32 for every reader. A byte (7 bits) times a float16 (11 bits) is exact in float32,
// so products with q8_0 are sums of the same kind as with floats.  Reference: kvasir/backends/reference.py, `kept`.
// Bound: |x - read(write(x))| <= scale / 2 with scale = max |x| / 127 over the 32 numbers, itself rounded to float16.
// Tests: tests/kernels/test_attend.py
#pragma once

#include <algorithm>
#include <string>

#include "executor.h"
#include "lanes.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

enum class KvFormat { f32, f16, q8_0 };
KvFormat kv_format_from_name(const std::string& name);  // throws std::invalid_argument

constexpr int64_t kScaled = 32;  // numbers that share a scale

class Cache {
   public:
    Cache(KvFormat format, int kv_heads, int64_t k_width, int64_t v_width);

    void reserve(int64_t n_blocks);  // forgets what was there when it grows
    uint8_t* tile(int64_t block, int head) const { return data_.as<uint8_t>() + (block * kv_heads + head) * tile_bytes; }
    int64_t block_bytes() const { return kv_heads * tile_bytes; }
    const Buffer& data() const { return data_; }

    const KvFormat format;
    const int kv_heads;
    const int64_t k_dim, v_dim, v_stride;  // v_stride: v_dim rounded up to whole vectors; the rest stays zero
    const int64_t key_bytes, tile_bytes;   // key_bytes: from a tile's keys to its values

   private:
    Buffer data_;
};

// Keys and values as they lie: 8 numbers at a time. `block(b)` comes before the numbers [32 b, 32 b + 32) are read.
template <class E>
struct Plain {
    struct Keys {
        static constexpr bool kScales = false;
        static constexpr int kBytes = sizeof(E);
        const E* p;
        KVASIR_INLINE void block(int64_t) {}
        KVASIR_INLINE f8 read(int64_t i, int c) const { return read8(p + i * kBlock + c * 8); }  // tokens 8c.. of number i
        KVASIR_INLINE const void* at(int64_t i) const { return p + i * kBlock; }
    };
    struct Values {
        static constexpr bool kScales = false;
        static constexpr int kBytes = sizeof(E);
        static constexpr int kTokens = kBlock;
        const E* p;
        int64_t stride;
        KVASIR_INLINE void block(int64_t, int) {}
        KVASIR_INLINE f8 read(int64_t column, int u) const { return read8(p + u * stride + column); }  // from `column` of token u
    };
    static Keys keys(const Cache&, const uint8_t* tile) { return {reinterpret_cast<const E*>(tile)}; }
    static Values values(const Cache& c, const uint8_t* tile) { return {reinterpret_cast<const E*>(tile + c.key_bytes), c.v_stride}; }

    static void write(const Cache& c, uint8_t* tile, int64_t u, const float* k, const float* v) {
        E *keys = reinterpret_cast<E*>(tile) + u, *values = reinterpret_cast<E*>(tile + c.key_bytes) + u * c.v_stride;
        each8(k, c.k_dim, [&](const E* lanes, int64_t i, int64_t n) {
            for (int64_t j = 0; j < n; j++) keys[(i + j) * kBlock] = lanes[j];
        });
        each8(v, c.v_dim, [&](const E* lanes, int64_t i, int64_t n) { std::copy(lanes, lanes + n, values + i); });
    }

    KVASIR_INLINE static f8 read8(const float* p) { return load(p); }
    KVASIR_INLINE static f8 read8(const uint16_t* p) { return load_half(p); }

   private:
    KVASIR_INLINE static void write8(float* p, f8 x) { store(p, x); }
    KVASIR_INLINE static void write8(uint16_t* p, f8 x) { store_half(p, x); }

    template <class F>
    KVASIR_INLINE static void each8(const float* x, int64_t n, F put) {
        E lanes[8];
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) write8(lanes, load(x + i)), put(lanes, i, 8);
        if (i < n) write8(lanes, load_some(x + i, n - i)), put(lanes, i, n - i);
    }
};

struct Bytes {
    struct Keys {
        static constexpr bool kScales = true;
        static constexpr int kBytes = 1;
        const int8_t* p;
        const uint16_t* scales;
        f8 by[2];
        KVASIR_INLINE void block(int64_t b) { by[0] = load_half(scales + b * kBlock), by[1] = load_half(scales + b * kBlock + 8); }
        KVASIR_INLINE f8 read(int64_t i, int c) const { return load_bytes(p + i * kBlock + c * 8) * by[c]; }
        KVASIR_INLINE const void* at(int64_t i) const { return p + i * kBlock; }
    };
    struct Values {
        static constexpr bool kScales = true;
        static constexpr int kBytes = 1;
        static constexpr int kTokens = kBlock;
        const int8_t* p;
        int64_t stride;
        const uint16_t* scales;
        f8 by;
        KVASIR_INLINE void block(int64_t b, int u) { by = all_half(scales + b * kBlock + u); }
        KVASIR_INLINE f8 read(int64_t column, int u) const { return load_bytes(p + u * stride + column) * by; }
    };
    static Keys keys(const Cache& c, const uint8_t* tile) {
        return {reinterpret_cast<const int8_t*>(tile), reinterpret_cast<const uint16_t*>(tile + c.k_dim * kBlock), {}};
    }
    static Values values(const Cache& c, const uint8_t* tile) {
        const uint8_t* p = tile + c.key_bytes;
        return {reinterpret_cast<const int8_t*>(p), c.v_stride, reinterpret_cast<const uint16_t*>(p + c.v_stride * kBlock), f8{}};
    }

    static void write(const Cache& c, uint8_t* tile, int64_t u, const float* k, const float* v) {
        int8_t* keys = reinterpret_cast<int8_t*>(tile);
        auto* key_scales = reinterpret_cast<uint16_t*>(tile + c.k_dim * kBlock);
        int8_t* values = reinterpret_cast<int8_t*>(tile + c.key_bytes);
        auto* value_scales = reinterpret_cast<uint16_t*>(tile + c.key_bytes + c.v_stride * kBlock);
        int8_t codes[kScaled];
        for (int64_t i = 0; i < c.k_dim; i += kScaled) {
            int64_t n = std::min(kScaled, c.k_dim - i);
            key_scales[i / kScaled * kBlock + u] = encode(k + i, n, codes);
            for (int64_t j = 0; j < n; j++) keys[(i + j) * kBlock + u] = codes[j];
        }
        for (int64_t i = 0; i < c.v_dim; i += kScaled) {
            int64_t n = std::min(kScaled, c.v_dim - i);
            value_scales[i / kScaled * kBlock + u] = encode(v + i, n, values + u * c.v_stride + i);
        }
    }

   private:
    // n numbers, 32 at most, as codes of [-127, 127]; returns the scale that gives them back.
    static uint16_t encode(const float* x, int64_t n, int8_t* codes) {
        f8 v[kScaled / 8], most = all(0);
        for (int64_t i = 0; i < kScaled / 8; i++) {
            int64_t left = n - 8 * i;
            v[i] = left >= 8 ? load(x + 8 * i) : load_some(x + 8 * i, std::max<int64_t>(left, 0));
            f8 m = magnitude(v[i]);
            most = m > most ? m : most;
        }
        uint16_t scale = float_to_half(largest(most) / 127.0f);
        float step = half_to_float(scale), inverse = step > 0 ? 1.0f / step : 0.0f;
        for (int64_t i = 0; i < n; i += 8) {
            f8 near = at_least(at_most(v[i / 8] * inverse, all(127.0f)), all(-127.0f)) + 12582912.0f;  // rounds to even
            i8 whole = as_ints(near) - as_ints(all(12582912.0f));
            for (int64_t j = 0; j < std::min<int64_t>(8, n - i); j++) codes[i + j] = static_cast<int8_t>(whole[j]);
        }
        return scale;
    }
};

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
