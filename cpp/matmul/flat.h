// Loops whose indexes are constants: arrays indexed by them are registers from the start.
#pragma once

#include <utility>

#define KVASIR_FLAT __attribute__((always_inline)) inline
#define KVASIR_FLAT_LAMBDA __attribute__((always_inline))

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// f(0), f(1) .. f(N - 1).
template <int N, class F> KVASIR_FLAT void each(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) KVASIR_FLAT_LAMBDA { (f(std::integral_constant<int, I>{}), ...); }
    (std::make_integer_sequence<int, N>{});
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
