#include "products.h"

#include <algorithm>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr int64_t kQuad = 4;  // panels whose outputs make a block of 32
constexpr int64_t kEight = 8;  // panels of a task where there are many rows
constexpr int64_t kRowsAtOnce = 96;         // of x that stay in the second cache while panels pass
constexpr int64_t kFewRows = 4;             // memory bounds them: long streams count, and outputs are small
constexpr int64_t kBytesAtOnce = 96 << 10;  // of panels whose outputs are still there when gate and up are joined

// Many rows are shared out too: each thread passes the panels over some of the rows that it keeps at hand.
struct Chunks {
    int64_t n, rows;
    explicit Chunks(int64_t T) : n((T + kRowsAtOnce - 1) / kRowsAtOnce), rows(n ? ((T + n - 1) / n + 7) / 8 * 8 : 0) {}
};

// Calls f(row, rows, begin, end) for the pieces of tasks [begin, end), where a chunk of rows has `each` tasks.
template <class F>
void by_chunk(int64_t begin, int64_t end, int64_t each, int64_t T, F f) {
    const Chunks chunks(T);
    while (begin < end) {
        const int64_t chunk = begin / each, to = std::min(end, (chunk + 1) * each), row = chunk * chunks.rows;
        if (row < T) f(row, std::min(chunks.rows, T - row), begin - chunk * each, to - chunk * each);
        begin = to;
    }
}

class PrepareOp : public Op {
   public:
    explicit PrepareOp(std::shared_ptr<Prepared> p) : p_(std::move(p)) {}
    bool by_rows() const override { return true; }
    void begin(const Step& s) override { p_->rows->reserve(static_cast<size_t>(s.count(p_->x)) * p_->stride()); }
    Work work(const Step& s, int) const override { return {s.count(p_->x), 20 + 0.4 * static_cast<double>(p_->x.width)}; }
    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        for (int64_t t = begin; t < end; t++) prepare(p_->kind, s.at(p_->x, t), p_->x.width, p_->row(t));
    }

   private:
    std::shared_ptr<Prepared> p_;
};

void multiply_part(const Step& s, const Part& p, int64_t row, int64_t rows, int64_t begin, int64_t end) {
    multiply(p.w, p.x->row(row), p.x->stride(), rows, s.at(p.out, row), p.out.stride, p.bias ? p.bias->data() : nullptr,
             begin * kPanel, std::min(end * kPanel, p.w.rows));
    if (p.low) expand(s, *p.low, p.which, p.out, row, rows, begin * kPanel, std::min(end * kPanel, p.w.rows));
}

Span panels_from(const Matrix& w, int64_t panel) {
    size_t at = static_cast<size_t>(panel) * w.panel_bytes;
    return {w.data.get() + at, w.bytes() - at};
}

// The panels of all parts, one part after another; in eights, and for each chunk of rows, where there are many rows.
class ProductsOp : public Op {
   public:
    explicit ProductsOp(std::vector<Part> parts) : parts_(std::move(parts)) {
        first_.push_back(0);
        for (const Part& p : parts_) first_.push_back(first_.back() + p.w.panels());
    }

    Work work(const Step& s, int) const override {
        const int64_t T = s.count(parts_[0].out), panels = first_.back();
        const Chunks chunks(T);
        double ns = 0;
        for (const Part& p : parts_) ns += panel_ns(p.w, std::min(T, chunks.rows)) * static_cast<double>(p.w.panels());
        ns /= static_cast<double>(panels);
        if (chunks.n <= 1) return {T ? panels : 0, ns};
        return {chunks.n * eights(), ns * kEight};
    }

    Span stream(int64_t task) const override {
        if (task >= first_.back()) return {};
        size_t i = part_of(task);
        return panels_from(parts_[i].w, task - first_[i]);
    }

    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        const int64_t T = s.count(parts_[0].out), unit = T > kRowsAtOnce ? kEight : 1;
        by_chunk(begin, end, unit == 1 ? first_.back() : eights(), T, [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
            from *= unit, to = std::min(to * unit, first_.back());
            for (size_t i = part_of(from); from < to; i++) {
                int64_t stop = std::min(to, first_[i + 1]);
                multiply_part(s, parts_[i], row, rows, from - first_[i], stop - first_[i]);
                from = stop;
            }
        });
    }

   private:
    int64_t eights() const { return (first_.back() + kEight - 1) / kEight; }
    size_t part_of(int64_t panel) const {
        size_t i = 0;
        while (i + 1 < parts_.size() && panel >= first_[i + 1]) i++;
        return i;
    }

    std::vector<Part> parts_;
    std::vector<int64_t> first_;  // the first task of a part
};

// A task is four panels of gate and the same four of up: 32 columns of the result, a block of what the next product reads.
class GatedOp : public Op {
   public:
    explicit GatedOp(Gated g) : g_(std::move(g)) {}

    void begin(const Step& s) override {
        for (auto& p : g_.ready) p->rows->reserve(static_cast<size_t>(s.count(g_.out)) * p->stride());
    }

    Work work(const Step& s, int) const override {
        const int64_t T = s.count(g_.out);
        const Chunks chunks(T);
        const int64_t rows = std::min(T, chunks.rows);
        const double product = (panel_ns(g_.gate.w, rows) + panel_ns(g_.up.w, rows)) * kQuad;
        return {chunks.n * quads(), product + 1.4 * 32 * static_cast<double>(rows)};
    }

    Span stream(int64_t task) const override {
        return task < quads() ? panels_from(g_.gate.w, task * kQuad) : Span{};
    }

    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        const auto bytes = static_cast<int64_t>((g_.gate.w.panel_bytes + g_.up.w.panel_bytes) * kQuad);
        const int64_t each = std::max<int64_t>(1, kBytesAtOnce / bytes), panels = g_.gate.w.panels();
        by_chunk(begin, end, quads(), s.count(g_.out), [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
            for (int64_t step = rows > kFewRows ? each : to - from; from < to; from += step) {
                const int64_t p = from * kQuad, q = std::min({(from + step) * kQuad, to * kQuad, panels});
                multiply_part(s, g_.gate, row, rows, p, q);
                multiply_part(s, g_.up, row, rows, p, q);
                for (int64_t r = row; r < row + rows; r++) join(s, r, p * kPanel, std::min(q * kPanel, g_.out.width));
            }
        });
    }

   private:
    int64_t quads() const { return (g_.gate.w.panels() + kQuad - 1) / kQuad; }
    void join(const Step& s, int64_t t, int64_t from, int64_t to) const {
        float* y = s.at(g_.out, t) + from;
        gated_row(s.at(g_.gate.out, t) + from, s.at(g_.up.out, t) + from, y, to - from, g_.fn, g_.limit);
        for (const auto& p : g_.ready) prepare(p->kind, y, to - from, p->row(t) + activation_bytes(p->kind, from));
    }

    Gated g_;
};

}  // namespace

std::unique_ptr<Op> prepare_rows(std::shared_ptr<Prepared> p) { return std::make_unique<PrepareOp>(std::move(p)); }

std::unique_ptr<Op> products(std::vector<Part> parts) { return std::make_unique<ProductsOp>(std::move(parts)); }

std::unique_ptr<Op> gated(Gated pair) { return std::make_unique<GatedOp>(std::move(pair)); }

double panel_ns(const Matrix& w, int64_t T) {
    double read = static_cast<double>(w.panel_bytes) / 10, compute = static_cast<double>(w.width * kPanel * T) / 60;
    return std::max(read, compute);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
