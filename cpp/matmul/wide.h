// A product of 8-bit codes and many rows: codes and activations as int16, multiplied in pairs into int32.
//
// Two nibbles in int16 (tile.h) take as many products and additions, but more to join their sums: here a block of 32 ends with
// its scale alone. A piece of two panels is unpacked once into the first cache, the rows of x of that piece are widened once, and
// pass over it six at a time: twelve sums in registers. The integers are the same, so the floats are those of one row alone.
//
// Unpacked block of a panel: vectors 2v and 2v + 1 hold for each of 8 rows the pairs k = (4v, 4v + 2) and (4v + 1, 4v + 3), which are
// the even and odd bytes of a packed vector; x lies likewise, all its even numbers and then the odd ones.
// Tests: tests/kernels/test_linear.py
#pragma once

#include <cstring>

#include "flat.h"
#include "tile.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace wide {

using namespace simd;
using layout::Block;
using layout::Scale;
using layout::Spec;
using layout::Table;

struct alignas(64) Weights {
    int16_t codes[16][16];
    float scale[8];
};

struct alignas(32) Row {
    int16_t even[16], odd[16];
    float scale;
};

constexpr int64_t kRows = 96, kPanels = 8, kDepth = 8;  // rows and panels whose sums are kept; blocks of a piece: 9 KB unpacked

template <Format F, int V> KVASIR_FLAT void unpack_vector(const uint8_t* low, Weights& out) {
    const auto put = [](Bytes codes, int16_t (*pairs)[16]) KVASIR_FLAT_LAMBDA {
        store_shorts(pairs[0], sub_shorts(even_codes(codes), all_shorts(128)));
        store_shorts(pairs[1], sub_shorts(odd_codes(codes), all_shorts(128)));
    };
    if constexpr (layout::spec_of(F).table == Table::Iq4) {
        const Bytes table = load_table(layout::kIq4);
        put(look_up(table, tiles::lo_of_plane<4, V>(low)), out.codes + 2 * V);
        put(look_up(table, tiles::hi_of_plane<4, V>(low)), out.codes + 8 + 2 * V);
    } else {
        put(load_bytes(low + 32 * V), out.codes + 2 * V);
        put(load_bytes(low + 128 + 32 * V), out.codes + 8 + 2 * V);
    }
}

// `blocks` of one panel from `w` on.
template <Format F> inline void unpack(const uint8_t* w, int64_t blocks, Weights* out) {
    constexpr Spec spec = layout::spec_of(F);
    constexpr int group = layout::blocks_per_header(spec.scale);
    for (int64_t b0 = 0; b0 < blocks; b0 += group) {
        Floats d;
        if constexpr (layout::is_super(spec.scale)) d = load_half(w);
        w += layout::header_bytes(spec.scale);
        for (int64_t b = b0; b < b0 + group; b++, out++) {
            const uint8_t* low = w + layout::scale_bytes(spec.scale);
            each<4>([&](auto v) KVASIR_FLAT_LAMBDA { unpack_vector<F, v>(low, *out); });
            if constexpr (layout::is_super(spec.scale)) store(out->scale, mul(d, to_floats(load_i8(w))));
            else store(out->scale, load_half(w));
            w += layout::block_bytes(spec);
        }
    }
}

inline void widen(const Block* x, int64_t blocks, Row* out) {
    for (int64_t b = 0; b < blocks; b++) {
        const Bytes q = load_bytes(x[b].q);
        store_shorts(out[b].even, even_numbers(q)), store_shorts(out[b].odd, odd_numbers(q));
        out[b].scale = x[b].scale;
    }
}

