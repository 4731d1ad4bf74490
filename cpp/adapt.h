// Adapters: y[t] += scale B (A x[t]) for the rows t whose sequence has one.   x: [T, D]   A: [r, D]   B: [O, r]   y: [T, O]
//
// `shrink` computes A x for all products that read one x, before them; `expand` adds to a part of y as soon as that part of the
// product is there. Rows without an adapter are never touched.
// Law: both are `multiply` over the rows of one adapter, and one multiply-add after it: what a row gets is the same bits whatever
// the other rows have, however many they are, and whoever takes which part. Tests: tests/kernels/test_adapt.py
#pragma once

#include <memory>
#include <vector>

#include "executor.h"
#include "matmul/matmul.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// What one adapter adds to one product. Matrices of floats, F32, F16 or BF16.
struct LowRank {
    Matrix a, b;
    float scale = 0;
};

// What adapters add to one product, by their numbers. Changes between steps only.
class Adapted {
   public:
    Adapted(int64_t rows, int64_t width) : rows_(rows), width_(width) {}
    void put(int64_t adapter, LowRank low);  // throws std::invalid_argument for what does not fit the product
    void drop(int64_t adapter);
    const LowRank* of(int32_t adapter) const {
        auto i = static_cast<size_t>(adapter);
        return i < by_adapter_.size() && by_adapter_[i].a.data ? &by_adapter_[i] : nullptr;
    }
    int64_t rank() const { return rank_; }  // the greatest of all

   private:
    int64_t rows_, width_, rank_ = 0;
    std::vector<LowRank> by_adapter_;
};

// A x of the rows of x, for products that read it: [T] rows of `stride` floats, product i's from `at[i]` on.
struct Shrunk {
    Value x;
    std::vector<std::shared_ptr<Adapted>> products;
    std::vector<int64_t> at;
    int64_t stride = 0;
    Buffer rows;
    float* row(int64_t t) const { return rows.as<float>() + t * stride; }
};
std::unique_ptr<Op> shrink(std::shared_ptr<Shrunk> h);

// Adds to columns [begin, end) of rows [row, row + rows) of y what their adapters say, from what `shrink` left for product i.
// begin is a multiple of 8, and so is end unless it is O.
void expand(const Step& s, const Shrunk& h, size_t i, const Value& y, int64_t row, int64_t rows, int64_t begin, int64_t end);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
