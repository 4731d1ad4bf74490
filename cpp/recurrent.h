// Ops whose memory is a block a sequence: the short convolution and the gated delta rule.  Reference: conv, decay, delta.
//
// A task is a sequence and a few columns or a head, and walks that sequence's rows in order: columns do not see each other, so
// the split over threads changes nothing, and neither do the neighbours.  Tests: tests/kernels/test_recurrent.py
#pragma once

#include <array>
#include <memory>

#include "executor.h"
#include "ops.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// `width` floats a slot. Counts as zero for a sequence whose first row is at position 0.
struct Slots {
    Slots(int64_t n_slots, int64_t slot_width) : width(slot_width) {
        data.reserve(static_cast<size_t>(n_slots * slot_width) * sizeof(float));
    }
    float* at(int64_t slot) const { return data.as<float>() + slot * width; }
    void copy(int64_t source, int64_t target) const;
    Buffer data;
    int64_t width;
};

// weight: [D, taps]; past: [taps - 1, D] a slot.
std::unique_ptr<Op> conv(Value x, Floats weight, int taps, std::shared_ptr<Slots> past, Value out);

std::unique_ptr<Op> decay(Value x, Floats a, Floats bias, Value out);

// memory: [v_heads][v_dim in pieces of 32][k_dim][columns of the piece] a slot, turned against the reference so that lanes are
// values and no sum runs across lanes. v_dim counts as rounded up to whole vectors; a piece is one stretch of 16 KB, which
// stays in the first cache over some rows (with the rows of a head side by side they would fall on each other's cache sets).
struct DeltaInputs {
    Value q, k, v, decay, beta;
};
std::unique_ptr<Op> delta(DeltaInputs in, std::shared_ptr<Slots> memory, int k_heads, int v_heads, Value out);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
