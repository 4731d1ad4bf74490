// F32, F16, BF16: y[t, o] = sum_k x[t, k] * w[o, k]   x: float32 [T, D]   w: panels [O/8][D][8 rows]
// T <= 2: four panels side by side hide the latency of the multiply-add; memory bounds it. More rows: 6 rows x 2 panels, twelve
// sums in registers. For many rows a piece of two panels is made floats once, in the first cache, and the rows pass over it.
// Its panels lie column by column side by side: two streams a multiple of 4096 bytes apart would halve the speed.
// One fused multiply-add a weight, in the order of k: the same bits for any T. Any D. Tests: tests/kernels/test_linear.py
#include "tile.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using namespace simd;

constexpr int64_t kDepth = 256;               // of k in a piece: two panels of it are 16 KB as floats
constexpr int64_t kRows = 96, kPanels = 8;    // whose sums are kept while pieces of k pass
constexpr int64_t kTile = 6;                  // rows
constexpr int64_t kMany = 32;                 // rows above which a piece is made floats first
constexpr int64_t kColumn = 2 * kPanel * 4;   // bytes between the columns of such a piece
using Sums = float (*)[kPanel];               // [row][kPanels] of 8 lanes

constexpr int64_t step_of(Format f) { return kPanel * (f == Format::F32 ? 4 : 2); }

template <Format F> inline Floats weights(const uint8_t* w) {
    if constexpr (F == Format::F32) return load(reinterpret_cast<const float*>(w));
    if constexpr (F == Format::F16) return load_half(w);
    if constexpr (F == Format::BF16) return load_bfloat(w);
}

