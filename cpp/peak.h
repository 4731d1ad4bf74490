// Multiply-adds a second at most, for the benchmarks: `bytes`: u8 by s8 summed in int16, as quantized products do; else float32.
#pragma once

namespace kvasir {
inline namespace KVASIR_ISA_NS {

double peak(bool bytes, int threads);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
