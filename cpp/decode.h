// Rows of a file's number formats as float32, exactly as kvasir/quant decodes them: the same operations in the same order.
#pragma once

#include <cstdint>

#include "matmul/matmul.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// `width` weights of one row; a multiple of the format's block.
void decode(Format format, const uint8_t* raw, int64_t width, float* out);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
