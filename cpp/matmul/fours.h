// Quantized products on CPUs that add four products of bytes to int32 (VNNI, AMX): no bounds of int16 to keep, so that codes of
// every format are one unsigned byte, 8 bits too, and sums of a block are ready when its last four are in.
//
// Two panels side by side (pair.h), unpacked alike for few rows, in registers while the weights stream by, and for many, a piece
// at a time into the first cache. The integers of a block are those of tile.h, and its floats are made by the same operations in the
// same order: every build gives the bits of the AVX2 build. Tests: tests/kernels/test_emulated.py
#pragma once

#include "flat.h"
#include "pair.h"
#include "tile.h"

#ifdef KVASIR_FOURS

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace fours {

using namespace simd;
using layout::Block;
using layout::Scale;
using layout::Spec;
using layout::Table;

// What formats have in common once they are unpacked.
struct Kind {
    bool halves;  // a scale for 16
    bool min;
    int offset;   // log2 of what is taken off each code; -1 for nothing
};

// A minimum needs no centred codes: those of tile.h are centred only so that they fit.
constexpr Kind kind_of(Format f) {
    const Spec s = layout::spec_of(f);
    return {layout::by_halves(s.scale), layout::has_min(s.scale), layout::has_min(s.scale) ? -1 : s.offset};
}

// A block of two panels. codes: [8 vectors of k = 4v .. 4v+3][16 rows][4], as a tile of AMX has them.
template <Kind K> struct alignas(64) Unpacked {
    Pair codes[8];
    PairFloats scale, min[K.min ? 1 : 0];
    Pair scale_half[K.halves ? 2 : 0], min_half[K.halves && K.min ? 2 : 0];  // int32; int16, each twice
};

template <Format F, int V> KVASIR_FLAT tiles::Codes codes_of(const uint8_t* low) {
    constexpr Spec spec = layout::spec_of(F);
    tiles::Codes c{};
    if constexpr (spec.low_bits == 8) {
        c.lo = load_bytes(low + 32 * V), c.hi = load_bytes(low + 128 + 32 * V);
    } else if constexpr (spec.table == Table::Iq4) {
        const Bytes table = load_table(layout::kIq4);
        c.lo = look_up(table, tiles::lo_of_plane<4, V>(low)), c.hi = look_up(table, tiles::hi_of_plane<4, V>(low));
    } else {
        c = tiles::codes_of<F, V>(low);
    }
    return c;
}

// Reads two panels block after block; the second may be the first again, where there is no other.
template <Format F> struct Reader {
    static constexpr Spec spec = layout::spec_of(F);
    static constexpr Kind K = kind_of(F);
    static constexpr int kGroup = layout::blocks_per_header(spec.scale);
    static constexpr size_t kGroupBytes = layout::header_bytes(spec.scale) + kGroup * layout::block_bytes(spec);

    const uint8_t* w[2];
    PairFloats d = zero_pair(), dmin = zero_pair();

    template <class Load> KVASIR_FLAT auto both(Load load) const { return beside(load(w[0]), load(w[1])); }
    KVASIR_FLAT void skip(size_t bytes) { w[0] += bytes, w[1] += bytes; }

    KVASIR_FLAT void header() {
        if constexpr (layout::is_super(spec.scale)) d = both([](const uint8_t* p) { return load_half(p); });
        if constexpr (layout::is_super(spec.scale) && K.min) dmin = both([](const uint8_t* p) { return load_half(p + 16); });
        skip(layout::header_bytes(spec.scale));
    }

    KVASIR_FLAT void scales(Unpacked<K>& out) const {
        constexpr Scale kind = spec.scale;
        if constexpr (kind == Scale::Half || kind == Scale::HalfMin) out.scale = both([](const uint8_t* p) { return load_half(p); });
        if constexpr (kind == Scale::HalfMin) out.min[0] = both([](const uint8_t* p) { return load_half(p + 16); });
        if constexpr (kind == Scale::Exponent) out.scale = both([](const uint8_t* p) { return tiles::power_of_two(p); });
        if constexpr (kind == Scale::Super) out.scale = mul(d, to_floats(both([](const uint8_t* p) { return load_i8(p); })));
        if constexpr (kind == Scale::SuperMin) {
            out.scale = mul(d, to_floats(both([](const uint8_t* p) { return load_u8(p); })));
            const PairFloats min = mul(dmin, to_floats(both([](const uint8_t* p) { return load_u8(p + 8); })));
            out.min[0] = beside(minus(half_of(min, 0)), minus(half_of(min, 1)));
        }
        if constexpr (kind == Scale::Super16) {
            out.scale = d;
            out.scale_half[0] = both([](const uint8_t* p) { return load_i8(p); });
            out.scale_half[1] = both([](const uint8_t* p) { return load_i8(p + 8); });
        }
        if constexpr (kind == Scale::Super16Min) {
            out.scale = d, out.min[0] = dmin;
            each<2>([&](auto h) KVASIR_FLAT_LAMBDA {
                out.scale_half[h] = both([&](const uint8_t* p) { return and_ints(load_u8(p + 8 * h), 15); });
                out.min_half[h] = both([&](const uint8_t* p) { return twice(shift_right_ints<4>(load_u8(p + 8 * h))); });
            });
        }
    }

    KVASIR_FLAT void block(Unpacked<K>& out) {
        each<4>([&](auto v) KVASIR_FLAT_LAMBDA {
            const tiles::Codes a = codes_of<F, v>(w[0] + layout::scale_bytes(spec.scale));
            const tiles::Codes b = codes_of<F, v>(w[1] + layout::scale_bytes(spec.scale));
            out.codes[v] = beside(a.lo, b.lo), out.codes[4 + v] = beside(a.hi, b.hi);
        });
        scales(out);
        skip(layout::block_bytes(spec));
    }
};

// What the sums of a block, or of half H of it, start from: -2^offset (sum of x).
template <Kind K, int H> KVASIR_FLAT Pair start_of(const Block& x) {
    if constexpr (K.offset < 0) return pair_of_shorts(0);
    else return dot_shorts(repeat4_pair(K.halves ? x.half_minus[H] : x.minus), pair_of_shorts(1 << K.offset));
}

// `acc` goes on by a block whose integers are `dot`.
template <Kind K> KVASIR_FLAT PairFloats put_block(const Unpacked<K>& u, const Block& x, Pair dot, PairFloats acc) {
    const PairFloats by = pair_of(x.scale);
    acc = fma(mul(u.scale, by), to_floats(dot), acc);
    if constexpr (K.min && !K.halves) acc = fma(u.min[0], pair_of(x.sum), acc);
    if constexpr (K.min && K.halves) {
        const Pair lo = dot_shorts(repeat4_pair(x.half_minus[0]), u.min_half[0]);
        const Pair hi = dot_shorts(repeat4_pair(x.half_minus[1]), u.min_half[1]);
        acc = fma(mul(u.min[0], by), to_floats(add_ints(lo, hi)), acc);
    }
    return acc;
}

// acc[t] of T rows goes on by one block.
template <Kind K, int T> KVASIR_FLAT void go_on(const Unpacked<K>& u, const Block* const* x, PairFloats* acc) {
    Pair s[T], lo[T];
    each<8>([&](auto v) KVASIR_FLAT_LAMBDA {
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
            if constexpr (v == 0) s[t] = start_of<K, 0>(*x[t]);
            if constexpr (v == 4 && K.halves) lo[t] = mul_ints(s[t], u.scale_half[0]), s[t] = start_of<K, 1>(*x[t]);
            s[t] = dot4(s[t], u.codes[v], repeat4_pair(x[t]->q + 4 * v));
        });
    });
    each<T>([&](auto t) KVASIR_FLAT_LAMBDA {
        if constexpr (K.halves) s[t] = add_ints(lo[t], mul_ints(s[t], u.scale_half[1]));
        acc[t] = put_block(u, *x[t], s[t], acc[t]);
    });
}

