// One tile of a quantized product: T rows of x by one panel of 8 output rows, along the whole of k. Many rows: rows.h.
//
// Codes are unsigned and meet int8 activations in `dot_bytes` (u8 x s8, pairs added in int16). Per block of 32 a row's sum lives in
// two int16 lanes of 16 products each, widened once a block, which doubles the peak against widening each product. It fits because
// int16 wraps and only the end must fit: uncentred nibbles reach 16 * 15 * 127 = 30480; codes of 5 bits start from -16 * (sum of x),
// and end within 16 * 16 * 127 = 32512; codes of 6 bits with a scale per 16 from -32 * (sum), within 8 * 32 * 127 = 32512;
// 8-bit codes are two nibbles, each summed like that, the upper one weighing 16.
#pragma once

#include "../simd.h"
#include "layout.h"

#include <algorithm>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// What `multiply` was asked for, less the format.
struct Product {
    const uint8_t* w;
    size_t panel_bytes;
    int64_t rows, width;
    const uint8_t* x;
    size_t x_stride;
    int64_t T;
    float* y;
    int64_t ldy;
    const float* bias;
    int64_t o_begin, o_end;
};

namespace tiles {

using namespace simd;
using layout::Block;
using layout::Scale;
using layout::Spec;
using layout::Table;

// y[o .. o+8) of one row, fewer in a last panel that is not full.
inline void put(const Product& p, float* y, int64_t o, Floats sums) {
    const int64_t n = std::min<int64_t>(kPanel, p.rows - o);
    if (n == kPanel) {
        store(y + o, p.bias ? add(sums, load(p.bias + o)) : sums);
        return;
    }
    float lanes[kPanel];
    store(lanes, sums);
    for (int64_t i = 0; i < n; i++) y[o + i] = p.bias ? lanes[i] + p.bias[o + i] : lanes[i];
}

template <int Bits, int V> inline Bytes lo_of_plane(const uint8_t* q) {
    if constexpr (Bits == 4) return bits_right<0>(load_bytes(q + 32 * V), 15);
    if constexpr (Bits == 2) return bits_right<2 * (V % 2)>(load_bytes(q + 32 * (V / 2)), 3);
    if constexpr (Bits == 1) return bits_right<V>(load_bytes(q), 1);
}
template <int Bits, int V> inline Bytes hi_of_plane(const uint8_t* q) {
    if constexpr (Bits == 4) return bits_right<4>(load_bytes(q + 32 * V), 15);
    if constexpr (Bits == 2) return bits_right<4 + 2 * (V % 2)>(load_bytes(q + 32 * (V / 2)), 3);
    if constexpr (Bits == 1) return bits_right<4 + V>(load_bytes(q), 1);
}

// The codes of vector V, up to 6 bits: lo and hi. 8-bit codes come as two nibbles: `up` holds the upper ones.
struct Codes {
    Bytes lo, hi, lo_up, hi_up;
};
template <Format F, int V> inline Codes codes_of(const uint8_t* low) {
    constexpr Spec spec = layout::spec_of(F);
    Codes c{};
    if constexpr (spec.low_bits == 8) {
        const Bytes lo = load_bytes(low + 32 * V), hi = load_bytes(low + 128 + 32 * V);
        c.lo = bits_right<0>(lo, 15), c.lo_up = bits_right<4>(lo, 15);
        c.hi = bits_right<0>(hi, 15), c.hi_up = bits_right<4>(hi, 15);
        return c;
    }
    c.lo = lo_of_plane<spec.low_bits == 8 ? 4 : spec.low_bits, V>(low);
    c.hi = hi_of_plane<spec.low_bits == 8 ? 4 : spec.low_bits, V>(low);
    if constexpr (spec.high_bits > 0) {
        const uint8_t* high = low + layout::plane_bytes(spec.low_bits);
        c.lo = or_bytes(c.lo, bits_left<spec.low_bits>(lo_of_plane<spec.high_bits, V>(high), 0xff));
        c.hi = or_bytes(c.hi, bits_left<spec.low_bits>(hi_of_plane<spec.high_bits, V>(high), 0xff));
    }
    if constexpr (spec.table == Table::Mxfp4) {
        const Bytes table = load_table(layout::kMxfp4);
        c.lo = look_up(table, c.lo), c.hi = look_up(table, c.hi);
    }
    if constexpr (spec.table == Table::Iq4) {
        const Bytes table = load_table(layout::kIq4), below = bits_right<0>(table, 15), above = bits_right<4>(table, 15);
        c.lo_up = look_up(above, c.lo), c.hi_up = look_up(above, c.hi);
        c.lo = look_up(below, c.lo), c.hi = look_up(below, c.hi);
    }
    return c;
}

constexpr bool is_wide(const Spec& s) { return s.low_bits == 8 || s.table == Table::Iq4; }

template <Format F, int T, int V>
inline void dot_vector(const uint8_t* low, const Block* const* x, int64_t b, Shorts* s, Shorts* u) {
    constexpr Spec spec = layout::spec_of(F);
    const Codes c = codes_of<F, V>(low);
    for (int t = 0; t < T; t++) {
        const Bytes lo = repeat4(x[t][b].q + 4 * V), hi = repeat4(x[t][b].q + 16 + 4 * V);
        if constexpr (layout::by_halves(spec.scale)) {
            s[t] = add_shorts(s[t], dot_bytes(c.lo, lo));
            u[t] = add_shorts(u[t], dot_bytes(c.hi, hi));
            pin(u[t]);
        } else {
            s[t] = add_shorts(s[t], dot_bytes(c.lo, lo));
            s[t] = add_shorts(s[t], dot_bytes(c.hi, hi));
            if constexpr (is_wide(spec)) {
                u[t] = add_shorts(u[t], dot_bytes(c.lo_up, lo));
                u[t] = add_shorts(u[t], dot_bytes(c.hi_up, hi));
                pin(u[t]);
            }
        }
        pin(s[t]);
    }
}

// 2^(e - 128) of 8 bytes e. As bits: (e - 1) << 23, but 1 << 21 and 1 << 22 (subnormal) for e = 0 and 1.
inline Floats power_of_two(const void* p) {
    const Ints e = load_u8(p), two = all_ints(2), missing = max_ints(sub_ints(two, e), all_ints(0));  // 2, 1, 0 ...
    const Ints normal = shift_left_ints<23>(sub_ints(max_ints(e, all_ints(1)), all_ints(1)));
    const Ints swapped = shift_left_ints<1>(and_ints(missing, 1));  // 0, 2, 0 ...
    const Ints subnormal = add_ints(shift_right_ints<1>(missing), swapped);                // 1, 2, 0 ...
    return as_floats(add_ints(normal, shift_left_ints<21>(subnormal)));
}

template <Format F, int T>
void tile(const uint8_t* w, int64_t blocks, const Block* const* x, Floats* out) {
    constexpr Spec spec = layout::spec_of(F);
    constexpr Scale kind = spec.scale;
    constexpr int group = layout::blocks_per_header(kind);
    constexpr bool wide = is_wide(spec), halves = layout::by_halves(kind), with_min = layout::has_min(kind);
    constexpr int offset = spec.offset < 0 ? 0 : spec.offset - (wide ? 4 : 0);
    Floats acc[T];
    for (int t = 0; t < T; t++) acc[t] = zero_floats();
    for (int64_t b0 = 0; b0 < blocks; b0 += group) {
        Floats d, dmin;
        if constexpr (layout::is_super(kind)) d = load_half(w);
        if constexpr (layout::is_super(kind) && with_min) dmin = load_half(w + 16);
        w += layout::header_bytes(kind);
        for (int64_t b = b0; b < b0 + group; b++) {
            Shorts s[T], u[T];
            for (int t = 0; t < T; t++) {
                const Shorts minus = shorts_of(repeat4(x[t][b].minus));
                if constexpr (halves && spec.offset >= 0) {
                    const Shorts minus_lo = shorts_of(repeat4(x[t][b].half_minus[0]));
                    s[t] = shift_left<offset>(minus_lo);
                    u[t] = shift_left<offset>(sub_shorts(minus, minus_lo));
                } else if constexpr (wide) {
                    s[t] = zero_shorts();
                    u[t] = shift_left<offset>(minus);
                } else {
                    s[t] = spec.offset >= 0 ? shift_left<offset>(minus) : zero_shorts();
                    u[t] = zero_shorts();
                }
            }
            if constexpr (T <= 2)  // memory bounds it, and the hardware's prefetch stops at each page
                for (size_t i = 0; i < layout::block_bytes(spec); i += 64) __builtin_prefetch(w + 4096 + i);
            const uint8_t* low = w + layout::scale_bytes(kind);
            dot_vector<F, T, 0>(low, x, b, s, u);
            dot_vector<F, T, 1>(low, x, b, s, u);
            dot_vector<F, T, 2>(low, x, b, s, u);
            dot_vector<F, T, 3>(low, x, b, s, u);

            Floats scale, min;
            Shorts scale_lo, scale_hi, min_lo, min_hi;
            if constexpr (kind == Scale::Half || kind == Scale::HalfMin) scale = load_half(w);
            if constexpr (kind == Scale::HalfMin) min = load_half(w + 16);
            if constexpr (kind == Scale::Exponent) scale = power_of_two(w);
            if constexpr (kind == Scale::Super) scale = mul(d, to_floats(load_i8(w)));
            if constexpr (kind == Scale::SuperMin) {
                scale = mul(d, to_floats(load_u8(w)));
                min = mul(dmin, to_floats(load_u8(w + 8)));
            }
            if constexpr (kind == Scale::Super16) {
                scale = d;
                scale_lo = twice(load_i8(w)), scale_hi = twice(load_i8(w + 8));
            }
            if constexpr (kind == Scale::Super16Min) {
                scale = d, min = dmin;
                const Ints lo = load_u8(w), hi = load_u8(w + 8);
                scale_lo = twice(and_ints(lo, 15)), scale_hi = twice(and_ints(hi, 15));
                min_lo = twice(shift_right_ints<4>(lo)), min_hi = twice(shift_right_ints<4>(hi));
            }
            for (int t = 0; t < T; t++) {
                const Block& block = x[t][b];
                Ints dot;
                if constexpr (halves) dot = add_ints(dot_shorts(s[t], scale_lo), dot_shorts(u[t], scale_hi));
                else dot = dot_shorts(s[t], all_shorts(1));
                if constexpr (wide) dot = add_ints(dot, dot_shorts(u[t], all_shorts(16)));
                if constexpr (with_min && !halves && spec.offset >= 0)  // centred so as to fit: undo it
                    dot = sub_ints(dot, dot_shorts(shorts_of(repeat4(block.minus)), all_shorts(1 << offset)));
                acc[t] = fma(mul(scale, all(block.scale)), to_floats(dot), acc[t]);
                if constexpr (kind == Scale::HalfMin) acc[t] = fma(min, all(block.sum), acc[t]);
                if constexpr (kind == Scale::SuperMin) acc[t] = fnma(min, all(block.sum), acc[t]);
                if constexpr (kind == Scale::Super16Min) {
                    const Shorts minus = shorts_of(repeat4(block.minus)), minus_lo = shorts_of(repeat4(block.half_minus[0]));
                    const Ints mins = add_ints(dot_shorts(minus_lo, min_lo), dot_shorts(sub_shorts(minus, minus_lo), min_hi));
                    acc[t] = fma(mul(min, all(block.scale)), to_floats(mins), acc[t]);
                }
            }
            w += layout::block_bytes(spec);
        }
    }
    for (int t = 0; t < T; t++) out[t] = acc[t];
}

template <Format F, int T> inline void rows_by_panels(const Product& p, int64_t t0, int64_t begin, int64_t end) {
    const Block* x[T];
    for (int t = 0; t < T; t++) x[t] = reinterpret_cast<const Block*>(p.x + static_cast<size_t>(t0 + t) * p.x_stride);
    for (int64_t panel = begin; panel < end; panel++) {
        Floats sums[T];
        tile<F, T>(p.w + static_cast<size_t>(panel) * p.panel_bytes, p.width / 32, x, sums);
        for (int t = 0; t < T; t++) put(p, p.y + (t0 + t) * p.ldy, panel * kPanel, sums[t]);
    }
}

// Panels in chunks that stay in the second cache while all rows of a chunk of x, which stays there too, pass over them.
template <Format F> void product(const Product& p) {
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel;
    const int64_t panels_at_once = std::max<int64_t>(1, static_cast<int64_t>((128 << 10) / p.panel_bytes));
    const int64_t rows_at_once = std::max<int64_t>(16, static_cast<int64_t>((192 << 10) / p.x_stride) / 8 * 8);
    for (int64_t r0 = 0; r0 < p.T; r0 += rows_at_once) {
        const int64_t r1 = std::min(p.T, r0 + rows_at_once);
        for (int64_t c0 = begin; c0 < end; c0 += panels_at_once) {
            const int64_t c1 = std::min(end, c0 + panels_at_once);
            int64_t t = r0;
            for (; t + 8 <= r1; t += 8) rows_by_panels<F, 8>(p, t, c0, c1);
            for (; t + 4 <= r1; t += 4) rows_by_panels<F, 4>(p, t, c0, c1);
            for (; t + 2 <= r1; t += 2) rows_by_panels<F, 2>(p, t, c0, c1);
            for (; t < r1; t++) rows_by_panels<F, 1>(p, t, c0, c1);
        }
    }
}

}  // namespace tiles

// A function a family, in the file of its name.
void multiply_floats(Format format, const Product& p);
void multiply_nibbles(Format format, const Product& p);
void multiply_fives(Format format, const Product& p);
void multiply_sixteens(Format format, const Product& p);
void multiply_bytes(Format format, const Product& p);
void multiply_tables(Format format, const Product& p);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
