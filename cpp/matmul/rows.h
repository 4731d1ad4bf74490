// A quantized product of many rows: a piece of two panels is unpacked once into the first cache, and the rows of x
// pass over it four at a time. 4 rows x 2 panels: eight sums in registers, a broadcast of x serves two products and a load of
// codes four. Sums and bounds as in tile.h, operation by operation the same on floats: the same bits as one row alone.
//
// Unpacked block of a panel: codes [8 vectors of k = 4v .. 4v+3][8 rows][4], scales and minima as floats. Codes of 8 bits: wide.h.
// Tests: tests/kernels/test_linear.py
#pragma once

#include "flat.h"
#include "fours.h"
#include "tile.h"
#include "wide.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace rows {

using namespace simd;
using layout::Block;
using layout::Scale;
using layout::Spec;
using layout::Table;

// What the formats have in common once they are unpacked.
enum class Kind {
    Eight,       // codes less 8, which is taken off the whole sum
    Plain,       // codes as they are, and a minimum
    Centred,     // sums start from -16 (sum of x)
    CentredMin,  // the same only so that they fit, and a minimum
    Halves,      // a scale for 16: sums start from -32 (sum of x)
    HalvesFour,  //                                -4
    HalvesMin,   // a scale and a minimum for 16
};

constexpr Kind kind_of(Format f) {
    constexpr Kind none = Kind::Plain;
    switch (f) {
        case Format::Q4_0: return Kind::Eight;
        case Format::Q5_0:
        case Format::MXFP4: return Kind::Centred;
        case Format::Q5_1:
        case Format::Q5_K: return Kind::CentredMin;
        case Format::Q6_K: return Kind::Halves;
        case Format::Q3_K: return Kind::HalvesFour;
        case Format::Q2_K: return Kind::HalvesMin;
        default: return none;
    }
}
constexpr bool by_halves(Kind k) { return k == Kind::Halves || k == Kind::HalvesFour || k == Kind::HalvesMin; }
constexpr bool is_centred(Kind k) { return k == Kind::Centred || k == Kind::CentredMin; }
constexpr bool has_min(Kind k) { return k == Kind::Plain || k == Kind::CentredMin; }

template <Kind K> struct alignas(64) Unpacked {
    uint8_t codes[256];
    float scale[8], min[8];
    int16_t scale_half[2][by_halves(K) ? 16 : 1], min_half[2][K == Kind::HalvesMin ? 16 : 1];
};

template <Format F, int V, class U> inline void unpack_vector(const uint8_t* low, U& out) {
    const tiles::Codes c = tiles::codes_of<F, V>(low);
    store_bytes(out.codes + 32 * V, c.lo), store_bytes(out.codes + 128 + 32 * V, c.hi);
}

// `blocks` of one panel from `w` on.
template <Format F> inline void unpack(const uint8_t* w, int64_t blocks, Unpacked<kind_of(F)>* out) {
    constexpr Spec spec = layout::spec_of(F);
    constexpr Scale kind = spec.scale;
    constexpr int group = layout::blocks_per_header(kind);
    for (int64_t b0 = 0; b0 < blocks; b0 += group) {
        Floats d, dmin;
        if constexpr (layout::is_super(kind)) d = load_half(w);
        if constexpr (layout::is_super(kind) && layout::has_min(kind)) dmin = load_half(w + 16);
        w += layout::header_bytes(kind);
        for (int64_t b = b0; b < b0 + group; b++, out++) {
            const uint8_t* low = w + layout::scale_bytes(kind);
            unpack_vector<F, 0>(low, *out);
            unpack_vector<F, 1>(low, *out);
            unpack_vector<F, 2>(low, *out);
            unpack_vector<F, 3>(low, *out);
            if constexpr (kind == Scale::Half || kind == Scale::HalfMin) store(out->scale, load_half(w));
            if constexpr (kind == Scale::HalfMin) store(out->min, load_half(w + 16));
            if constexpr (kind == Scale::Exponent) store(out->scale, tiles::power_of_two(w));
            if constexpr (kind == Scale::Super) store(out->scale, mul(d, to_floats(load_i8(w))));
            if constexpr (kind == Scale::SuperMin) {
                store(out->scale, mul(d, to_floats(load_u8(w))));
                store(out->min, minus(mul(dmin, to_floats(load_u8(w + 8)))));
            }
            if constexpr (kind == Scale::Super16) {
                store(out->scale, d);
                for (int h = 0; h < 2; h++) store_shorts(out->scale_half[h], twice(load_i8(w + 8 * h)));
            }
            if constexpr (kind == Scale::Super16Min) {
                store(out->scale, d), store(out->min, dmin);
                for (int h = 0; h < 2; h++) {
                    const Ints both = load_u8(w + 8 * h);
                    store_shorts(out->scale_half[h], twice(and_ints(both, 15)));
                    store_shorts(out->min_half[h], twice(shift_right_ints<4>(both)));
                }
            }
            w += layout::block_bytes(spec);
        }
    }
}