inline const Block* row_of(const Product& p, int64_t t) {
    return reinterpret_cast<const Block*>(p.x + static_cast<size_t>(t) * p.x_stride);
}

// y of panel and panel + 1 of row t, as far as they are before `end`.
inline void put_pair(const Product& p, int64_t t, int64_t panel, int64_t end, const PairFloats& sums) {
    for (int i = 0; i < 2 && panel + i < end; i++) tiles::put(p, p.y + t * p.ldy, (panel + i) * kPanel, half_of(sums, i));
}

// Rows t0 .. t0 + T over panels [begin, end): each block is unpacked in registers.
template <Format F, int T> inline void stream(const Product& p, int64_t t0, int64_t begin, int64_t end) {
    constexpr Kind K = kind_of(F);
    for (int64_t panel = begin; panel < end; panel += 2) {
        const Block* x[T];
        PairFloats acc[T];
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA { x[t] = row_of(p, t0 + t), acc[t] = zero_pair(); });
        const uint8_t* first = p.w + static_cast<size_t>(panel) * p.panel_bytes;
        Reader<F> reader{{first, panel + 1 < end ? first + p.panel_bytes : first}};
        for (int64_t b0 = 0; b0 < p.width / 32; b0 += Reader<F>::kGroup) {
            reader.header();
            for (int b = 0; b < Reader<F>::kGroup; b++) {
                if constexpr (T <= 2)  // memory bounds it, and the hardware's prefetch stops at each page
                    for (size_t i = 0; i < layout::block_bytes(Reader<F>::spec); i += 64)
                        __builtin_prefetch(reader.w[0] + 4096 + i), __builtin_prefetch(reader.w[1] + 4096 + i);
                Unpacked<K> u;
                reader.block(u);
                go_on<K, T>(u, x, acc);
                each<T>([&](auto t) KVASIR_FLAT_LAMBDA { x[t]++; });
            }
        }
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA { put_pair(p, t0 + t, panel, end, acc[t]); });
    }
}