// sums[t * kPanels + p] of T rows and P panels go on over `blocks` blocks.
template <int T, int P>
__attribute__((noinline)) void tile(const Weights* const* panels, const Row (*rows)[kDepth], int64_t blocks,
                                    float (*sums)[kPanel]) {
    for (int64_t b = 0; b < blocks; b++) {
        Ints s[T][P];
        each<16>([&](auto i) KVASIR_FLAT_LAMBDA {
            Shorts codes[P];
            each<P>([&](auto p) KVASIR_FLAT_LAMBDA { codes[p] = load_shorts(panels[p][b].codes[i]); });
            each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
                const Row& row = rows[t][b];
                const Shorts two = shorts_of(repeat4((i % 2 ? row.odd : row.even) + i / 2 * 2));
                each<P>([&](auto p) KVASIR_FLAT_LAMBDA {
                    const Ints product = dot_shorts(codes[p], two);
                    if constexpr (i == 0) s[t][p] = product;
                    else s[t][p] = add_ints(s[t][p], product);
                    pin(s[t][p]);
                });
            });
        });
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
            const Floats by = all(rows[t][b].scale);
            each<P>([&](auto p) KVASIR_FLAT_LAMBDA {
                float* sum = sums[t * kPanels + p];
                store(sum, fma(mul(load(panels[p][b].scale), by), to_floats(s[t][p]), load(sum)));
            });
        });
        settle();
    }
}

template <int P>
inline void all_rows(const Row (*rows)[kDepth], int64_t n, int64_t blocks, const Weights* const* w, float (*sums)[kPanel]) {
    int64_t t = 0;
    for (; t + 6 <= n; t += 6) tile<6, P>(w, rows + t, blocks, sums + t * kPanels);
    if (n - t >= 3) tile<3, P>(w, rows + t, blocks, sums + t * kPanels), t += 3;
    if (n - t == 2) tile<2, P>(w, rows + t, blocks, sums + t * kPanels);
    if (n - t == 1) tile<1, P>(w, rows + t, blocks, sums + t * kPanels);
}

template <Format F> void product(const Product& p) {
    constexpr Spec spec = layout::spec_of(F);
    constexpr int group = layout::blocks_per_header(spec.scale);
    constexpr size_t kGroup = layout::header_bytes(spec.scale) + group * layout::block_bytes(spec);
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel, blocks = p.width / 32;
    alignas(64) Weights unpacked[2][kDepth];
    const Weights* const w[2] = {unpacked[0], unpacked[1]};
    alignas(64) Row rows[kRows][kDepth];
    alignas(64) float sums[kRows * kPanels][kPanel];
    for (int64_t r0 = 0; r0 < p.T; r0 += kRows) {
        const int64_t r1 = std::min(p.T, r0 + kRows);
        for (int64_t c0 = begin; c0 < end; c0 += kPanels) {
            const int64_t c1 = std::min(end, c0 + kPanels);
            std::memset(sums, 0, static_cast<size_t>((r1 - r0) * kPanels) * sizeof sums[0]);
            for (int64_t b0 = 0; b0 < blocks; b0 += kDepth) {
                const int64_t n = std::min(kDepth, blocks - b0);
                for (int64_t t = r0; t < r1; t++)
                    widen(reinterpret_cast<const Block*>(p.x + static_cast<size_t>(t) * p.x_stride) + b0, n, rows[t - r0]);
                const size_t skip = static_cast<size_t>(b0 / group) * kGroup;
                for (int64_t i = c0; i < c1; i += 2) {
                    const int64_t here = std::min<int64_t>(2, c1 - i);
                    for (int64_t j = 0; j < here; j++)
                        unpack<F>(p.w + static_cast<size_t>(i + j) * p.panel_bytes + skip, n, unpacked[j]);
                    if (here == 2) all_rows<2>(rows, r1 - r0, n, w, sums + (i - c0));
                    else all_rows<1>(rows, r1 - r0, n, w, sums + (i - c0));
                }
            }
            for (int64_t t = r0; t < r1; t++)
                for (int64_t i = c0; i < c1; i++)
                    tiles::put(p, p.y + t * p.ldy, i * kPanel, load(sums[(t - r0) * kPanels + (i - c0)]));
        }
    }
}

}  // namespace wide
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