// Vectors Begin .. of a block into s[T][P], 8 of them or the 4 of a half; sums start from what the kind says.
template <Kind K, int T, int P, int Begin>
KVASIR_FLAT void dot_codes(const Unpacked<K>* const* w, const Block* const* x, Shorts (*s)[P]) {
    each<by_halves(K) ? 4 : 8>([&](auto v) KVASIR_FLAT_LAMBDA {
        constexpr int at = Begin + v;
        Bytes codes[P];
        each<P>([&](auto p) KVASIR_FLAT_LAMBDA { codes[p] = load_bytes(w[p]->codes + 32 * at); });
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
            const Bytes four = repeat4(x[t]->q + 4 * at);
            Shorts start;
            if constexpr (v == 0 && is_centred(K)) start = shift_left<4>(shorts_of(repeat4(x[t]->minus)));
            if constexpr (v == 0 && K == Kind::Halves) start = shorts_of(repeat4(x[t]->half_minus_32[Begin / 4]));
            each<P>([&](auto p) KVASIR_FLAT_LAMBDA {
                const Shorts product = dot_bytes(codes[p], four);
                if constexpr (v != 0) s[t][p] = add_shorts(s[t][p], product);
                else if constexpr (is_centred(K) || K == Kind::Halves) s[t][p] = add_shorts(start, product);
                else s[t][p] = product;
                pin(s[t][p]);
            });
        });
    });
}

// The sums of one row, sum[p * kPanel], go on by a block whose integers are dot(p).
template <Kind K, int P, class Dot>
KVASIR_FLAT void put_block(const Unpacked<K>* const* w, const Block& row, float* sum, Dot dot) {
    const Floats by = all(row.scale);
    Floats total;
    Ints minus;
    Shorts lo, hi;
    if constexpr (has_min(K)) total = all(row.sum);
    if constexpr (K == Kind::Eight) minus = all_ints(row.minus_8);
    if constexpr (K == Kind::CentredMin) minus = dot_shorts(shorts_of(repeat4(row.minus)), all_shorts(16));
    if constexpr (K == Kind::HalvesFour || K == Kind::HalvesMin)
        lo = shorts_of(repeat4(row.half_minus[0])), hi = shorts_of(repeat4(row.half_minus[1]));
    each<P>([&](auto p) KVASIR_FLAT_LAMBDA {
        const Unpacked<K>& u = *w[p];
        Ints d = dot(p);
        if constexpr (K == Kind::Eight) d = add_ints(d, minus);
        if constexpr (K == Kind::CentredMin) d = sub_ints(d, minus);
        if constexpr (K == Kind::HalvesFour) {
            const Ints fours = add_ints(dot_shorts(lo, load_shorts(u.scale_half[0])), dot_shorts(hi, load_shorts(u.scale_half[1])));
            d = add_ints(d, shift_left_ints<2>(fours));
        }
        Floats acc = fma(mul(load(u.scale), by), to_floats(d), load(sum + p * kPanel));
        if constexpr (has_min(K)) acc = fma(load(u.min), total, acc);
        if constexpr (K == Kind::HalvesMin) {
            const Ints mins = add_ints(dot_shorts(lo, load_shorts(u.min_half[0])), dot_shorts(hi, load_shorts(u.min_half[1])));
            acc = fma(mul(load(u.min), by), to_floats(mins), acc);
        }
        store(sum + p * kPanel, acc);
    });
}

