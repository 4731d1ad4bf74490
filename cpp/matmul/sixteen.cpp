// K formats with a scale for each 16 weights: 2, 3 and 6 bits: Q2_K, Q3_K, Q6_K. The tile, its bounds and its law are in tile.h, the layout in layout.h.
#include "rows.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_sixteens(Format format, const Product& p) {
    if (format == Format::Q2_K) return product_of<Format::Q2_K>(p);
    if (format == Format::Q3_K) return product_of<Format::Q3_K>(p);
    product_of<Format::Q6_K>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
