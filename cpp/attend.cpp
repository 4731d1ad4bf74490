#include "attend.h"

#include <stdexcept>
#include <type_traits>

#include "attend_group.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr int64_t kPart = 512;   // tokens whose softmax is computed by itself; a multiple of kChunk
constexpr int kTileQueries = 48;  // queries of neighbouring rows that share each key read: their sums and scores fit the L1 cache
constexpr int kFew = 12;          // so many multiply what the cache holds as they read it; more share floats made of it once

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows [begin, end) of one sequence over parts [first, last) of its past, for one kv head at a time.
struct Task {
    int32_t sequence, begin, end, first, last;
    int64_t kept;  // where the result waits to be joined, in floats; -1: the task has all parts and finishes
};

// Tasks [first, last) have the parts of the same rows.
struct Join {
    size_t first, last;
};

// What a thread works in. M queries; `slices` of 16 columns.
struct Scratch {
    Buffer floats;
    float *q, *scores, *sums, *whole, *keys, *column;
    std::vector<Softmax> softmax;
    std::vector<Joined> joined;
    std::vector<Seen> seen;

    void reserve(int64_t M, int64_t d, int64_t slices) {
        const int64_t sizes[6] = {M * d, M * kChunk, M * slices * 16, M * slices * 16, d * kBlock, kChunk * 16};
        int64_t total = 0;
        for (int64_t size : sizes) total += round_up(size, 16);
        floats.reserve(static_cast<size_t>(total) * sizeof(float));
        float* at = floats.as<float>();
        float** const all_of[6] = {&q, &scores, &sums, &whole, &keys, &column};
        for (int i = 0; i < 6; i++) *all_of[i] = at, at += round_up(sizes[i], 16);
        softmax.resize(static_cast<size_t>(M));
        joined.resize(static_cast<size_t>(M));
        seen.resize(static_cast<size_t>(M));
    }
};

class AttendOp : public Op {
   public:
    AttendOp(Value q, Value k, Value v, std::shared_ptr<Cache> cache, AttendShape shape, Floats sinks, Value out, int threads)
        : q_(q), k_(k), v_(v), out_(out), shape_(shape), sinks_(std::move(sinks)), own_(!cache), cache_(std::move(cache)) {
        if (own_) cache_ = std::make_shared<Cache>(KvFormat::f32, shape.kv_heads, k.width, v.width);
        group_ = shape.heads / shape.kv_heads;
        slices_ = round_up(cache_->v_stride, 16) / 16;
        scratch_.resize(static_cast<size_t>(threads));
    }

    int phases() const override { return 3; }  // keep, look, join
    bool by_rows() const override { return true; }

    void begin(const Step& s) override {
        if (own_) cache_->reserve(s.fresh_blocks.back());
        const int64_t rows = std::max(1, kTileQueries / group_);
        if (static_cast<size_t>(s.threads) > scratch_.size()) scratch_.resize(static_cast<size_t>(s.threads));
        for (Scratch& mine : scratch_) mine.reserve(rows * group_, cache_->k_dim, slices_);
        deal(s, rows);
    }

    Work work(const Step& s, int phase) const override {
        const int64_t heads = shape_.kv_heads;
        if (phase == 0) return {s.T, 20 + 0.5 * static_cast<double>(k_.width + v_.width)};
        if (phase == 2) return {static_cast<int64_t>(joins_.size()) * heads, 1000};
        const auto tasks = static_cast<int64_t>(tasks_.size());
        return {tasks * heads, 100 + visible_ * static_cast<double>(cache_->k_dim + cache_->v_dim) / static_cast<double>(tasks)};
    }

    void run(const Step& s, int phase, int64_t begin, int64_t end, int thread) override {
        switch (cache_->format) {
            case KvFormat::f32: return run_in<Plain<float>>(s, phase, begin, end, thread);
            case KvFormat::f16: return run_in<Plain<uint16_t>>(s, phase, begin, end, thread);
            case KvFormat::q8_0: return run_in<Bytes>(s, phase, begin, end, thread);
        }
    }

