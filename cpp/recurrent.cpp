#include "recurrent.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr int64_t kColumns = 256;  // of a convolution, a task: rows of it stay in the first cache
constexpr int kVectors = 4;        // of a value head's columns: a piece of 32, 16 KB of memory at k_dim 128
constexpr int64_t kRows = 16;      // rows that pass over the pieces of a head one piece after another: they come from the cache

class ConvOp : public Op {
   public:
    ConvOp(Value x, Floats weight, int taps, std::shared_ptr<Slots> past, Value out)
        : x_(x), out_(out), taps_(taps), past_(std::move(past)), turned_(weight->size()) {
        for (int64_t c = 0; c < x.width; c++)
            for (int i = 0; i < taps; i++)
                turned_[static_cast<size_t>(i * x.width + c)] = (*weight)[static_cast<size_t>(c * taps + i)];
    }

    Work work(const Step& s, int) const override {
        return {s.N * pieces(), 30 + 0.1 * static_cast<double>(taps_ * kColumns * s.T) / static_cast<double>(s.N)};
    }

    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        for (int64_t i = begin; i < end; i++) {
            int64_t n = i / pieces(), from = i % pieces() * kColumns, to = std::min(from + kColumns, x_.width);
            float* past = past_->at(s.slots[n]);
            if (s.begins(n))
                for (int j = 0; j + 1 < taps_; j++) std::fill(past + j * x_.width + from, past + j * x_.width + to, 0.0f);
            walk(s, n, past, from, to - from);
        }
    }

   private:
    int64_t pieces() const { return (x_.width + kColumns - 1) / kColumns; }

    // Columns [from, from + width) of a sequence, row by row.
    void walk(const Step& s, int64_t n, float* past, int64_t from, int64_t width) const {
        const int64_t first = s.starts[n], rows = s.starts[n + 1] - first, kept = taps_ - 1;
        auto seen = [&](int64_t j) { return (j < kept ? past + j * x_.width : s.at(x_, first + j - kept)) + from; };
        std::vector<const float*> window(static_cast<size_t>(taps_));
        for (int64_t t = 0; t < rows; t++) {
            for (int64_t i = 0; i < taps_; i++) window[static_cast<size_t>(i)] = seen(t + i);
            float* y = s.at(out_, first + t) + from;
            if (taps_ == 4) {
                convolve<4>(window.data(), turned_.data() + from, y, width);
            } else {
                convolve<0>(window.data(), turned_.data() + from, y, width);
            }
        }
        // Upwards, so that a row still wanted is not written over when this step is shorter than the window.
        for (int64_t j = 0; j < kept; j++)
            std::memcpy(past + j * x_.width + from, seen(rows + j), static_cast<size_t>(width) * sizeof(float));
    }

    // y[c] = sum_i window[i][c] * w[i][c]; Taps: their number if the compiler is to know it.
    template <int Taps>
    void convolve(const float* const* window, const float* w, float* y, int64_t width) const {
        const int64_t taps = Taps ? Taps : taps_;
        auto at = [&](auto get, int64_t c) {
            f8 sum = all(0);
            for (int64_t i = 0; i < taps; i++) sum = fma(get(window[i] + c), get(w + i * x_.width + c), sum);
            return sum;
        };
        int64_t c = 0;
        for (; c + 8 <= width; c += 8) store(y + c, at([](const float* p) { return load(p); }, c));
        if (const int64_t left = width - c; left > 0)
            store_some(y + c, at([left](const float* p) { return load_some(p, left); }, c), left);
    }

    Value x_, out_;
    int64_t taps_;
    std::shared_ptr<Slots> past_;
    std::vector<float> turned_;  // [taps, D]
};