constexpr int64_t kRows = 128, kPanels = 8;  // whose sums are kept while pieces of k pass

// sums[t * kPanels + p] of T rows and P panels go on over `blocks` blocks.
template <Kind K, int T, int P>
__attribute__((noinline)) void tile(const Unpacked<K>* const* panels, const Block* const* rows, int64_t blocks,
                                    float (*sums)[kPanel]) {
    const Unpacked<K>* w[P];
    const Block* x[T];
    each<P>([&](auto p) KVASIR_FLAT_LAMBDA { w[p] = panels[p]; });
    each<T>([&](auto t) KVASIR_FLAT_LAMBDA { x[t] = rows[t]; });
    for (int64_t b = 0; b < blocks; b++) {
        Shorts s[T][P];
        Ints dot[T][P];
        dot_codes<K, T, P, 0>(w, x, s);
        if constexpr (by_halves(K)) {
            each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
                each<P>([&](auto p) KVASIR_FLAT_LAMBDA { dot[t][p] = dot_shorts(s[t][p], load_shorts(w[p]->scale_half[0])); });
            });
            dot_codes<K, T, P, 4>(w, x, s);
        }
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
            put_block<K, P>(w, *x[t], sums[t * kPanels], [&](auto p) KVASIR_FLAT_LAMBDA {
                if constexpr (by_halves(K)) return add_ints(dot[t][p], dot_shorts(s[t][p], load_shorts(w[p]->scale_half[1])));
                else return dot_shorts(s[t][p], all_shorts(1));
            });
        });
        each<P>([&](auto p) KVASIR_FLAT_LAMBDA { w[p]++; });
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA { x[t]++; });
        settle();
    }
}

// The piece that will be wanted next, of one panel or of two.
struct Next {
    const uint8_t* at[2];
    int panels;
    size_t bytes;
};

// As `tile`, and fetches `next` meanwhile: a few lines at a time, since a burst of them would fill the queue of misses and
// hold up the loads of whoever sends it.
template <Kind K, int T, int P>
inline void tile_and_fetch(const Unpacked<K>* const* w, const Block* const* x, int64_t blocks, float (*sums)[kPanel],
                           const Next& next) {
    constexpr int64_t kStep = 4;
    for (int64_t b = 0; b < blocks; b += kStep) {
        const int64_t here = std::min(kStep, blocks - b);
        const size_t from = next.bytes * static_cast<size_t>(b) / static_cast<size_t>(blocks) / 64 * 64;
        const size_t to = next.bytes * static_cast<size_t>(b + here) / static_cast<size_t>(blocks);
        for (int j = 0; j < next.panels; j++)
            for (size_t i = from; i < to; i += 64) __builtin_prefetch(next.at[j] + i);
        const Unpacked<K>* u[P];
        const Block* rows[T];
        for (int p = 0; p < P; p++) u[p] = w[p] + b;
        for (int t = 0; t < T; t++) rows[t] = x[t] + b;
        tile<K, T, P>(u, rows, here, sums);
    }
}

template <Kind K, int P>
inline void all_rows(const Product& p, int64_t r0, int64_t r1, int64_t b0, int64_t blocks, const Unpacked<K>* const* w,
                     float (*sums)[kPanel], const Next& next) {
    const auto row = [&](int64_t t) { return reinterpret_cast<const Block*>(p.x + static_cast<size_t>(t) * p.x_stride) + b0; };
    const bool shared = r1 - r0 >= 8 && next.panels == 2;  // by the first two tiles, a panel each
    int64_t t = r0;
    for (; t + 4 <= r1; t += 4) {
        const Block* x[4] = {row(t), row(t + 1), row(t + 2), row(t + 3)};
        const auto at = sums + (t - r0) * kPanels;
        if (t == r0) tile_and_fetch<K, 4, P>(w, x, blocks, at, shared ? Next{{next.at[0]}, 1, next.bytes} : next);
        else if (shared && t == r0 + 4) tile_and_fetch<K, 4, P>(w, x, blocks, at, Next{{next.at[1]}, 1, next.bytes});
        else tile<K, 4, P>(w, x, blocks, at);
    }
    const Block* x[3] = {row(t), t + 1 < r1 ? row(t + 1) : nullptr, t + 2 < r1 ? row(t + 2) : nullptr};
    const auto at = sums + (t - r0) * kPanels;
    if (r1 - t == 3) t == r0 ? tile_and_fetch<K, 3, P>(w, x, blocks, at, next) : tile<K, 3, P>(w, x, blocks, at);
    if (r1 - t == 2) tile<K, 2, P>(w, x, blocks, at);
    if (r1 - t == 1) tile<K, 1, P>(w, x, blocks, at);
}

