#include "attend.h"

#include <algorithm>
#include <cstring>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr int kTogether = 4;  // queries that read a tile together: 8 sums keep both multipliers busy and stay in registers

KVASIR_INLINE f8 read(const float* p) { return load(p); }
KVASIR_INLINE f8 read(const uint16_t* p) { return load_half(p); }

KVASIR_INLINE void write(float* p, float x) { *p = x; }
KVASIR_INLINE void write(uint16_t* p, float x) { *p = float_to_half(x); }

// s[g][u] = q[g] . k[u] for the 16 keys of a tile.  k: [d][16]
template <int G, class E>
inline void scores(const E* k, const float* const* q, int64_t d, f8 (*s)[2]) {
    f8 a[G][2];
    for (int g = 0; g < G; g++) a[g][0] = a[g][1] = all(0);
    for (int64_t i = 0; i < d; i++) {
        f8 k0 = read(k + i * kBlock), k1 = read(k + i * kBlock + 8);
        for (int g = 0; g < G; g++) {
            f8 by = all(q[g][i]);
            a[g][0] = fma(by, k0, a[g][0]);
            a[g][1] = fma(by, k1, a[g][1]);
        }
    }
    for (int g = 0; g < G; g++) s[g][0] = a[g][0], s[g][1] = a[g][1];
}

// y[g] += sum_u p[g][u] v[u] over keys [from, to) and columns of C vectors.  v: [16][stride], y: rows `stride` apart
template <int G, int C, class E>
inline void weigh(const E* v, const float* p, float* y, int64_t stride, int from, int to) {
    f8 a[G][C];
    for (int g = 0; g < G; g++)
        for (int c = 0; c < C; c++) a[g][c] = load(y + g * stride + c * 8);
    for (int u = from; u < to; u++) {
        f8 column[C];
        for (int c = 0; c < C; c++) column[c] = read(v + u * stride + c * 8);
        for (int g = 0; g < G; g++)
            for (int c = 0; c < C; c++) a[g][c] = fma(all(p[g * kBlock + u]), column[c], a[g][c]);
    }
    for (int g = 0; g < G; g++)
        for (int c = 0; c < C; c++) store(y + g * stride + c * 8, a[g][c]);
}

// The running softmax of G queries: heads of a row, or of neighbouring rows where all see the whole tile.
struct Running {
    float* sums;   // [G][stride]  sum of p v so far
    float* peak;   // [G]          greatest score so far
    float* total;  // [G][8]       sum of p, by lane
};

template <int G, class E>
inline void visit(const E* k, const E* v, const float* const* q, int64_t d, int64_t stride, const AttendShape& shape, int from, int to,
                  Running r) {
    f8 s[G][2];
    float p[G * kBlock];
    scores<G>(k, q, d, s);
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int g = 0; g < G; g++) {
        f8 s0 = s[g][0] * shape.scale, s1 = s[g][1] * shape.scale;
        if (shape.softcap > 0) {
            s0 = shape.softcap * tanh(s0 / shape.softcap);
            s1 = shape.softcap * tanh(s1 / shape.softcap);
        }
        s0 = ((lane >= from) & (lane < to)) ? s0 : all(-kInfinity);
        s1 = ((lane + 8 >= from) & (lane + 8 < to)) ? s1 : all(-kInfinity);
        float top = largest(s0 > s1 ? s0 : s1), *total = r.total + g * 8, *sums = r.sums + g * stride;
        if (top > r.peak[g]) {
            float keep = exp_one(r.peak[g] - top);
            r.peak[g] = top;
            store(total, load(total) * keep);
            for (int64_t i = 0; i < stride; i += 8) store(sums + i, load(sums + i) * keep);
        }
        s0 = exp(s0 - r.peak[g]);
        s1 = exp(s1 - r.peak[g]);
        store(total, load(total) + (s0 + s1));
        store(p + g * kBlock, s0);
        store(p + g * kBlock + 8, s1);
    }
    int64_t i = 0;
    for (; i + 16 <= stride; i += 16) weigh<G, 2>(v + i, p, r.sums + i, stride, from, to);
    if (i < stride) weigh<G, 1>(v + i, p, r.sums + i, stride, from, to);
}

