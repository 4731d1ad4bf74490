// A mixture of experts: rows are grouped by expert, so that each expert's weights are read once a step.
//
// Law: an expert sees its rows through `multiply`, which gives a row the same bits whatever the others are, and a row's k
// contributions are added in the order of their expert numbers.  Reference: experts.  Tests: tests/kernels/test_experts.py
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "executor.h"
#include "ops.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

enum class Route : int { softmax_renorm, softmax, topk_softmax };
Route route_from_name(const std::string& name);

struct ExpertsShape {
    int k;
    Route route;
    Activated fn;
    float limit;
};

struct ExpertWeights {
    std::vector<Matrix> gate, up, down;  // one an expert: [F, D], [F, D], [D, F]
};
struct ExpertBiases {
    Floats gate, up, down;  // [E, F], [E, F], [E, D], or null
};

std::unique_ptr<Op> experts(Value x, Value scores, ExpertWeights w, ExpertBiases b, ExpertsShape shape, Value out);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