   private:
    // A position counts from the sequence's first row where there is no cache.
    int64_t position(const Step& s, int64_t t) const { return own_ ? t - s.starts[s.sequence[static_cast<size_t>(t)]] : s.positions[t]; }
    int64_t block(const Step& s, int64_t n, int64_t i) const {
        return own_ ? s.fresh_blocks[static_cast<size_t>(n)] + i : s.blocks[n * s.B + i];
    }
    int64_t oldest(int64_t at) const { return shape_.window > 0 ? std::max<int64_t>(0, at - shape_.window + 1) : 0; }
    int64_t stop(const Step& s, int64_t n, int64_t at) const {  // behind the last position that a row at `at` sees
        return shape_.causal ? at + 1 : position(s, s.starts[n + 1] - 1) + 1;
    }

    // The step's tasks, the longest pasts first: a late long task would keep the other threads waiting. Where tasks are few,
    // each part of a past becomes one of its own.
    void deal(const Step& s, int64_t rows) {
        tasks_.clear(), joins_.clear();
        visible_ = 0;
        int64_t kept = 0, tiles = 0;
        for (int64_t n = 0; n < s.N; n++) tiles += (s.starts[n + 1] - s.starts[n] + rows - 1) / rows;
        const bool few = tiles * shape_.kv_heads < 8 * s.threads;
        for (int64_t n = s.N - 1; n >= 0; n--) {
            const int32_t first_row = s.starts[n], count = s.starts[n + 1] - first_row;
            for (int64_t i = (count - 1) / rows * rows; i >= 0; i -= rows) {
                const int64_t begin = first_row + i, end = std::min<int64_t>(begin + rows, s.starts[n + 1]);
                const int64_t from = oldest(position(s, begin)), to = stop(s, n, position(s, end - 1));
                Task task{static_cast<int32_t>(n), static_cast<int32_t>(begin), static_cast<int32_t>(end),
                          static_cast<int32_t>(from / kPart), static_cast<int32_t>((to + kPart - 1) / kPart), -1};
                visible_ += static_cast<double>(to - from) * (0.1 + 0.022 * static_cast<double>((end - begin) * group_));
                if (!few || task.last - task.first == 1) {
                    tasks_.push_back(task);
                    continue;
                }
                joins_.push_back({tasks_.size(), tasks_.size() + static_cast<size_t>(task.last - task.first)});
                for (int32_t p = task.first, last = task.last; p < last; p++) {
                    task.first = p, task.last = p + 1, task.kept = kept;
                    kept += shape_.kv_heads * kept_floats(task);
                    tasks_.push_back(task);
                }
            }
        }
        kept_.reserve(static_cast<size_t>(kept) * sizeof(float));
    }

    int64_t queries(const Task& task) const { return (task.end - task.begin) * group_; }
    int64_t kept_floats(const Task& task) const { return queries(task) * (slices_ * 16 + 2); }  // sums, peaks, totals
    float* kept(const Task& task, int64_t head) const { return kept_.as<float>() + task.kept + head * kept_floats(task); }

    template <class F>
    void run_in(const Step& s, int phase, int64_t begin, int64_t end, int thread) {
        Scratch& mine = scratch_[static_cast<size_t>(thread)];
        for (int64_t i = begin; i < end; i++) {
            const auto which = static_cast<size_t>(i / shape_.kv_heads);
            const int head = static_cast<int>(i % shape_.kv_heads);
            if (phase == 0) keep<F>(s, i);
            if (phase == 1) look<F>(s, tasks_[which], head, mine);
            if (phase == 2) join_parts(s, joins_[which], head, mine);
        }
    }

    template <class F>
    void keep(const Step& s, int64_t t) {
        const Cache& c = *cache_;
        const int64_t at = position(s, t), b = block(s, s.sequence[static_cast<size_t>(t)], at / kBlock);
        for (int h = 0; h < shape_.kv_heads; h++)
            F::write(c, c.tile(b, h), at % kBlock, s.at(k_, t) + h * c.k_dim, s.at(v_, t) + h * c.v_dim);
    }