template <Format F> void product(const Product& p) {
    constexpr Kind K = kind_of(F);
    constexpr Spec spec = layout::spec_of(F);
    constexpr int group = layout::blocks_per_header(spec.scale);
    constexpr int64_t kDepth = 16;  // blocks of 32 in a piece: 10 KB unpacked
    constexpr size_t kGroup = layout::header_bytes(spec.scale) + group * layout::block_bytes(spec);
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel, blocks = p.width / 32;
    const int64_t at_once = p.T <= 32 ? 2 : kPanels;  // few rows: the weights come from memory, in their order
    alignas(64) Unpacked<K> unpacked[2][kDepth];
    const Unpacked<K>* const w[2] = {unpacked[0], unpacked[1]};
    alignas(64) float sums[kRows * kPanels][kPanel];
    for (int64_t r0 = 0; r0 < p.T; r0 += kRows) {
        const int64_t r1 = std::min(p.T, r0 + kRows);
        for (int64_t c0 = begin; c0 < end; c0 += at_once) {
            const int64_t c1 = std::min(end, c0 + at_once);
            std::memset(sums, 0, static_cast<size_t>((r1 - r0) * kPanels) * sizeof sums[0]);
            for (int64_t b0 = 0; b0 < blocks; b0 += kDepth) {
                const int64_t n = std::min(kDepth, blocks - b0);
                const size_t skip = static_cast<size_t>(b0 / group) * kGroup, bytes = static_cast<size_t>(n / group) * kGroup;
                for (int64_t i = c0; i < c1; i += 2) {
                    const int64_t here = std::min<int64_t>(2, c1 - i);
                    Next next{{}, static_cast<int>(here), bytes};
                    for (int64_t j = 0; j < here; j++) {
                        const uint8_t* from = p.w + static_cast<size_t>(i + j) * p.panel_bytes + skip;
                        unpack<F>(from, n, unpacked[j]);
                        next.at[j] = from + bytes + (b0 + n == blocks ? p.panel_bytes : 0);  // at its end comes the next but one
                    }
                    if (here == 2) all_rows<K, 2>(p, r0, r1, b0, n, w, sums + (i - c0), next);
                    else all_rows<K, 1>(p, r0, r1, b0, n, w, sums + (i - c0), next);
                }
            }
            for (int64_t t = r0; t < r1; t++)
                for (int64_t i = c0; i < c1; i++)
                    tiles::put(p, p.y + t * p.ldy, i * kPanel, load(sums[(t - r0) * kPanels + (i - c0)]));
        }
    }
}

}  // namespace rows

// From how many rows on the pieces pay: below, weights stream from memory, which pauses while a piece is multiplied.
// Where a scale covers 16 weights, unpacking costs more and pays earlier.
template <Format F> void product_of(const Product& p) {
#if defined(KVASIR_FOURS)
    fours::product<F>(p);
#else
#ifdef KVASIR_AVX2  // without vector instructions to name, a tile unrolled by hand is code that no register file holds
    if constexpr (tiles::is_wide(layout::spec_of(F))) {
        if (p.T >= 48) return wide::product<F>(p);
    } else {
        if (p.T >= (layout::by_halves(layout::spec_of(F).scale) ? 5 : 48)) return rows::product<F>(p);
    }
#endif
    tiles::product<F>(p);
#endif
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
