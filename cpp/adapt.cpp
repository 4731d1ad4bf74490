#include "adapt.h"

#include <algorithm>
#include <stdexcept>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr int64_t kRowsAtOnce = 96;              // of x that stay in the second cache while panels of A pass
constexpr int64_t kSumRows = 16, kSumColumns = 64;  // of B A x that are added at once: 4 KB

// A task is a panel of A, of one product, over a chunk of rows.
class ShrinkOp : public Op {
   public:
    explicit ShrinkOp(std::shared_ptr<Shrunk> h) : h_(std::move(h)) {}

    void begin(const Step& s) override {
        if (s.adapted[h_->x.base].empty()) return;
        h_->at.clear();
        h_->stride = 0;
        for (const auto& product : h_->products) {
            h_->at.push_back(h_->stride);
            h_->stride += (product->rank() + kPanel - 1) / kPanel * kPanel;
        }
        h_->rows.reserve(static_cast<size_t>(s.count(h_->x) * h_->stride) * sizeof(float));
    }

    Work work(const Step& s, int) const override {
        if (s.adapted[h_->x.base].empty()) return {0, 1};
        const int64_t T = s.count(h_->x);
        return {chunks(T) * panels(), 50 + static_cast<double>(h_->x.width * std::min(T, kRowsAtOnce)) / 4};
    }

    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        const int64_t T = s.count(h_->x), each = panels();
        while (begin < end) {
            const int64_t chunk = begin / each, to = std::min(end, (chunk + 1) * each), row = chunk * kRowsAtOnce;
            shrink_chunk(s, row, std::min(T, row + kRowsAtOnce), begin - chunk * each, to - chunk * each);
            begin = to;
        }
    }

   private:
    static int64_t chunks(int64_t T) { return (T + kRowsAtOnce - 1) / kRowsAtOnce; }
    int64_t panels() const { return h_->stride / kPanel; }

    // Panels [begin, end), counted through all products, for the rows [row, stop) that have adapters.
    void shrink_chunk(const Step& s, int64_t row, int64_t stop, int64_t begin, int64_t end) {
        for (size_t i = 0; i < h_->products.size(); i++) {
            const int64_t first = h_->at[i] / kPanel, last = i + 1 < h_->at.size() ? h_->at[i + 1] / kPanel : panels();
            const int64_t from = std::max(begin, first) - first, to = std::min(end, last) - first;
            if (from >= to) continue;
            for (const Stretch& own : s.adapted[h_->x.base]) {
                const LowRank* low = h_->products[i]->of(own.adapter);
                const int64_t t = std::max(row, own.row), n = std::min(stop, own.row + own.rows) - t;
                if (low && n > 0)
                    multiply(low->a, s.at(h_->x, t), static_cast<size_t>(h_->x.stride) * sizeof(float), n, h_->row(t) + h_->at[i],
                             h_->stride, nullptr, from * kPanel, std::min(to * kPanel, low->a.rows));
            }
        }
    }

    std::shared_ptr<Shrunk> h_;
};

// n <= kSumRows rows from t on, columns [begin, end) of at most kSumColumns.
void add_block(const Step& s, const Shrunk& h, size_t i, const LowRank& low, const Value& y, int64_t t, int64_t n, int64_t begin,
               int64_t end) {
    alignas(64) float sums[kSumRows * kSumColumns];
    multiply(slice(low.b, begin, end), h.row(t) + h.at[i], static_cast<size_t>(h.stride) * sizeof(float), n, sums, kSumColumns, nullptr,
             0, end - begin);
    for (int64_t r = 0; r < n; r++) {
        float* to = s.at(y, t + r) + begin;
        for (int64_t o = 0; o < end - begin; o++) to[o] += low.scale * sums[r * kSumColumns + o];
    }
}

}  // namespace

void Adapted::put(int64_t adapter, LowRank low) {
    if (adapter < 0 || low.a.width != width_ || low.b.rows != rows_ || low.a.rows != low.b.width || low.a.rows < 1)
        throw std::invalid_argument("an adapter does not fit its product");
    if (low.a.activation() != Activation::F32 || low.b.activation() != Activation::F32)
        throw std::invalid_argument("an adapter's matrices must be of floats");
    if (static_cast<size_t>(adapter) >= by_adapter_.size()) by_adapter_.resize(static_cast<size_t>(adapter) + 1);
    rank_ = std::max(rank_, low.a.rows);
    by_adapter_[static_cast<size_t>(adapter)] = std::move(low);
}

void Adapted::drop(int64_t adapter) {
    if (adapter < 0 || static_cast<size_t>(adapter) >= by_adapter_.size()) return;
    by_adapter_[static_cast<size_t>(adapter)] = {};
    rank_ = 0;
    for (const LowRank& low : by_adapter_) rank_ = std::max(rank_, low.a.rows);
}

std::unique_ptr<Op> shrink(std::shared_ptr<Shrunk> h) { return std::make_unique<ShrinkOp>(std::move(h)); }

void expand(const Step& s, const Shrunk& h, size_t i, const Value& y, int64_t row, int64_t rows, int64_t begin, int64_t end) {
    for (const Stretch& own : s.adapted[y.base]) {
        const LowRank* low = h.products[i]->of(own.adapter);
        const int64_t stop = std::min(row + rows, own.row + own.rows);
        if (!low) continue;
        for (int64_t t = std::max(row, own.row); t < stop; t += kSumRows)
            for (int64_t o = begin; o < end; o += kSumColumns)
                add_block(s, h, i, *low, y, t, std::min(kSumRows, stop - t), o, std::min(end, o + kSumColumns));
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