#if KVASIR_FOURS == 512 || defined(KVASIR_EMULATE)
constexpr int kTile = 8;  // rows whose sums are in registers
#else
constexpr int kTile = 4;
#endif

// Panels in chunks that stay in the second cache while all rows pass over them.
template <Format F> void few_rows(const Product& p, int64_t begin, int64_t end) {
    const int64_t at_once = std::max<int64_t>(1, static_cast<int64_t>((128 << 10) / p.panel_bytes / 2)) * 2;
    for (int64_t c0 = begin; c0 < end; c0 += at_once) {
        const int64_t c1 = std::min(end, c0 + at_once);
        int64_t t = 0;
        if constexpr (kTile == 8)
            for (; t + 8 <= p.T; t += 8) stream<F, 8>(p, t, c0, c1);
        for (; t + 4 <= p.T; t += 4) stream<F, 4>(p, t, c0, c1);
        for (; t + 2 <= p.T; t += 2) stream<F, 2>(p, t, c0, c1);
        for (; t < p.T; t++) stream<F, 1>(p, t, c0, c1);
    }
}

constexpr int64_t kRows = 128, kPairs = 4, kDepth = 16;  // rows and pairs whose sums are kept; blocks of a piece: 10 to 14 KB unpacked

// The piece that will be wanted next: so many bytes of two panels, fetched a few lines a block, since a burst would fill the queue
// of misses and hold up the loads of whoever sends it.
struct Next {
    const uint8_t* at[2];
    size_t bytes;

    void fetch(int64_t b, int64_t blocks) const {
        const size_t from = bytes * static_cast<size_t>(b) / static_cast<size_t>(blocks) / 64 * 64;
        const size_t to = bytes * static_cast<size_t>(b + 1) / static_cast<size_t>(blocks);
        for (size_t i = from; i < to; i += 64) __builtin_prefetch(at[0] + i), __builtin_prefetch(at[1] + i);
    }
};

// sums[t * kPairs] of T rows go on over the blocks of a piece.
template <Kind K, int T>
__attribute__((noinline)) void tile(const Unpacked<K>* u, const Product& p, int64_t t0, int64_t b0, int64_t blocks, PairFloats* sums,
                                    const Next* next) {
    const Block* x[T];
    each<T>([&](auto t) KVASIR_FLAT_LAMBDA { x[t] = row_of(p, t0 + t) + b0; });
    PairFloats acc[T];
    each<T>([&](auto t) KVASIR_FLAT_LAMBDA { acc[t] = sums[t * kPairs]; });
    for (int64_t b = 0; b < blocks; b++) {
        if (next) next->fetch(b, blocks);
        go_on<K, T>(u[b], x, acc);
        each<T>([&](auto t) KVASIR_FLAT_LAMBDA { x[t]++; });
    }
    each<T>([&](auto t) KVASIR_FLAT_LAMBDA { sums[t * kPairs] = acc[t]; });
}

#ifdef KVASIR_AMX
// The same for 16 rows by the tiles of AMX: a tile product for a block, or for each half of it.
template <Kind K>
__attribute__((noinline)) void sixteen(const Unpacked<K>* u, const Product& p, int64_t t0, int64_t b0, int64_t blocks, PairFloats* sums,
                                       const Next* next) {
    alignas(64) int32_t dot[K.halves ? 2 : 1][16][16];
    for (int64_t b = 0; b < blocks; b++, u++) {
        const Block* x = row_of(p, t0) + b0 + b;
        if (next) next->fetch(b, blocks);
        if constexpr (K.halves) {
            dot_tile<4>(x->q, p.x_stride, u->codes, dot[0]);
            dot_tile<4>(x->q + 16, p.x_stride, u->codes + 4, dot[1]);
        } else {
            dot_tile<8>(x->q, p.x_stride, u->codes, dot[0]);
        }
        for (int t = 0; t < 16; t++) {
            const Block& row = row_of(p, t0 + t)[b0 + b];
            Pair s = add_ints(load_pair(dot[0][t]), start_of<K, 0>(row));
            if constexpr (K.halves) {
                const Pair hi = add_ints(load_pair(dot[1][t]), start_of<K, 1>(row));
                s = add_ints(mul_ints(s, u->scale_half[0]), mul_ints(hi, u->scale_half[1]));
            }
            sums[t * kPairs] = put_block(*u, row, s, sums[t * kPairs]);
        }
    }
}
#endif

