#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "decode.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr double kRowNs = 20;  // what beginning a row costs

template <class F>
std::unique_ptr<Op> rowwise(Value out, double ns_an_element, F f) {
    return std::make_unique<RowOp<F>>(out, kRowNs + ns_an_element * static_cast<double>(out.width), std::move(f));
}

struct Silu {
    f8 operator()(f8 x) const { return x / (1.0f + exp(-x)); }
};
struct Sigmoid {
    f8 operator()(f8 x) const { return sigmoid(x); }
};
struct Gelu {
    f8 operator()(f8 x) const { return 0.5f * x * (1.0f + erf(x * 0.70710678f)); }
};
struct GeluTanh {
    f8 operator()(f8 x) const { return 0.5f * x * (1.0f + tanh(0.79788456f * fma(x * x * x, all(0.044715f), x))); }
};
struct Relu {
    f8 operator()(f8 x) const { return at_least(x, all(0)); }
};
struct Tanh {
    f8 operator()(f8 x) const { return tanh(x); }
};

// Calls g with the function object that `fn` names.
template <class G>
void with_function(Activated fn, G g) {
    switch (fn) {
        case Activated::silu: return g(Silu{});
        case Activated::sigmoid: return g(Sigmoid{});
        case Activated::gelu: return g(Gelu{});
        case Activated::gelu_tanh: return g(GeluTanh{});
        case Activated::relu: return g(Relu{});
        case Activated::tanh: return g(Tanh{});
    }
}

void copy_row(const float* x, float* y, int64_t n) { std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float)); }

}  // namespace

Activated activated_from_name(const std::string& name) {
    const char* names[] = {"silu", "sigmoid", "gelu", "gelu_tanh", "relu", "tanh"};
    for (int i = 0; i < 6; i++)
        if (name == names[i]) return static_cast<Activated>(i);
    throw std::invalid_argument("unknown activation " + name);
}

std::unique_ptr<Op> embed(Table table, bool by_position, Value out) {
    return rowwise(out, 0.5, [=](const Step& s, int64_t t) {
        int64_t id = by_position ? s.positions[t] : s.tokens[t];
        decode(table.format, table.raw + static_cast<size_t>(id) * table.row_bytes, table.width, s.at(out, t));
    });
}

std::unique_ptr<Op> take(Value x, Value out) {
    return rowwise(out, 0.1, [=](const Step& s, int64_t r) { copy_row(s.at(x, s.logit_rows[r]), s.at(out, r), out.width); });
}

std::unique_ptr<Op> pool_rows(Value x, const std::string& how, Value out) {
    bool mean = how == "mean", last = how == "last";
    return rowwise(out, 10, [=](const Step& s, int64_t n) {
        int64_t begin = s.starts[n], end = s.starts[n + 1];
        float* y = s.at(out, n);
        copy_row(s.at(x, last ? end - 1 : begin), y, out.width);
        if (!mean) return;
        for (int64_t t = begin + 1; t < end; t++) map2(y, s.at(x, t), y, out.width, [](f8 a, f8 b) { return a + b; });
        auto count = all(static_cast<float>(end - begin));
        map(y, y, out.width, [=](f8 a) { return a / count; });
    });
}

std::unique_ptr<Op> add(Value x, Value y, Value out) {
    return rowwise(out, 0.15, [=](const Step& s, int64_t t) {
        map2(s.at(x, t), s.at(y, t), s.at(out, t), out.width, [](f8 a, f8 b) { return a + b; });
    });
}

std::unique_ptr<Op> mul(Value x, Value y, Value out) {
    int64_t each = x.width / y.width;
    return rowwise(out, 0.2, [=](const Step& s, int64_t t) {
        const float *a = s.at(x, t), *b = s.at(y, t);
        float* to = s.at(out, t);
        if (each == 1) {
            map2(a, b, to, out.width, [](f8 p, f8 q) { return p * q; });
        } else {
            for (int64_t h = 0; h < y.width; h++)
                map(a + h * each, to + h * each, each, [by = all(b[h])](f8 p) { return p * by; });
        }
    });
}

std::unique_ptr<Op> scale(Value x, float by, Value out) {
    return rowwise(out, 0.15, [=](const Step& s, int64_t t) {
        map(s.at(x, t), s.at(out, t), out.width, [by](f8 a) { return a * by; });
    });
}

std::unique_ptr<Op> softcap(Value x, float cap, Value out) {
    return rowwise(out, 1.0, [=](const Step& s, int64_t t) {
        map(s.at(x, t), s.at(out, t), out.width, [cap](f8 a) { return cap * tanh(a / cap); });
    });
}

std::unique_ptr<Op> act(Value x, Activated fn, Value out) {
    return rowwise(out, 1.0, [=](const Step& s, int64_t t) {
        with_function(fn, [&](auto f) { map(s.at(x, t), s.at(out, t), out.width, f); });
    });
}

void gated_row(const float* gate, const float* up, float* y, int64_t n, Activated fn, float limit) {
    if (limit > 0) {
        map2(gate, up, y, n, [limit](f8 g, f8 u) {
            g = at_most(g, all(limit));
            u = at_least(at_most(u, all(limit)), all(-limit));
            return g * sigmoid(1.702f * g) * (u + 1.0f);
        });
    } else {
        with_function(fn, [&](auto f) { map2(gate, up, y, n, [f](f8 g, f8 u) { return f(g) * u; }); });
    }
}

std::unique_ptr<Op> glu(Value gate, Value up, Activated fn, float limit, Value out) {
    return rowwise(out, 1.0, [=](const Step& s, int64_t t) {
        gated_row(s.at(gate, t), s.at(up, t), s.at(out, t), out.width, fn, limit);
    });
}