    template <class F>
    void look(const Step& s, const Task& task, int head, Scratch& mine) {
        const int64_t M = queries(task), slice = M * 16;
        const int64_t from = oldest(position(s, task.begin)), to = stop(s, task.sequence, position(s, task.end - 1));
        turn_queries(s, task, head, mine.q);
        for (int64_t i = 0; i < M; i++) mine.joined[static_cast<size_t>(i)] = {};
        for (int64_t part = task.first; part < task.last; part++) {
            float* sums = task.kept < 0 ? mine.sums : kept(task, head);
            std::fill(sums, sums + M * slices_ * 16, 0.0f);
            for (int64_t i = 0; i < M; i++) mine.softmax[static_cast<size_t>(i)] = {};
            const int64_t begin = std::max(part * kPart, from / kChunk * kChunk), end = std::min((part + 1) * kPart, to);
            for (int64_t u = begin; u < end; u += kChunk) visit<F>(s, task, head, u, sums, mine);
            float *peaks = sums + M * slices_ * 16, *totals = peaks + M;
            for (int64_t i = 0; i < M; i++) {
                const Softmax& now = mine.softmax[static_cast<size_t>(i)];
                const float total = sum(now.total);
                if (task.kept < 0)
                    join(mine.joined[static_cast<size_t>(i)], mine.whole + i * 16, sums + i * 16, now.peak, total, slice, slices_);
                else
                    peaks[i] = now.peak, totals[i] = total;
            }
        }
        if (task.kept < 0) finish(s, task, head, mine);
    }

    void join_parts(const Step& s, const Join& parts, int head, Scratch& mine) {
        const Task& rows = tasks_[parts.first];
        const int64_t M = queries(rows);
        for (int64_t i = 0; i < M; i++) {
            Joined& now = mine.joined[static_cast<size_t>(i)] = {};
            for (size_t p = parts.first; p < parts.last; p++) {
                const float *sums = kept(tasks_[p], head), *peaks = sums + M * slices_ * 16, *totals = peaks + M;
                join(now, mine.whole + i * 16, sums + i * 16, peaks[i], totals[i], M * 16, slices_);
            }
        }
        finish(s, rows, head, mine);
    }

    // Groups of queries lie one behind another, each [d][G], and carry the scale.
    void turn_queries(const Step& s, const Task& task, int head, float* to) const {
        const int64_t d = cache_->k_dim, M = queries(task);
        const float by = shape_.softcap > 0 ? shape_.scale : shape_.scale * kLog2e;
        each_group(M, [&](int64_t first, int G) {
            for (int64_t i = first; i < first + G; i++) {
                const float* q = s.at(q_, task.begin + i / group_) + (head * group_ + i % group_) * d;
                for (int64_t j = 0; j < d; j++) to[first * d + j * G + (i - first)] = q[j] * by;
            }
        });
    }

    // One chunk, the 64 tokens from u on, for all queries of the task.
    template <class F>
    void visit(const Step& s, const Task& task, int head, int64_t u, float* sums, Scratch& mine) const {
        const int64_t M = queries(task);
        int from = kChunk, to = 0;  // what any query sees
        for (int64_t i = 0; i < M; i += group_) {
            const int64_t at = position(s, task.begin + i / group_);
            Seen seen{static_cast<int>(std::clamp<int64_t>(oldest(at) - u, 0, kChunk)),
                      static_cast<int>(std::clamp<int64_t>(stop(s, task.sequence, at) - u, 0, kChunk))};
            if (seen.from >= seen.to) seen = {0, 0};
            std::fill_n(mine.seen.begin() + i, group_, seen);
            if (seen.to > 0) from = std::min(from, seen.from), to = std::max(to, seen.to);
        }
        if (to == 0) return;
        const int first = from / kBlock, last = (to + kBlock - 1) / kBlock;
        const int64_t final_block = (stop(s, task.sequence, position(s, task.end - 1)) - 1) / kBlock;
        const uint8_t *tiles[kChunkTiles] = {}, *next[kChunkTiles] = {};
        for (int t = first; t < last; t++) {
            const int64_t b = u / kBlock + t;
            tiles[t] = cache_->tile(block(s, task.sequence, b), head);
            next[t] = cache_->tile(block(s, task.sequence, std::min(b + kChunkTiles, final_block)), head);
        }
        if (M <= kFew)
            visit_few<F>(tiles, next, first, last, M, sums, mine);
        else
            visit_many<F>(tiles, next, first, last, M, sums, mine);
    }