class AttendOp : public Op {
   public:
    AttendOp(Value q, Value k, Value v, std::shared_ptr<Cache> cache, AttendShape shape, Floats sinks, Value out, int threads)
        : q_(q), k_(k), v_(v), out_(out), shape_(shape), sinks_(std::move(sinks)), own_(!cache), cache_(std::move(cache)) {
        if (own_) cache_ = std::make_shared<Cache>(false, shape.kv_heads, k.width, v.width);
        group_ = shape.heads / shape.kv_heads;
        scratch_.resize(static_cast<size_t>(threads));
        floats_ = kTileRows * group_ * (cache_->v_stride + 8 + 1) + 8;
    }

    int phases() const override { return 2; }

    void begin(const Step& s) override {
        if (own_) cache_->reserve(s.fresh_blocks.back());
        if (static_cast<size_t>(s.threads) > scratch_.size()) scratch_.resize(static_cast<size_t>(s.threads));
        for (Scratch& mine : scratch_) {
            mine.floats.reserve(static_cast<size_t>(floats_) * sizeof(float));
            mine.queries.resize(static_cast<size_t>(kTileRows * group_));
        }
    }

    Work work(const Step& s, int phase) const override {
        if (phase == 0) return {s.T, 20 + 1.0 * static_cast<double>(k_.width + v_.width)};
        int64_t tiles = static_cast<int64_t>(s.tiles.size()), reach = 0;
        for (const Tile& t : s.tiles) reach += s.positions[t.end - 1] + 1;
        if (shape_.window > 0) reach = std::min<int64_t>(reach, tiles * (shape_.window + kTileRows));
        double rows = static_cast<double>(s.T) / static_cast<double>(tiles), past = static_cast<double>(reach) / static_cast<double>(tiles);
        return {tiles * shape_.kv_heads, 100 + 0.03 * past * rows * group_ * static_cast<double>(cache_->k_dim + cache_->v_dim)};
    }

    void run(const Step& s, int phase, int64_t begin, int64_t end, int thread) override {
        if (phase == 0) {
            for (int64_t t = begin; t < end; t++) cache_->half ? keep<uint16_t>(s, t) : keep<float>(s, t);
            return;
        }
        // Tasks go head by head within a tile row, the longest pasts first: a late long task would keep the others waiting.
        for (int64_t i = begin; i < end; i++) {
            const Tile& tile = s.tiles[s.tiles.size() - 1 - static_cast<size_t>(i / shape_.kv_heads)];
            int head = static_cast<int>(i % shape_.kv_heads);
            cache_->half ? look<uint16_t>(s, tile, head, thread) : look<float>(s, tile, head, thread);
        }
    }

   private:
    // A position counts from the sequence's first row where there is no cache.
    int64_t position(const Step& s, int64_t t) const { return own_ ? t - s.starts[s.sequence[static_cast<size_t>(t)]] : s.positions[t]; }

    int64_t block(const Step& s, int64_t n, int64_t i) const {
        return own_ ? s.fresh_blocks[static_cast<size_t>(n)] + i : s.blocks[n * s.B + i];
    }

    template <class E>
    void keep(const Step& s, int64_t t) {
        const Cache& c = *cache_;
        int64_t at = position(s, t), u = at % kBlock, b = block(s, s.sequence[static_cast<size_t>(t)], at / kBlock);
        for (int h = 0; h < shape_.kv_heads; h++) {
            const float *k = s.at(k_, t) + h * c.k_dim, *v = s.at(v_, t) + h * c.v_dim;
            E* keys = reinterpret_cast<E*>(c.tile(b, h));
            E* values = keys + c.k_dim * kBlock + u * c.v_stride;
            for (int64_t i = 0; i < c.k_dim; i++) write(keys + i * kBlock + u, k[i]);
            for (int64_t i = 0; i < c.v_dim; i++) write(values + i, v[i]);
        }
    }

