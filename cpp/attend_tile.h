// Queries against a chunk of 64 keys and values: scores, softmax so far, weighted sums.
//
// Queries are the heads of some rows that share a kv head, M of them. Beside each other lie: q, turned by groups of up to six,
// [d][G]; scores, [M][64]; sums, in slices of 16 columns, [ceil(dv / 16)][M][16].
// Law: a number of a query is computed in an order that its position alone fixes, whoever is computed beside it:
//   - a score is one chain of multiply-adds over d;
//   - a chunk begins at a multiple of 64; its greatest score is found first, then everything before is scaled once if the peak
//     rose, then its weights are added up by lane, and p v is one chain over the visible tokens of the chunk;
//   - no hidden key or value takes part, so what stale memory holds does not matter.
// Scores are in powers of two: q carries scale / ln 2 (with a softcap, the scores take 1 / ln 2 after it).
// Tests: tests/kernels/test_attend.py
#pragma once

#include <algorithm>

#include "attend_cache.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

constexpr int kChunkTiles = 4, kChunk = kChunkTiles * kBlock;  // tokens that one softmax step covers
constexpr int kTogether = 6;  // queries a group: by two vectors of keys they make 12 sums, which fills the registers
constexpr int kLine = 64;     // bytes of a cache line
constexpr float kLog2e = 1.44269504f;

// Fetches a line that will be read. A second fetch of the same line would cost two cycles.
KVASIR_INLINE void ahead(const void* p) { __builtin_prefetch(p, 0, 3); }

// 2^x for x <= 0 within 2 units in the last place; 1 at 0, and 0 from -126 on.
KVASIR_INLINE f8 power(f8 x) {
    const f8 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    f8 shifted = x + magic, r = x - (shifted - magic);
    f8 p = all(0.0001534581242594868f);
    p = fma(p, r, all(0.0013399930903688073f));
    p = fma(p, r, all(0.009618489071726799f));
    p = fma(p, r, all(0.05550328642129898f));
    p = fma(p, r, all(0.24022646248340607f));
    p = fma(p, r, all(0.6931471824645996f));
    p = fma(p, r, all(1.0f));
    p = as_floats(as_ints(p) + (as_ints(shifted) << 23));
    return x <= all(-126.0f) ? all(0.0f) : p;
}
KVASIR_INLINE float power_one(float x) { return power(all(x))[0]; }

// s[g][16 n + u] = q[g] . k[n][u] for G queries and N tiles. q: [d][G]
template <int G, int N, bool Ahead, class Keys>
KVASIR_INLINE void scores(Keys* k, int64_t values_at, const float* q, int64_t d, float* s) {
    f8 a[G][2 * N];
    for (int g = 0; g < G; g++)
        for (int w = 0; w < 2 * N; w++) a[g][w] = all(0);
    for (int64_t i = 0; i < d; i++, q += G) {
        if (Keys::kScales && i % kScaled == 0)
            for (int n = 0; n < N; n++) k[n].block(i / kScaled);
        if (Ahead && i % (kLine / (kBlock * Keys::kBytes)) == 0)
            for (int n = 0; n < N; n++) ahead(static_cast<const uint8_t*>(k[n].at(i)) + values_at);
        if constexpr (G == 1) {
            for (int w = 0; w < 2 * N; w++) a[0][w] = fma(all(q[0]), k[w / 2].read(i, w % 2), a[0][w]);
        } else {  // all keys first, then query by query: the other way round the registers do not suffice
            f8 key[2 * N];
            for (int w = 0; w < 2 * N; w++) key[w] = k[w / 2].read(i, w % 2);
            for (int g = 0; g < G; g++) {
                f8 by = all(q[g]);
                for (int w = 0; w < 2 * N; w++) a[g][w] = fma(by, key[w], a[g][w]);
            }
        }
    }
    for (int g = 0; g < G; g++)
        for (int w = 0; w < 2 * N; w++) store(s + g * kChunk + w * 8, a[g][w]);
}