    // Few queries read the cache as it is.
    template <class F>
    void visit_few(const uint8_t* const* tiles, const uint8_t* const* next, int first, int last, int64_t M, float* sums,
                   Scratch& mine) const {
        typename F::Keys keys[kChunkTiles];
        typename F::Values values[kChunkTiles];
        for (int t = first; t < last; t++) keys[t] = F::keys(*cache_, tiles[t]), values[t] = F::values(*cache_, tiles[t]);
        const int64_t d = cache_->k_dim, width = cache_->v_stride;
        each_group(M, [&](int64_t i, int G) {
            float* to = mine.scores + i * kChunk;
            with_count(G, [&](auto g) { score_tiles<g()>(keys, first, last, cache_->key_bytes, mine.q + i * d, d, to); });
        });
        weights(M, sums, mine);
        each_group(M, [&](int64_t i, int G) {
            const float* p = mine.scores + i * kChunk;
            float* y = sums + i * 16;
            with_count(G, [&](auto g) {
                by_reach<g()>(
                    mine.seen.data() + i,
                    [&](int from, int to) { weigh_columns<g(), true>(values, next, width, p, y, M * 16, from, to); },
                    [&](int j, int from, int to) {
                        weigh_columns<1, true>(values, next, width, p + j * kChunk, y + j * 16, M * 16, from, to);
                    });
            });
        });
    }

    // Many queries: keys and values become floats once for all of them, a tile of keys and 16 columns of values at a time.
    template <class F>
    void visit_many(const uint8_t* const* tiles, const uint8_t* const* next, int first, int last, int64_t M, float* sums,
                    Scratch& mine) const {
        for (int t = first; t < last; t++) {
            spread_keys<F>(tiles[t], mine.keys);
            Plain<float>::Keys keys{mine.keys};
            each_group(M, [&](int64_t i, int G) {
                const Seen* seen = mine.seen.data() + i;
                const bool wanted = std::any_of(seen, seen + G, [&](const Seen& x) { return x.from < (t + 1) * kBlock && x.to > t * kBlock; });
                float* to = mine.scores + i * kChunk + t * kBlock;
                if (wanted)
                    with_count(G, [&](auto g) { scores<g(), 1, false>(&keys, 0, mine.q + i * cache_->k_dim, cache_->k_dim, to); });
            });
        }
        weights(M, sums, mine);
        for (int64_t i = 0; i < slices_; i++) {
            for (int t = first; t < last; t++) spread_values<F>(tiles[t], next[t], i * 16, mine.column + t * kBlock * 16);
            each_group(M, [&](int64_t m, int G) {
                with_count(G, [&](auto g) { weigh_slice<g()>(m, M * 16, sums + i * M * 16 + m * 16, mine); });
            });
        }
    }

    template <int G>
    void weigh_slice(int64_t first, int64_t slice, float* y, Scratch& mine) const {
        Column column{mine.column};
        const float* p = mine.scores + first * kChunk;
        by_reach<G>(
            mine.seen.data() + first, [&](int from, int to) { weigh<G, 2, false>(&column, nullptr, 0, p, y, slice, from, to); },
            [&](int g, int from, int to) { weigh<1, 2, false>(&column, nullptr, 0, p + g * kChunk, y + g * 16, slice, from, to); });
    }

    void weights(int64_t M, float* sums, Scratch& mine) const {
        for (int64_t i = 0; i < M; i++) {
            const Seen& seen = mine.seen[static_cast<size_t>(i)];
            if (seen.from < seen.to)
                soften(mine.scores + i * kChunk, seen.from, seen.to, shape_.softcap, mine.softmax[static_cast<size_t>(i)], sums + i * 16,
                       M * 16, slices_);
        }
    }