std::unique_ptr<Op> cat(std::vector<Value> xs, Value out) {
    return rowwise(out, 0.1, [=](const Step& s, int64_t t) {
        float* y = s.at(out, t);
        for (const Value& x : xs) {
            copy_row(s.at(x, t), y, x.width);
            y += x.width;
        }
    });
}

std::unique_ptr<Op> norm(Value x, Floats weight, Floats bias, float eps, int heads, bool center, Value out) {
    int64_t each = x.width / heads;
    auto width = static_cast<float>(each);
    return rowwise(out, 0.4, [=](const Step& s, int64_t t) {
        for (int h = 0; h < heads; h++) {
            const float* a = s.at(x, t) + h * each;
            float* y = s.at(out, t) + h * each;
            if (center) {
                float mean = reduce(a, each, [](f8 v) { return v; }) / width;
                map(a, y, each, [mean](f8 v) { return v - mean; });
                a = y;
            }
            float squares = reduce(a, each, [](f8 v) { return v * v; });
            f8 by = all(1.0f / std::sqrt(squares / width + eps));
            if (!weight) {
                map(a, y, each, [by](f8 v) { return v * by; });
            } else {
                map2(a, weight->data(), y, each, [by](f8 v, f8 w) { return v * by * w; });
            }
            if (bias) map2(y, bias->data(), y, each, [](f8 v, f8 b) { return v + b; });
        }
    });
}

std::unique_ptr<Op> l2norm(Value x, float eps, int heads, Value out) {
    int64_t each = x.width / heads;
    return rowwise(out, 0.4, [=](const Step& s, int64_t t) {
        for (int h = 0; h < heads; h++) {
            const float* a = s.at(x, t) + h * each;
            f8 by = all(1.0f / std::sqrt(reduce(a, each, [](f8 v) { return v * v; }) + eps));
            map(a, s.at(out, t) + h * each, each, [by](f8 v) { return v * by; });
        }
    });
}

namespace {

class TurnOp : public Op {
   public:
    TurnOp(std::shared_ptr<Turn> t, Value rows) : turn_(std::move(t)), rows_(rows) {}
    void begin(const Step& s) override {
        turn_->table.reserve(static_cast<size_t>(s.count(rows_) * 2 * turn_->half()) * sizeof(float));
    }
    bool by_rows() const override { return true; }
    Work work(const Step& s, int) const override { return {s.count(rows_), 40.0 * static_cast<double>(turn_->half())}; }
    // The angle in double: at position 100,000 a float32 product would be off by 0.004.
    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        for (int64_t t = begin; t < end; t++) {
            auto *cos = const_cast<float*>(turn_->cos(t)), *sin = const_cast<float*>(turn_->sin(t));
            for (size_t i = 0; i < turn_->frequencies.size(); i++) {
                double angle = s.positions[t] * turn_->frequencies[i];
                cos[i] = static_cast<float>(std::cos(angle) * turn_->magnitude);
                sin[i] = static_cast<float>(std::sin(angle) * turn_->magnitude);
            }
        }
    }

   private:
    std::shared_ptr<Turn> turn_;
    Value rows_;
};

}  // namespace

std::unique_ptr<Op> turn(std::shared_ptr<Turn> t, Value rows) { return std::make_unique<TurnOp>(std::move(t), rows); }

std::unique_ptr<Op> rope(Value x, std::shared_ptr<Turn> turned, int heads, Value out) {
    int64_t each = x.width / heads, half = turned->half();
    return rowwise(out, 0.4, [=](const Step& s, int64_t t) {
        const float *cos = turned->cos(t), *sin = turned->sin(t);
        for (int h = 0; h < heads; h++) {
            const float *a = s.at(x, t) + h * each, *b = a + half;
            float *ya = s.at(out, t) + h * each, *yb = ya + half;
            int64_t i = 0;
            for (; i < half; i += 8) {
                int64_t n = std::min<int64_t>(8, half - i);
                auto get = [n](const float* p) { return n == 8 ? load(p) : load_some(p, n); };
                f8 p = get(a + i), q = get(b + i), c = get(cos + i), d = get(sin + i);
                f8 first = p * c - q * d, second = q * c + p * d;
                if (n == 8) {
                    store(ya + i, first);
                    store(yb + i, second);
                } else {
                    store_some(ya + i, first, n);
                    store_some(yb + i, second, n);
                }
            }
            copy_row(a + 2 * half, ya + 2 * half, each - 2 * half);
        }
    });
}

namespace {

class ChainOp : public Op {
   public:
    explicit ChainOp(std::vector<std::unique_ptr<Op>> links) : links_(std::move(links)) {}
    int phases() const override { return links_.back()->phases(); }
    void begin(const Step& s) override {
        for (auto& op : links_) op->begin(s);
    }
    Work work(const Step& s, int phase) const override {
        Work w = links_.back()->work(s, phase);
        if (phase == 0)
            for (size_t i = 0; i + 1 < links_.size(); i++) w.ns += links_[i]->work(s, 0).ns;
        return w;
    }
    void run(const Step& s, int phase, int64_t begin, int64_t end, int thread) override {
        if (phase > 0) return links_.back()->run(s, phase, begin, end, thread);
        for (int64_t t = begin; t < end; t++)
            for (auto& op : links_) op->run(s, 0, t, t + 1, thread);
    }

   private:
    std::vector<std::unique_ptr<Op>> links_;
};

}  // namespace

std::unique_ptr<Op> chain(std::vector<std::unique_ptr<Op>> links) {
    for (const auto& op : links)
        if (!op->by_rows() || (op != links.back() && op->phases() > 1))
            throw std::invalid_argument("only ops that look at rows one by one make a chain");
    if (links.size() == 1) return std::move(links[0]);
    return std::make_unique<ChainOp>(std::move(links));
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