// y[g] += sum_u p[g][u] v[u] over tokens [from, to) of the chunk, for C vectors from `column` on. `slice`: floats from one slice
// of sums to the next.
template <int G, int C, bool Ahead, class Values>
KVASIR_INLINE void weigh(Values* v, const uint8_t* const* next, int64_t column, const float* p, float* y, int64_t slice, int from, int to) {
    f8 a[G][C];
    for (int g = 0; g < G; g++)
        for (int c = 0; c < C; c++) a[g][c] = load(y + c / 2 * slice + g * 16 + c % 2 * 8);
    auto visit = [&](Values& tile, int first, int begin, int end) __attribute__((always_inline)) {  // the tile's tokens begin at `first`
        for (int u = begin; u < end; u++) {
            if (Ahead) {  // one line of the next keys for each line of these values
                constexpr int bytes = 8 * C * Values::kBytes;
                const uint8_t* keys = next[first / kBlock] + column * kBlock * Values::kBytes + (u - first) * bytes;
                if (bytes >= kLine || (u - first) % std::max(1, kLine / bytes) == 0)
                    for (int b = 0; b < bytes; b += kLine) ahead(keys + b);
            }
            f8 value[C];
            for (int c = 0; c < C; c++) {
                if (Values::kScales && c % 4 == 0) tile.block((column + c * 8) / kScaled, u - first);
                value[c] = tile.read(column + c * 8, u - first);
            }
            for (int g = 0; g < G; g++) {
                f8 by = all(p[g * kChunk + u]);
                for (int c = 0; c < C; c++) a[g][c] = fma(by, value[c], a[g][c]);
            }
        }
    };
    if constexpr (Values::kTokens == kChunk) {
        visit(v[0], 0, from, to);
    } else {
        for (int first = from / kBlock * kBlock; first < to; first += kBlock)
            visit(v[first / kBlock], first, std::max(from, first), std::min(to, first + kBlock));
    }
    for (int g = 0; g < G; g++)
        for (int c = 0; c < C; c++) store(y + c / 2 * slice + g * 16 + c % 2 * 8, a[g][c]);
}

// A chunk of values as floats, 16 columns of it.
struct Column {
    static constexpr bool kScales = false;
    static constexpr int kBytes = 4;
    static constexpr int kTokens = kChunk;
    const float* p;
    void block(int64_t, int) {}
    KVASIR_INLINE f8 read(int64_t column, int u) const { return load(p + u * 16 + column); }
};

// A query's softmax so far: sums of p v elsewhere, and these.
struct Softmax {
    float peak = -kInfinity;  // greatest score
    f8 total = all(0);        // sum of p, by lane
};

// Scores s of one query at tokens [from, to) of a chunk become weights; what was before is scaled if the peak rises.
inline void soften(float* s, int from, int to, float softcap, Softmax& now, float* y, int64_t slice, int64_t slices) {
    const int first = from / 8, last = (to + 7) / 8;
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    f8 top = all(-kInfinity);
    for (int w = first; w < last; w++) {
        f8 x = load(s + w * 8);
        if (softcap > 0) x = softcap * tanh(x / softcap) * kLog2e;
        if (w * 8 < from || w * 8 + 8 > to) x = ((lane + w * 8 >= from) & (lane + w * 8 < to)) ? x : all(-kInfinity);
        if (softcap > 0 || w * 8 < from || w * 8 + 8 > to) store(s + w * 8, x);
        top = x > top ? x : top;
    }
    const float most = largest(top);
    if (most > now.peak) {
        const float keep = power_one(now.peak - most);
        now.peak = most;
        now.total = now.total * keep;
        for (int64_t i = 0; i < slices; i++)
            for (int c = 0; c < 16; c += 8) store(y + i * slice + c, load(y + i * slice + c) * keep);
    }
    f8 total = now.total, peak = all(now.peak);
    for (int w = first; w < last; w++) {
        f8 p = power(load(s + w * 8) - peak);
        store(s + w * 8, p);
        total = total + p;
    }
    now.total = total;
}

// The parts of a query's past so far: sums of p v elsewhere, and these.
struct Joined {
    float peak = -kInfinity, total = 0;
};

// One more part joins: its sums y, greatest score and sum of weights. A part without a visible token has a total of 0.
inline void join(Joined& now, float* whole, const float* y, float peak, float total, int64_t slice, int64_t slices) {
    if (total == 0) return;
    const bool first = now.total == 0;
    const float top = std::max(now.peak, peak), keep = first ? 0 : power_one(now.peak - top), by = power_one(peak - top);
    for (int64_t i = 0; i < slices; i++)
        for (int c = 0; c < 16; c += 8) {
            f8 part = load(y + i * slice + c);
            store(whole + i * slice + c, first ? part : fma(part, all(by), load(whole + i * slice + c) * keep));
        }
    now = {top, first ? total : now.total * keep + total * by};
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
