// The next token out of logits.  The law in numpy: kvasir/sampling.py.  Tests: tests/kernels/test_sample.py
#pragma once

#include <cstdint>

#ifndef KVASIR_ISA_NS
#error "KVASIR_ISA_NS names this build: avx2 or portable"
#endif

namespace kvasir {
inline namespace KVASIR_ISA_NS {

struct Sampling {
    double temperature;  // 0: greedy
    int top_k;           // <= 0: all
    double top_p, min_p, typical_p;
};

// Candidates in order of (logit descending, id ascending), cut by top-k, typical-p, top-p and min-p in that order, each on the
// softmax of what is left, then drawn at `temperature`: the first whose cumulated probability exceeds `uniform` in [0, 1).
// Temperature 0: the greatest logit, the lowest id among equals.  NaN never wins.  Throws std::domain_error when there is no
// candidate (all NaN or -infinity).
int64_t sample(const float* logits, int64_t n, const Sampling& how, double uniform);

// In place, for each distinct id of `recent`, seen c times: a positive logit is divided by `repetition` and another multiplied,
// then c * frequency + presence is taken off.  Ids out of range are left out.
void penalize(float* logits, int64_t n, const int32_t* recent, int64_t n_recent, double repetition, double presence,
              double frequency);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