    template <class F>
    void spread_keys(const uint8_t* tile, float* to) const {
        auto keys = F::keys(*cache_, tile);
        for (int64_t i = 0; i < cache_->k_dim; i++) {
            if (i % (kLine / (kBlock * F::Keys::kBytes)) == 0) ahead(static_cast<const uint8_t*>(keys.at(i)) + cache_->key_bytes);
            if (i % kScaled == 0) keys.block(i / kScaled);
            store(to + i * kBlock, keys.read(i, 0));
            store(to + i * kBlock + 8, keys.read(i, 1));
        }
    }

    // 16 columns of a tile's values; the last slice may have 8.
    template <class F>
    void spread_values(const uint8_t* tile, const uint8_t* next, int64_t column, float* to) const {
        auto values = F::values(*cache_, tile);
        const bool both = column + 16 <= cache_->v_stride;
        for (int u = 0; u < kBlock; u++) {
            constexpr int bytes = 16 * F::Values::kBytes;
            if (u % (kLine / bytes) == 0) ahead(next + column * kBlock * F::Values::kBytes + u * bytes);
            values.block(column / kScaled, u);
            store(to + u * 16, values.read(column, u));
            store(to + u * 16 + 8, both ? values.read(column + 8, u) : all(0));
        }
    }

    void finish(const Step& s, const Task& task, int head, Scratch& mine) const {
        const int64_t M = queries(task), width = cache_->v_dim;
        for (int64_t i = 0; i < M; i++) {
            const int64_t h = head * group_ + i % group_;
            const Joined& now = mine.joined[static_cast<size_t>(i)];
            float by = 1, total = now.total;
            if (sinks_) {  // a score without a value
                float sink = (*sinks_)[static_cast<size_t>(h)] * kLog2e, top = std::max(now.peak, sink);
                by = power_one(now.peak - top);
                total = total * by + power_one(sink - top);
            }
            by = by / total;
            float* y = s.at(out_, task.begin + i / group_) + h * width;
            for (int64_t c = 0; c < width; c += 16)
                map(mine.whole + c * M + i * 16, y + c, std::min<int64_t>(16, width - c), [by](f8 x) { return x * by; });
        }
    }

    Value q_, k_, v_, out_;
    AttendShape shape_;
    Floats sinks_;
    bool own_;
    std::shared_ptr<Cache> cache_;
    int group_;
    int64_t slices_;
    std::vector<Scratch> scratch_;  // one a thread
    std::vector<Task> tasks_;
    std::vector<Join> joins_;
    double visible_ = 0;  // ns: what the tasks cost for one number of a key or value
    Buffer kept_;
};

}  // namespace

KvFormat kv_format_from_name(const std::string& name) {
    if (name == "f32") return KvFormat::f32;
    if (name == "f16") return KvFormat::f16;
    if (name == "q8_0") return KvFormat::q8_0;
    throw std::invalid_argument("no cache format " + name);
}

namespace {
// Bytes of 16 tokens of n numbers, with their scales.
int64_t tile_part(KvFormat format, int64_t n) {
    const int64_t element = format == KvFormat::f32 ? 4 : format == KvFormat::f16 ? 2 : 1;
    const int64_t scales = format == KvFormat::q8_0 ? (n + kScaled - 1) / kScaled * 2 : 0;
    return round_up(kBlock * (n * element + scales), 64);
}
}  // namespace

Cache::Cache(KvFormat kv, int heads, int64_t k_width, int64_t v_width)
    : format(kv), kv_heads(heads), k_dim(k_width / heads), v_dim(v_width / heads), v_stride(round_up(v_dim, 8)),
      key_bytes(tile_part(kv, k_dim)), tile_bytes(key_bytes + tile_part(kv, v_stride)) {}

void Cache::reserve(int64_t n_blocks) { data_.reserve(static_cast<size_t>(n_blocks * kv_heads * tile_bytes)); }

std::unique_ptr<Op> attend(Value q, Value k, Value v, std::shared_ptr<Cache> cache, AttendShape shape, Floats sinks, Value out,
                           int threads) {
    return std::make_unique<AttendOp>(q, k, v, std::move(cache), shape, std::move(sinks), out, threads);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
