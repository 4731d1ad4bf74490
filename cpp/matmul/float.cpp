// F32, F16, BF16: y[t, o] = sum_k x[t, k] * w[o, k]   x: float32 [T, D]   w: panels [O/8][D][8 rows]
// T <= 2: four panels side by side hide the latency of the multiply-add; memory bounds it.  T >= 4: 4 rows x 2 panels.
// One fused multiply-add a weight, in the order of k: the same bits for any T. Any D. Tests: tests/kernels/test_linear.py
#include "tile.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using namespace simd;

template <Format F> inline Floats weights(const uint8_t* w) {
    if constexpr (F == Format::F32) return load(reinterpret_cast<const float*>(w));
    if constexpr (F == Format::F16) return load_half(w);
    if constexpr (F == Format::BF16) return load_bfloat(w);
}

constexpr int64_t kDepth = 512;  // of k at a time, so that a tile's weights stay in the first cache while rows pass

// sums [t][panel] of rows t0.. and panels p0.. go on from k0 to k1.
template <Format F, int T, int P>
inline void tile(const Product& p, int64_t t0, int64_t p0, int64_t k0, int64_t k1, float (*sums)[kPanel], int64_t sums_stride) {
    constexpr int64_t step = kPanel * (F == Format::F32 ? 4 : 2);
    Floats acc[T][P];
    const float* x[T];
    const uint8_t* w[P];
    for (int t = 0; t < T; t++) {
        x[t] = reinterpret_cast<const float*>(p.x + static_cast<size_t>(t0 + t) * p.x_stride);
        for (int i = 0; i < P; i++) acc[t][i] = load(sums[t * sums_stride + i]);
    }
    for (int i = 0; i < P; i++) w[i] = p.w + static_cast<size_t>(p0 + i) * p.panel_bytes;
    for (int64_t k = k0; k < k1; k++) {
        for (int i = 0; i < P; i++) {
            const Floats row = weights<F>(w[i] + k * step);
            for (int t = 0; t < T; t++) acc[t][i] = fma(row, all(x[t][k]), acc[t][i]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int i = 0; i < P; i++) store(sums[t * sums_stride + i], acc[t][i]);
}

constexpr int64_t kRows = 48, kPanels = 8;  // a chunk whose sums are kept: 12 KB

template <Format F, int P> inline void chunk(const Product& p, int64_t r0, int64_t r1, int64_t p0, int64_t k0, int64_t k1,
                                             float (*sums)[kPanel]) {
    int64_t t = r0;
    const auto at = [&](int64_t row) { return sums + (row - r0) * kPanels; };
    if constexpr (P <= 2)
        for (; t + 4 <= r1; t += 4) tile<F, 4, P>(p, t, p0, k0, k1, at(t), kPanels);
    for (; t + 2 <= r1; t += 2) tile<F, 2, P>(p, t, p0, k0, k1, at(t), kPanels);
    for (; t < r1; t++) tile<F, 1, P>(p, t, p0, k0, k1, at(t), kPanels);
}

template <Format F> void product(const Product& p) {
    const int64_t begin = p.o_begin / kPanel, end = (p.o_end + kPanel - 1) / kPanel;
    float sums[kRows * kPanels][kPanel];
    for (int64_t r0 = 0; r0 < p.T; r0 += kRows) {
        const int64_t r1 = std::min(p.T, r0 + kRows), depth = r1 - r0 <= 4 ? p.width : kDepth;
        for (int64_t c0 = begin; c0 < end; c0 += kPanels) {
            const int64_t c1 = std::min(end, c0 + kPanels);
            for (int64_t i = 0; i < (r1 - r0) * kPanels; i++) store(sums[i], zero_floats());
            for (int64_t k0 = 0; k0 < p.width; k0 += depth) {
                const int64_t k1 = std::min(p.width, k0 + depth);
                int64_t i = c0;
                if (r1 - r0 < 4)
                    for (; i + 4 <= c1; i += 4) chunk<F, 4>(p, r0, r1, i, k0, k1, sums + (i - c0));
                for (; i + 2 <= c1; i += 2) chunk<F, 2>(p, r0, r1, i, k0, k1, sums + (i - c0));
                for (; i < c1; i++) chunk<F, 1>(p, r0, r1, i, k0, k1, sums + (i - c0));
            }
            for (int64_t t = r0; t < r1; t++)
                for (int64_t i = c0; i < c1; i++)
                    tiles::put(p, p.y + t * p.ldy, i * kPanel, load(sums[(t - r0) * kPanels + (i - c0)]));
        }
    }
}

}  // namespace

void multiply_floats(Format format, const Product& p) {
    if (format == Format::F16) return product<Format::F16>(p);
    if (format == Format::BF16) return product<Format::BF16>(p);
    product<Format::F32>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