    // The rows of a tile over one kv head: each block of their pasts is read once for all of them.
    template <class E>
    void look(const Step& s, const Tile& tile, int head, int thread) {
        const Cache& c = *cache_;
        const int64_t stride = c.v_stride, rows = tile.end - tile.begin, n = tile.sequence;
        Scratch& scratch = scratch_[static_cast<size_t>(thread)];
        float* sums = scratch.floats.as<float>();
        float* total = sums + rows * group_ * stride;
        float* peak = total + rows * group_ * 8;
        std::fill(sums, peak, 0.0f);
        std::fill(peak, peak + rows * group_, -kInfinity);
        const float** queries = scratch.queries.data();
        for (int64_t i = 0; i < rows * group_; i++)
            queries[i] = s.at(q_, tile.begin + i / group_) + (head * group_ + i % group_) * c.k_dim;
        const int64_t end = position(s, s.starts[n + 1] - 1) + 1, last = position(s, tile.end - 1);
        const int64_t first = oldest(position(s, tile.begin));
        for (int64_t b = first / kBlock; b * kBlock < (shape_.causal ? last + 1 : end); b++) {
            const E* k = reinterpret_cast<const E*>(c.tile(block(s, n, b), head));
            const E* v = k + c.k_dim * kBlock;
            auto visit = [&](int64_t begin, int64_t stop, int64_t from, int64_t to) {  // queries [begin, stop), keys [from, to)
                for (int64_t i = begin; i < stop; i += kTogether) {
                    Running now{sums + i * stride, peak + i, total + i * 8};
                    some(std::min<int64_t>(kTogether, stop - i), k, v, queries + i, static_cast<int>(from), static_cast<int>(to), now);
                }
            };
            bool whole = oldest(last) <= b * kBlock && (!shape_.causal || position(s, tile.begin) >= (b + 1) * kBlock - 1) &&
                         end >= (b + 1) * kBlock;
            if (whole) {
                visit(0, rows * group_, 0, kBlock);
                continue;
            }
            for (int64_t r = 0; r < rows; r++) {
                int64_t at = position(s, tile.begin + r);
                int64_t from = std::max<int64_t>(0, oldest(at) - b * kBlock);
                int64_t to = std::min<int64_t>(kBlock, (shape_.causal ? at + 1 : end) - b * kBlock);
                if (from < to) visit(r * group_, (r + 1) * group_, from, to);
            }
        }
        for (int64_t r = 0; r < rows; r++)
            for (int g = 0; g < group_; g++) {
                int64_t i = r * group_ + g;
                finish(s, tile.begin + r, head * group_ + g, sums + i * stride, peak[i], sum(load(total + i * 8)));
            }
    }

    int64_t oldest(int64_t at) const { return shape_.window > 0 ? std::max<int64_t>(0, at - shape_.window + 1) : 0; }

    template <class E>
    void some(int64_t g, const E* k, const E* v, const float* const* q, int from, int to, Running r) const {
        const int64_t d = cache_->k_dim, stride = cache_->v_stride;
        switch (g) {
            case 1: return visit<1>(k, v, q, d, stride, shape_, from, to, r);
            case 2: return visit<2>(k, v, q, d, stride, shape_, from, to, r);
            case 3: return visit<3>(k, v, q, d, stride, shape_, from, to, r);
            default: return visit<4>(k, v, q, d, stride, shape_, from, to, r);
        }
    }

    void finish(const Step& s, int64_t t, int h, const float* sums, float peak, float total) const {
        float by = 1;
        if (sinks_) {  // a score without a value
            float sink = (*sinks_)[static_cast<size_t>(h)], top = std::max(peak, sink);
            by = exp_one(peak - top);
            total = total * by + exp_one(sink - top);
        }
        by = by / total;
        map(sums, s.at(out_, t) + h * cache_->v_dim, cache_->v_dim, [by](f8 x) { return x * by; });
    }

    struct Scratch {
        Buffer floats;
        std::vector<const float*> queries;
    };

    Value q_, k_, v_, out_;
    AttendShape shape_;
    Floats sinks_;
    bool own_;
    std::shared_ptr<Cache> cache_;
    int group_;
    int64_t floats_;
    std::vector<Scratch> scratch_;  // one a thread
};

}  // namespace

Cache::Cache(bool is_half, int heads, int64_t k_width, int64_t v_width)
    : half(is_half), kv_heads(heads), k_dim(k_width / heads), v_dim(v_width / heads), v_stride((v_dim + 7) / 8 * 8),
      element(is_half ? 2 : 4), tile_bytes((k_dim + v_stride) * kBlock * element) {}

void Cache::reserve(int64_t n_blocks) { data_.reserve(static_cast<size_t>(n_blocks * kv_heads * tile_bytes)); }

std::unique_ptr<Op> attend(Value q, Value k, Value v, std::shared_ptr<Cache> cache, AttendShape shape, Floats sinks, Value out,
                           int threads) {
    return std::make_unique<AttendOp>(q, k, v, std::move(cache), shape, std::move(sinks), out, threads);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