// Rows [r0, r1) pass over a piece.
template <Kind K>
inline void all_rows(const Unpacked<K>* u, const Product& p, int64_t r0, int64_t r1, int64_t b0, int64_t blocks, PairFloats* sums,
                     const Next& next) {
    int64_t t = r0;
    const auto when = [&] { return t == r0 ? &next : nullptr; };
    const auto at = [&] { return sums + (t - r0) * kPairs; };
#ifdef KVASIR_AMX
    for (; t + 16 <= r1; t += 16) sixteen<K>(u, p, t, b0, blocks, at(), when());
#endif
    if constexpr (kTile == 8)
        for (; t + 8 <= r1; t += 8) tile<K, 8>(u, p, t, b0, blocks, at(), when());
    for (; t + 4 <= r1; t += 4) tile<K, 4>(u, p, t, b0, blocks, at(), when());
    for (; t + 2 <= r1; t += 2) tile<K, 2>(u, p, t, b0, blocks, at(), when());
    for (; t < r1; t++) tile<K, 1>(u, p, t, b0, blocks, at(), when());
}

template <Format F> void many_rows(const Product& p, int64_t begin, int64_t end) {
    constexpr Kind K = kind_of(F);
    constexpr int64_t kGroup = Reader<F>::kGroup;
    const int64_t blocks = p.width / 32, at_once = p.T <= 32 ? 2 : 2 * kPairs;  // few rows: the weights come in their order
    alignas(64) Unpacked<K> unpacked[kDepth];
    alignas(64) PairFloats sums[kRows * kPairs];
    for (int64_t r0 = 0; r0 < p.T; r0 += kRows) {
        const int64_t r1 = std::min(p.T, r0 + kRows);
        for (int64_t c0 = begin; c0 < end; c0 += at_once) {
            const int64_t c1 = std::min(end, c0 + at_once);
            std::memset(sums, 0, static_cast<size_t>((r1 - r0) * kPairs) * sizeof sums[0]);
            for (int64_t b0 = 0; b0 < blocks; b0 += kDepth) {
                const int64_t n = std::min(kDepth, blocks - b0);
                const size_t bytes = static_cast<size_t>(n / kGroup) * Reader<F>::kGroupBytes;
                for (int64_t i = c0; i < c1; i += 2) {
                    const uint8_t* first = p.w + static_cast<size_t>(i) * p.panel_bytes +
                                           static_cast<size_t>(b0 / kGroup) * Reader<F>::kGroupBytes;
                    Reader<F> reader{{first, i + 1 < end ? first + p.panel_bytes : first}};
                    for (int64_t b = 0; b < n; b++) {
                        if (b % kGroup == 0) reader.header();
                        reader.block(unpacked[b]);
                    }
                    const size_t skip = b0 + n == blocks ? p.panel_bytes : 0;  // at a panel's end comes the next but one
                    const Next next{{reader.w[0] + skip, reader.w[1] + skip}, bytes};
                    all_rows<K>(unpacked, p, r0, r1, b0, n, sums + (i - c0) / 2, next);
                }
            }
            for (int64_t t = r0; t < r1; t++)
                for (int64_t i = c0; i < c1; i += 2) put_pair(p, t, i, c1, sums[(t - r0) * kPairs + (i - c0) / 2]);
        }
    }
}

// Below so many rows weights stream from memory, which would pause while a piece is multiplied. A guess, not measured.
constexpr int64_t kMany = 16;

template <Format F> void product(const Product& p) {
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel;
    if (p.T < kMany) return few_rows<F>(p, begin, end);
#ifdef KVASIR_AMX
    tiles_on<kind_of(F).halves ? 4 : 8>();
#endif
    many_rows<F>(p, begin, end);
#ifdef KVASIR_AMX
    tiles_off();
#endif
}

}  // namespace fours
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir

#endif