class DeltaOp : public Op {
   public:
    DeltaOp(DeltaInputs in, std::shared_ptr<Slots> memory, int k_heads, int v_heads, Value out)
        : in_(in), memory_(std::move(memory)), v_heads_(v_heads), k_heads_(k_heads), k_dim_(in.k.width / k_heads),
          v_dim_(in.v.width / v_heads), stride_((v_dim_ + 7) / 8 * 8), out_(out),
          by_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(k_dim_)))) {}

    Work work(const Step& s, int) const override {
        double rows = static_cast<double>(s.T) / static_cast<double>(s.N);
        return {s.N * v_heads_, 50 + rows * static_cast<double>(k_dim_ * stride_) * 0.15};
    }

    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        for (int64_t i = begin; i < end; i++) {
            const int64_t n = i / v_heads_, h = i % v_heads_, stop = s.starts[n + 1];
            float* memory = memory_->at(s.slots[n]) + h * k_dim_ * stride_;
            if (s.begins(n)) std::fill_n(memory, k_dim_ * stride_, 0.0f);
            for (int64_t t = s.starts[n]; t < stop; t += kRows)
                for (int64_t c = 0; c < stride_; c += kVectors * 8) {
                    const int64_t to = std::min(stop, t + kRows);
                    switch (std::min<int64_t>(kVectors, (stride_ - c) / 8)) {
                        case 1: walk<1>(s, t, to, h, c, memory + c * k_dim_); break;
                        case 2: walk<2>(s, t, to, h, c, memory + c * k_dim_); break;
                        case 3: walk<3>(s, t, to, h, c, memory + c * k_dim_); break;
                        default: walk<4>(s, t, to, h, c, memory + c * k_dim_); break;
                    }
                }
        }
    }

   private:
    // C vectors of columns from column c of value head h, over rows [begin, end). Two passes a row: the first reads what the
    // memory knows of k, the second decays it, adds and answers, so that each number is read and written once a row.
    template <int C>
    void walk(const Step& s, int64_t begin, int64_t end, int64_t h, int64_t c, float* memory) const {
        constexpr int64_t kRow = C * 8;
        for (int64_t t = begin; t < end; t++) {
            const float *q = s.at(in_.q, t) + h % k_heads_ * k_dim_, *k = s.at(in_.k, t) + h % k_heads_ * k_dim_;
            const float* v = s.at(in_.v, t) + h * v_dim_ + c;
            const float beta = s.at(in_.beta, t)[h];
            const f8 keep = all(exp_one(s.at(in_.decay, t)[h]));
            f8 even[C], odd[C], change[C], y[C];
            for (int j = 0; j < C; j++) even[j] = odd[j] = y[j] = all(0);
            auto look = [&](int64_t i, f8* known) {
                const f8 ki = all(k[i]);
                for (int j = 0; j < C; j++) known[j] = fma(load(memory + i * kRow + j * 8), ki, known[j]);
            };
            int64_t i = 0;
            for (; i + 2 <= k_dim_; i += 2) {  // two sums a column: a multiply-add has to wait for the one before the last
                look(i, even);
                look(i + 1, odd);
            }
            if (i < k_dim_) look(i, even);
            for (int j = 0; j < C; j++) change[j] = beta * (part(v, c, j) - keep * (even[j] + odd[j]));
            for (i = 0; i < k_dim_; i++) {
                const f8 ki = all(k[i]), qi = all(q[i]);
                for (int j = 0; j < C; j++) {
                    float* at = memory + i * kRow + j * 8;
                    const f8 m = fma(change[j], ki, load(at) * keep);
                    store(at, m);
                    y[j] = fma(m, qi, y[j]);
                }
            }
            float* to = s.at(out_, t) + h * v_dim_ + c;
            for (int j = 0; j < C; j++) {
                const int64_t left = v_dim_ - c - j * 8;
                left >= 8 ? store(to + j * 8, y[j] * by_) : store_some(to + j * 8, y[j] * by_, left);
            }
        }
    }

    f8 part(const float* v, int64_t c, int j) const {
        int64_t left = v_dim_ - c - j * 8;
        return left >= 8 ? load(v + j * 8) : load_some(v + j * 8, left);
    }

    DeltaInputs in_;
    std::shared_ptr<Slots> memory_;
    int64_t v_heads_, k_heads_, k_dim_, v_dim_, stride_;
    Value out_;
    float by_;
};

}  // namespace

void Slots::copy(int64_t source, int64_t target) const {
    const int64_t n = static_cast<int64_t>(data.bytes() / sizeof(float)) / width;
    if (source < 0 || source >= n || target < 0 || target >= n) throw std::out_of_range("no such slot");
    if (source != target) std::memcpy(at(target), at(source), static_cast<size_t>(width) * sizeof(float));
}

std::unique_ptr<Op> conv(Value x, Floats weight, int taps, std::shared_ptr<Slots> past, Value out) {
    return std::make_unique<ConvOp>(x, std::move(weight), taps, std::move(past), out);
}

std::unique_ptr<Op> delta(DeltaInputs in, std::shared_ptr<Slots> memory, int k_heads, int v_heads, Value out) {
    return std::make_unique<DeltaOp>(in, std::move(memory), k_heads, v_heads, out);
}

// Few values, and log1p has no vector form here: the C library, in double.
std::unique_ptr<Op> decay(Value x, Floats a, Floats bias, Value out) {
    std::vector<double> rate;  // -e^a
    for (float v : *a) rate.push_back(-std::exp(static_cast<double>(v)));
    auto f = [=](const Step& s, int64_t t) {
        const float* in = s.at(x, t);
        float* y = s.at(out, t);
        for (int64_t i = 0; i < out.width; i++) {
            auto at = static_cast<size_t>(i);
            double z = static_cast<double>(in[i] + (*bias)[at]);
            double softplus = std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z)));
            y[i] = static_cast<float>(rate[at] * softplus);
        }
    };
    return std::make_unique<RowOp<decltype(f)>>(out, 40.0 * static_cast<double>(out.width), f);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
