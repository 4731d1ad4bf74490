// 4-bit codes with a scale, and perhaps a minimum, per 32: Q4_0, Q4_1, Q4_K. The tile, its bounds and its law are in tile.h, the layout in layout.h.
#include "rows.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_nibbles(Format format, const Product& p) {
    if (format == Format::Q4_0) return product_of<Format::Q4_0>(p);
    if (format == Format::Q4_1) return product_of<Format::Q4_1>(p);
    product_of<Format::Q4_K>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
