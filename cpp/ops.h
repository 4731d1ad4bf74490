// The ops that look at rows one by one. What each computes: kvasir/backends/reference.py.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <vector>

#include "executor.h"
#include "lanes.h"
#include "matmul/matmul.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

enum class Activated : int { silu, sigmoid, gelu, gelu_tanh, relu, tanh };
Activated activated_from_name(const std::string& name);

using Floats = std::shared_ptr<const std::vector<float>>;  // a weight kept as floats; may be null

// y[t] = f(step, t) for each row of `out`; ns: cost of a row.
template <class F>
class RowOp : public Op {
   public:
    RowOp(Value out, double ns, F f) : out_(out), ns_(ns), f_(std::move(f)) {}
    bool by_rows() const override { return true; }
    Work work(const Step& s, int) const override { return {s.count(out_), ns_}; }
    void run(const Step& s, int, int64_t begin, int64_t end, int) override {
        for (int64_t t = begin; t < end; t++) f_(s, t);
    }

   private:
    Value out_;
    double ns_;
    F f_;
};

// Rows of a table in their file format, decoded as they are read.
struct Table {
    Format format;
    const uint8_t* raw;
    std::shared_ptr<const void> keep;
    size_t row_bytes;
    int64_t width;
};

std::unique_ptr<Op> embed(Table table, bool by_position, Value out);
std::unique_ptr<Op> take(Value x, Value out);
std::unique_ptr<Op> pool_rows(Value x, const std::string& how, Value out);
std::unique_ptr<Op> add(Value x, Value y, Value out);
std::unique_ptr<Op> mul(Value x, Value y, Value out);
std::unique_ptr<Op> scale(Value x, float by, Value out);
std::unique_ptr<Op> softcap(Value x, float cap, Value out);
std::unique_ptr<Op> act(Value x, Activated fn, Value out);
std::unique_ptr<Op> glu(Value gate, Value up, Activated fn, float limit, Value out);
std::unique_ptr<Op> cat(std::vector<Value> xs, Value out);
std::unique_ptr<Op> norm(Value x, Floats weight, Floats bias, float eps, int heads, bool center, Value out);
std::unique_ptr<Op> l2norm(Value x, float eps, int heads, Value out);

// Cos and sin of this step's rows, once a step for all layers that turn by the same frequencies: [T, cos | sin].
struct Turn {
    std::vector<double> frequencies;
    double magnitude;
    Buffer table;
    const float* cos(int64_t t) const { return table.as<float>() + t * 2 * half(); }
    const float* sin(int64_t t) const { return cos(t) + half(); }
    int64_t half() const { return static_cast<int64_t>(frequencies.size()); }
};
std::unique_ptr<Op> turn(std::shared_ptr<Turn> t, Value rows);  // fills the table
std::unique_ptr<Op> rope(Value x, std::shared_ptr<Turn> t, int heads, Value out);

// Ops that look at rows one by one, as one pass over the rows: a row goes through all of them while it is in the nearest cache.
// The last may have further phases. A value that is read within may share room with none that is written within.
std::unique_ptr<Op> chain(std::vector<std::unique_ptr<Op>> links);

// fn(gate) * up for one row, clamped where limit > 0.
void gated_row(const float* gate, const float* up, float* y, int64_t n, Activated fn, float limit);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
