#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "products.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

enum Phase { kRoute, kGroup, kGather, kInner, kDown, kCombine, kPhases };

constexpr int64_t kUnit = 32;         // inner columns of a task: a block of prepared activations
constexpr int64_t kRows = 64;         // rows of an expert that meet its columns at once
constexpr int64_t kColumns = 256;     // the most columns at once
constexpr int64_t kScratch = 8 << 10;  // floats of a thread's scratch for the gate, and again for up: they stay in its second cache

struct Choice {
    int32_t expert;
    float weight;
    int32_t entry;  // its row among all rows sorted by expert
};

class ExpertsOp : public Op {
   public:
    ExpertsOp(Value x, Value scores, ExpertWeights w, ExpertBiases b, ExpertsShape shape, Value out)
        : x_(x), scores_(scores), out_(out), w_(std::move(w)), b_(std::move(b)), shape_(shape), width_(w_.gate.at(0).rows) {
        inputs_[0].kind = w_.gate[0].activation();
        inputs_[1].kind = w_.up[0].activation();
        n_inputs_ = inputs_[0].kind == inputs_[1].kind ? 1 : 2;
        inner_kind_ = w_.down.at(0).activation();
        shape_.k = std::min<int>(shape_.k, static_cast<int>(scores.width));
    }

    int phases() const override { return kPhases; }
    bool by_rows() const override { return true; }

    void begin(const Step& s) override {
        int64_t T = s.count(x_), n = T * shape_.k;
        choices_.resize(static_cast<size_t>(n));
        row_of_.resize(static_cast<size_t>(n));
        first_.resize(w_.gate.size() + 1);
        for (int i = 0; i < n_inputs_; i++) {
            inputs_[i].rows.reserve(static_cast<size_t>(T) * stride(i));
            inputs_[i].gathered.reserve(static_cast<size_t>(n) * stride(i));
        }
        scratch_.reserve(static_cast<size_t>(s.threads * 2 * kScratch) * sizeof(float));
        inner_.reserve(static_cast<size_t>(n) * inner_stride());
        parts_.reserve(static_cast<size_t>(n * out_.width) * sizeof(float));
    }

    Work work(const Step& s, int phase) const override {
        int64_t T = s.count(x_), n = T * shape_.k, used = static_cast<int64_t>(used_.size());
        int64_t each = used ? (n + used - 1) / used : 0;
        switch (phase) {
            case kRoute: return {T, 100 + 2.0 * static_cast<double>(scores_.width * shape_.k) + static_cast<double>(x_.width) * 0.4};
            case kGroup: return {1, 0};
            case kGather: return {n, 20 + 0.05 * static_cast<double>(x_.width)};
            case kInner: return {used * units(), 2 * kUnit / kPanel * panel_ns(w_.gate[0], each) + 1.4 * static_cast<double>(kUnit * each)};
            case kDown: return {used * w_.down[0].panels(), panel_ns(w_.down[0], each)};
            default: return {T, 20 + 0.2 * static_cast<double>(out_.width * shape_.k)};
        }
    }

    void run(const Step& s, int phase, int64_t begin, int64_t end, int thread) override {
        switch (phase) {
            case kGroup: return group(s);
            case kInner:
                return by_expert(begin, end, units(), [&](int32_t e, int64_t u, int64_t v) {
                    inner(e, u * kUnit, std::min(v * kUnit, width_), thread);
                });
            case kDown:
                return by_expert(begin, end, w_.down[0].panels(), [&](int32_t e, int64_t p, int64_t q) { down(e, p, q); });
            default:
                for (int64_t i = begin; i < end; i++) {
                    if (phase == kRoute) route(s, i);
                    if (phase == kGather) gather(i);
                    if (phase == kCombine) combine(s, i);
                }
        }
    }

   private:
    size_t stride(int i) const { return activation_stride(inputs_[i].kind, x_.width); }
    size_t inner_stride() const { return activation_stride(inner_kind_, width_); }
    uint8_t* inner_row(int64_t entry) const { return inner_.as<uint8_t>() + static_cast<size_t>(entry) * inner_stride(); }
    Choice* chosen(int64_t t) { return choices_.data() + t * shape_.k; }

