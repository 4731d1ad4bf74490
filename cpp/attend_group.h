// Up to six queries that read keys and values together: which kernel, by how many they are and how far each one sees.
#pragma once

#include "attend_tile.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// The tokens of a chunk that a query sees; none where from == to.
struct Seen {
    int from, to;
};

// Vectors of values that G queries take at once, and tiles of keys: 8 to 12 sums keep both multipliers busy.
constexpr int columns_of(int g) { return g == 1 ? 8 : g <= 3 ? 4 : 2; }
constexpr int tiles_of(int g) { return g == 1 ? 4 : g <= 3 ? 2 : 1; }

// Scores of G queries with tiles [first, last) of a chunk, as the cache has them.
template <int G, class Keys>
void score_tiles(Keys* k, int first, int last, int64_t values_at, const float* q, int64_t d, float* s) {
    constexpr int N = tiles_of(G);
    int t = first;
    for (; t + N <= last; t += N) scores<G, N, true>(k + t, values_at, q, d, s + t * kBlock);
    for (; t < last; t++) scores<G, 1, true>(k + t, values_at, q, d, s + t * kBlock);
}

// Sums of G queries over tokens [from, to) for all columns of a cache.
template <int G, bool Ahead, class Values>
void weigh_columns(Values* v, const uint8_t* const* next, int64_t width, const float* p, float* y, int64_t slice, int from, int to) {
    constexpr int C = columns_of(G);
    int64_t i = 0;
    for (; i + 8 * C <= width; i += 8 * C) weigh<G, C, Ahead>(v, next, i, p, y + i / 16 * slice, slice, from, to);
    if (C > 2)
        for (; i + 16 <= width; i += 16) weigh<G, 2, Ahead>(v, next, i, p, y + i / 16 * slice, slice, from, to);
    if (i < width) weigh<G, 1, Ahead>(v, next, i, p, y + i / 16 * slice, slice, from, to);
}

// One chunk for G queries whose reaches may differ: what all see together, what is before and behind it each alone.
template <int G, class Many, class One>
KVASIR_INLINE void by_reach(const Seen* seen, Many many, One one) {
    int from = 0, to = kChunk;
    for (int g = 0; g < G; g++) from = std::max(from, seen[g].from), to = std::min(to, seen[g].to);
    const bool together = from < to;
    for (int g = 0; g < G; g++) {
        int stop = together ? from : seen[g].to;
        if (seen[g].from < stop) one(g, seen[g].from, stop);
    }
    if (!together) return;
    many(from, to);
    for (int g = 0; g < G; g++)
        if (to < seen[g].to) one(g, to, seen[g].to);
}

// f(first query, G) for groups of M queries, as few as six allow and as even as that allows: 8 are 4 and 4, not 6 and 2, since
// a group of two has too few sums to keep the multipliers busy.
template <class F>
KVASIR_INLINE void each_group(int64_t M, F f) {
    for (int64_t left = (M + kTogether - 1) / kTogether, first = 0; left > 0; left--) {
        const int64_t G = (M - first + left - 1) / left;
        f(first, static_cast<int>(G));
        first += G;
    }
}

// f(std::integral_constant<int, g>) for g of 1 to kTogether.
template <class F>
KVASIR_INLINE void with_count(int g, F f) {
    switch (g) {
        case 1: return f(std::integral_constant<int, 1>{});
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        default: return f(std::integral_constant<int, kTogether>{});
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
