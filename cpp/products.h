// Products of one input with one or more matrices, as one op: threads meet once for all of them.
//
// Law: what a product gives is what `multiply` gives; which matrices share an op, and which thread takes which panels, changes
// no bit. A gated pair gives fn(gate) * up by the same functions as the op of its own (ops.h: gated_row), 32 columns at a time.
// Tests: tests/kernels/test_fusion.py, tests/kernels/test_program.py
#pragma once

#include <memory>
#include <vector>

#include "adapt.h"
#include "executor.h"
#include "ops.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// A value as the kernel of some formats reads it (quantized once for all products that share it).
struct Prepared {
    Value x;
    Activation kind;
    std::shared_ptr<Buffer> rows;
    size_t stride() const { return activation_stride(kind, x.width); }
    uint8_t* row(int64_t t) const { return rows->as<uint8_t>() + static_cast<size_t>(t) * stride(); }
};
std::unique_ptr<Op> prepare_rows(std::shared_ptr<Prepared> p);

// y = x W^T + b, and what the adapters of rows add, where any can: `low` is shrunk before, and this is its product `which`
struct Part {
    std::shared_ptr<Prepared> x;
    Matrix w;
    Floats bias;
    Value out;
    std::shared_ptr<Shrunk> low = nullptr;
    size_t which = 0;
};
std::unique_ptr<Op> products(std::vector<Part> parts);  // of the same rows

// fn(gate) * up of two products, and the result prepared for the product that reads it: `ready` may be empty.
struct Gated {
    Part gate, up;
    Activated fn;
    float limit;
    Value out;
    std::vector<std::shared_ptr<Prepared>> ready;
};
std::unique_ptr<Op> gated(Gated pair);

// Nanoseconds that a product of T rows by one panel takes, roughly.
double panel_ns(const Matrix& w, int64_t T);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
