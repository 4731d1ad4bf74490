#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

enum Phase { kRoute, kGroup, kGather, kGateUp, kGlu, kDown, kCombine, kPhases };

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

    void begin(const Step& s) override {
        int64_t T = s.count(x_), n = T * shape_.k;
        choices_.resize(static_cast<size_t>(n));
        row_of_.resize(static_cast<size_t>(n));
        first_.resize(w_.gate.size() + 1);
        for (int i = 0; i < n_inputs_; i++) {
            inputs_[i].rows.reserve(static_cast<size_t>(T) * stride(i));
            inputs_[i].gathered.reserve(static_cast<size_t>(n) * stride(i));
        }
        gate_.reserve(static_cast<size_t>(n * width_) * sizeof(float));
        up_.reserve(static_cast<size_t>(n * width_) * sizeof(float));
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
            case kGateUp: return {used * 2 * w_.gate[0].panels(), panel_ns(w_.gate[0], each)};
            case kGlu: return {n, 20 + 1.4 * static_cast<double>(width_)};
            case kDown: return {used * w_.down[0].panels(), panel_ns(w_.down[0], each)};
            default: return {T, 20 + 0.2 * static_cast<double>(out_.width * shape_.k)};
        }
    }

    void run(const Step& s, int phase, int64_t begin, int64_t end, int) override {
        switch (phase) {
            case kGroup: return group(s);
            case kGateUp: return products(begin, end, w_.gate[0].panels(), true);
            case kDown: return products(begin, end, w_.down[0].panels(), false);
            default:
                for (int64_t i = begin; i < end; i++) {
                    if (phase == kRoute) route(s, i);
                    if (phase == kGather) gather(i);
                    if (phase == kGlu) activate(i);
                    if (phase == kCombine) combine(s, i);
                }
        }
    }

   private:
    size_t stride(int i) const { return activation_bytes(inputs_[i].kind, x_.width); }
    size_t inner_stride() const { return activation_bytes(inner_kind_, width_); }
    Choice* chosen(int64_t t) { return choices_.data() + t * shape_.k; }

    void route(const Step& s, int64_t t) {
        const float* score = s.at(scores_, t);
        const int64_t E = scores_.width;
        Choice* mine = chosen(t);
        for (int i = 0; i < shape_.k; i++) {  // the greatest score left; a tie goes to the lower expert
            int32_t best = -1;
            for (int32_t e = 0; e < E; e++) {
                bool taken = std::any_of(mine, mine + i, [e](const Choice& c) { return c.expert == e; });
                if (!taken && (best < 0 || score[e] > score[best])) best = e;
            }
            mine[i].expert = best;
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

    // Panels [begin, end) of all used experts' matrices laid end to end: each expert's gate and then its up, or its down.
    void products(int64_t begin, int64_t end, int64_t panels, bool first_half) {
        for (int64_t i = begin; i < end;) {
            int64_t m = i / panels, p = i % panels, q = std::min(panels, p + end - i);
            first_half ? gate_or_up(used_[static_cast<size_t>(m / 2)], m % 2, p, q) : down(used_[static_cast<size_t>(m)], p, q);
            i += q - p;
        }
    }

    void gate_or_up(int32_t e, int64_t which, int64_t p, int64_t q) {
        const Matrix& w = (which ? w_.up : w_.gate)[static_cast<size_t>(e)];
        const Floats& bias = which ? b_.up : b_.gate;
        int input = n_inputs_ == 2 ? static_cast<int>(which) : 0;
        int64_t from = first_[static_cast<size_t>(e)], rows = first_[static_cast<size_t>(e) + 1] - from;
        multiply(w, inputs_[input].gathered.as<uint8_t>() + static_cast<size_t>(from) * stride(input), stride(input), rows,
                 (which ? up_ : gate_).as<float>() + from * width_, width_, bias ? bias->data() + e * width_ : nullptr,
                 p * kPanel, std::min(q * kPanel, w.rows));
    }

    void down(int32_t e, int64_t p, int64_t q) {
        const Matrix& w = w_.down[static_cast<size_t>(e)];
        int64_t from = first_[static_cast<size_t>(e)], rows = first_[static_cast<size_t>(e) + 1] - from;
        multiply(w, inner_.as<uint8_t>() + static_cast<size_t>(from) * inner_stride(), inner_stride(), rows,
                 parts_.as<float>() + from * out_.width, out_.width, b_.down ? b_.down->data() + e * out_.width : nullptr,
                 p * kPanel, std::min(q * kPanel, w.rows));
    }

    void activate(int64_t entry) {
        float* gate = gate_.as<float>() + entry * width_;
        gated_row(gate, up_.as<float>() + entry * width_, gate, width_, shape_.fn, shape_.limit);
        prepare(inner_kind_, gate, width_, inner_.as<uint8_t>() + static_cast<size_t>(entry) * inner_stride());
    }

    void combine(const Step& s, int64_t t) {
        float* y = s.at(out_, t);
        std::fill(y, y + out_.width, 0.0f);
        for (int i = 0; i < shape_.k; i++) {
            const Choice& c = chosen(t)[i];
            f8 by = all(c.weight);
            map2(y, parts_.as<float>() + c.entry * out_.width, y, out_.width, [by](f8 sum, f8 part) { return sum + by * part; });
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
    Buffer gate_, up_, inner_, parts_;
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