// The sums of T rows and P panels go on over n of k; w: the panels from there on, a column every Step bytes, x: the rows.
template <Format F, int T, int P, int64_t Step = step_of(F)>
inline void tile(const uint8_t* const* from, const float* const* rows, int64_t n, Sums sums) {
    Floats acc[T][P];
    const float* x[T];
    const uint8_t* w[P];
    for (int i = 0; i < P; i++) w[i] = from[i];
    for (int t = 0; t < T; t++) {
        x[t] = rows[t];
        for (int i = 0; i < P; i++) acc[t][i] = load(sums[t * kPanels + i]);
    }
#pragma GCC unroll 2
    for (int64_t k = 0; k < n; k++) {
        Floats column[P];
        for (int i = 0; i < P; i++) column[i] = weights<F>(w[i] + k * Step);
        for (int t = 0; t < T; t++) {
            const Floats v = all(x[t][k]);
            for (int i = 0; i < P; i++) acc[t][i] = fma(column[i], v, acc[t][i]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int i = 0; i < P; i++) store(sums[t * kPanels + i], acc[t][i]);
}

// The piece that will be wanted next, of so many panels.
struct Next {
    const uint8_t* at[2];
    int64_t panels, step;  // bytes a column
};

// As `tile`, and fetches `next` meanwhile: a few lines at a time, since a burst of them would fill the queue of misses and
// hold up the loads of whoever sends it.
template <Format F, int T, int P, int64_t Step>
inline void tile_and_fetch(const uint8_t* const* w, const float* const* rows, int64_t n, Sums sums, const Next& next) {
    constexpr int64_t kStep = 32;
    for (int64_t k = 0; k < n; k += kStep) {
        const int64_t here = std::min(kStep, n - k);
        for (int64_t j = 0; j < next.panels; j++)
            for (int64_t i = k * next.step; i < (k + here) * next.step; i += 64) __builtin_prefetch(next.at[j] + i);
        const uint8_t* u[P];
        const float* x[T];
        for (int i = 0; i < P; i++) u[i] = w[i] + k * Step;
        for (int t = 0; t < T; t++) x[t] = rows[t] + k;
        tile<F, T, P, Step>(u, x, here, sums);
    }
}

// All rows of a chunk in tiles that are as even as can be: 8 rows as 4 and 4, not as 6 and 2.
template <Format F, int P, int64_t Step = step_of(F)>
inline void all_rows(const Product& p, int64_t r0, int64_t r1, int64_t k0, int64_t n, const uint8_t* const* w, Sums sums,
                     const Next& next) {
    for (int64_t t = r0, tiles = (r1 - r0 + kTile - 1) / kTile; t < r1; tiles--) {
        const int64_t here = (r1 - t + tiles - 1) / tiles;
        const float* x[kTile] = {};
        for (int64_t i = 0; i < here; i++) x[i] = reinterpret_cast<const float*>(p.x + static_cast<size_t>(t + i) * p.x_stride) + k0;
        const Sums at = sums + (t - r0) * kPanels;
        const bool fetch = t == r0 && next.panels > 0;
        switch (here) {
            case 1: tile<F, 1, P, Step>(w, x, n, at); break;
            case 2: tile<F, 2, P, Step>(w, x, n, at); break;
            case 3: tile<F, 3, P, Step>(w, x, n, at); break;
            case 4: fetch ? tile_and_fetch<F, 4, P, Step>(w, x, n, at, next) : tile<F, 4, P, Step>(w, x, n, at); break;
            case 5: fetch ? tile_and_fetch<F, 5, P, Step>(w, x, n, at, next) : tile<F, 5, P, Step>(w, x, n, at); break;
            default: fetch ? tile_and_fetch<F, 6, P, Step>(w, x, n, at, next) : tile<F, 6, P, Step>(w, x, n, at);
        }
        t += here;
    }
}

// One row or two, any panels: all of k at once.
template <Format F, int P> inline void few_rows(const Product& p, int64_t panel, Sums sums) {
    const uint8_t* w[P];
    const float* x[2] = {reinterpret_cast<const float*>(p.x),
                         reinterpret_cast<const float*>(p.x + static_cast<size_t>(p.T - 1) * p.x_stride)};
    for (int64_t i = 0; i < P; i++) w[i] = p.w + static_cast<size_t>(panel + i) * p.panel_bytes;
    p.T == 2 ? tile<F, 2, P>(w, x, p.width, sums) : tile<F, 1, P>(w, x, p.width, sums);
}

void put_all(const Product& p, int64_t r0, int64_t r1, int64_t c0, int64_t c1, Sums sums) {
    for (int64_t t = r0; t < r1; t++)
        for (int64_t i = c0; i < c1; i++) tiles::put(p, p.y + t * p.ldy, i * kPanel, load(sums[(t - r0) * kPanels + (i - c0)]));
}

template <Format F> void few(const Product& p) {
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel;
    alignas(64) float sums[2 * kPanels][kPanel];
    for (int64_t i = begin; i < end;) {
        std::fill(&sums[0][0], &sums[0][0] + 2 * kPanels * kPanel, 0.0f);
        const int64_t here = end - i >= 4 ? 4 : 1;
        here == 4 ? few_rows<F, 4>(p, i, sums) : few_rows<F, 1>(p, i, sums);
        put_all(p, 0, p.T, i, i + here, sums);
        i += here;
    }
}

// The floats of a piece of a panel, each column to its place in `scratch`.
template <Format F> inline void make_floats(const uint8_t* w, int64_t n, float* scratch) {
    for (int64_t k = 0; k < n; k++) store(scratch + k * 2 * kPanel, weights<F>(w + k * step_of(F)));
}

template <Format F> void many(const Product& p) {
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel;
    const bool direct = p.T <= kMany;
    const int64_t at_once = p.T <= kMany ? 2 : kPanels;  // few rows: the weights come from memory, in their order
    alignas(64) float sums[kRows * kPanels][kPanel], scratch[kDepth * 2 * kPanel];
    for (int64_t r0 = 0; r0 < p.T; r0 += kRows) {
        const int64_t r1 = std::min(p.T, r0 + kRows);
        for (int64_t c0 = begin; c0 < end; c0 += at_once) {
            const int64_t c1 = std::min(end, c0 + at_once);
            std::fill(&sums[0][0], &sums[0][0] + (r1 - r0) * kPanels * kPanel, 0.0f);
            for (int64_t k0 = 0; k0 < p.width; k0 += kDepth) {
                const int64_t n = std::min(kDepth, p.width - k0);
                for (int64_t i = c0; i < c1; i += 2) {
                    const int64_t here = std::min<int64_t>(2, c1 - i);
                    const uint8_t* w[2] = {};
                    Next next{{}, direct ? 0 : here, step_of(F)};  // few rows read two streams, which the hardware foresees
                    for (int64_t j = 0; j < here; j++) {
                        w[j] = p.w + static_cast<size_t>(i + j) * p.panel_bytes + static_cast<size_t>(k0 * step_of(F));
                        next.at[j] = w[j] + n * step_of(F) + (k0 + n == p.width ? p.panel_bytes : 0);
                        if (direct) continue;
                        make_floats<F>(w[j], n, scratch + j * kPanel);
                        w[j] = reinterpret_cast<const uint8_t*>(scratch + j * kPanel);
                    }
                    const Sums at = sums + (i - c0);
                    if (direct && here == 2) all_rows<F, 2>(p, r0, r1, k0, n, w, at, next);
                    else if (direct) all_rows<F, 1>(p, r0, r1, k0, n, w, at, next);
                    else if (here == 2) all_rows<Format::F32, 2, kColumn>(p, r0, r1, k0, n, w, at, next);
                    else all_rows<Format::F32, 1, kColumn>(p, r0, r1, k0, n, w, at, next);
                }
            }
            put_all(p, r0, r1, c0, c1, sums);
        }
    }
}

template <Format F> void product(const Product& p) { p.T <= 2 ? few<F>(p) : many<F>(p); }

}  // namespace

void multiply_floats(Format format, const Product& p) {
    if (format == Format::F16) return product<Format::F16>(p);
    if (format == Format::BF16) return product<Format::BF16>(p);
    product<Format::F32>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