    void route(const Step& s, int64_t t) {
        const float* score = s.at(scores_, t);
        const int64_t E = scores_.width;
        Choice* mine = chosen(t);
        for (int32_t e = 0, n = 0; e < E; e++) {  // the k greatest so far, the greatest first; a tie goes to the lower expert
            int i = n < shape_.k ? n++ : n;
            if (i == shape_.k && !(score[e] > score[mine[--i].expert])) continue;
            for (; i > 0 && score[e] > score[mine[i - 1].expert]; i--) mine[i].expert = mine[i - 1].expert;
            mine[i].expert = e;
        }
        float top = score[mine[0].expert], total = 0, kept = 0;
        for (int i = 0; i < shape_.k; i++) kept += mine[i].weight = exp_one(score[mine[i].expert] - top);
        if (shape_.route == Route::softmax) {
            total = reduce_exp(score, E, top);
        } else {
            total = kept;  // over all and renormalized, or over the chosen: the same quotient
        }
        for (int i = 0; i < shape_.k; i++) mine[i].weight /= total;
        std::sort(mine, mine + shape_.k, [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
        for (int i = 0; i < n_inputs_; i++)
            prepare(inputs_[i].kind, s.at(x_, t), x_.width, inputs_[i].rows.as<uint8_t>() + static_cast<size_t>(t) * stride(i));
    }

    static float reduce_exp(const float* score, int64_t n, float top) {
        float total = 0;
        for (int64_t i = 0; i < n; i += 8) {
            f8 e = exp(load_some(score + i, std::min<int64_t>(8, n - i)) - top);
            for (int64_t j = 0; j < std::min<int64_t>(8, n - i); j++) total += e[j];
        }
        return total;
    }

    // Counting sort of all choices by expert.
    void group(const Step& s) {
        std::fill(first_.begin(), first_.end(), 0);
        for (const Choice& c : choices_) first_[static_cast<size_t>(c.expert) + 1]++;
        used_.clear();
        for (size_t e = 0; e + 1 < first_.size(); e++) {
            if (first_[e + 1]) used_.push_back(static_cast<int32_t>(e));
            first_[e + 1] += first_[e];
        }
        std::vector<int32_t> next(first_.begin(), first_.end() - 1);
        for (int64_t t = 0; t < s.count(x_); t++)
            for (int i = 0; i < shape_.k; i++) {
                Choice& c = chosen(t)[i];
                c.entry = next[static_cast<size_t>(c.expert)]++;
                row_of_[static_cast<size_t>(c.entry)] = static_cast<int32_t>(t);
            }
    }

    void gather(int64_t entry) {
        for (int i = 0; i < n_inputs_; i++)
            std::memcpy(inputs_[i].gathered.as<uint8_t>() + static_cast<size_t>(entry) * stride(i),
                        inputs_[i].rows.as<uint8_t>() + static_cast<size_t>(row_of_[static_cast<size_t>(entry)]) * stride(i), stride(i));
    }

    // Calls f(expert, from, to) for tasks [begin, end) of all used experts laid end to end, `each` an expert.
    template <class F>
    void by_expert(int64_t begin, int64_t end, int64_t each, F f) {
        for (int64_t i = begin; i < end;) {
            const int64_t from = i % each, to = std::min(each, from + end - i);
            f(used_[static_cast<size_t>(i / each)], from, to);
            i += to - from;
        }
    }

    int64_t units() const { return (width_ + kUnit - 1) / kUnit; }

    // Columns [from, to) of what expert e gives its down matrix, prepared: gate and up are multiplied, and joined while they are
    // in the cache. `from` is a multiple of kUnit.
    void inner(int32_t e, int64_t from, int64_t to, int thread) {
        const int64_t first = first_[static_cast<size_t>(e)], stop = first_[static_cast<size_t>(e) + 1];
        const int64_t at_once = std::min(kColumns, kScratch / std::min(kRows, stop - first) / kUnit * kUnit);
        float *gate = scratch_.as<float>() + thread * 2 * kScratch, *up = gate + kScratch;
        for (int64_t c = from; c < to; c += at_once)
            for (int64_t r = first; r < stop; r += kRows) {
                const int64_t columns = std::min(at_once, to - c), rows = std::min(kRows, stop - r);
                gate_or_up(w_.gate, b_.gate, e, 0, r, rows, c, columns, gate);
                gate_or_up(w_.up, b_.up, e, n_inputs_ - 1, r, rows, c, columns, up);
                for (int64_t i = 0; i < rows; i++) {
                    float *g = gate + i * columns, *u = up + i * columns;
                    gated_row(g, u, g, columns, shape_.fn, shape_.limit);
                    prepare(inner_kind_, g, columns, inner_row(r + i) + activation_bytes(inner_kind_, c));
                }
            }
    }

    // Columns [c, c + columns) of rows [r, r + rows) by one of expert e's two: y[rows, columns].
    void gate_or_up(const std::vector<Matrix>& ws, const Floats& bias, int32_t e, int input, int64_t r, int64_t rows, int64_t c,
                    int64_t columns, float* y) {
        const Matrix& w = ws[static_cast<size_t>(e)];
        multiply(w, inputs_[input].gathered.as<uint8_t>() + static_cast<size_t>(r) * stride(input), stride(input), rows, y - c,
                 columns, bias ? bias->data() + e * width_ : nullptr, c, c + columns);
    }

    void down(int32_t e, int64_t p, int64_t q) {
        const Matrix& w = w_.down[static_cast<size_t>(e)];
        int64_t from = first_[static_cast<size_t>(e)], rows = first_[static_cast<size_t>(e) + 1] - from;
        multiply(w, inner_row(from), inner_stride(), rows,
                 parts_.as<float>() + from * out_.width, out_.width, b_.down ? b_.down->data() + e * out_.width : nullptr,
                 p * kPanel, std::min(q * kPanel, w.rows));
    }

    void combine(const Step& s, int64_t t) {
        const Choice *mine = chosen(t), *end = mine + shape_.k;
        auto row = [&](const Choice* c) { return parts_.as<float>() + c->entry * out_.width; };
        float* y = s.at(out_, t);
        int64_t i = 0;
        for (; i + 8 <= out_.width; i += 8) {
            f8 sum = all(0);
            for (const Choice* c = mine; c < end; c++) sum = sum + c->weight * load(row(c) + i);
            store(y + i, sum);
        }
        for (; i < out_.width; i++) {
            float sum = 0;
            for (const Choice* c = mine; c < end; c++) sum += c->weight * row(c)[i];
            y[i] = sum;
        }
    }

    struct Input {
        Activation kind = Activation::F32;
        Buffer rows, gathered;
    };

    Value x_, scores_, out_;
    ExpertWeights w_;
    ExpertBiases b_;
    ExpertsShape shape_;
    int64_t width_;  // F
    int n_inputs_;
    Activation inner_kind_;
    Input inputs_[2];
    std::vector<Choice> choices_;        // [T, k], by expert within a row
    std::vector<int32_t> row_of_;        // [T * k]  the row of an entry
    std::vector<int32_t> first_, used_;  // [E + 1]  first entry of an expert; the experts that have any
    Buffer scratch_, inner_, parts_;
};

}  // namespace

Route route_from_name(const std::string& name) {
    if (name == "softmax_renorm") return Route::softmax_renorm;
    if (name == "softmax") return Route::softmax;
    if (name == "topk_softmax") return Route::topk_softmax;
    throw std::invalid_argument("unknown route " + name);
}

std::unique_ptr<Op> experts(Value x, Value scores, ExpertWeights w, ExpertBiases b, ExpertsShape shape, Value out) {
    return std::make_unique<ExpertsOp>(x, scores, std::move(w), std::move(b), shape, out);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
