// 5-bit codes, a nibble plane and a bit plane: Q5_0, Q5_1, Q5_K. The tile, its bounds and its law are in tile.h, the layout in layout.h.
#include "rows.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_fives(Format format, const Product& p) {
    if (format == Format::Q5_0) return product_of<Format::Q5_0>(p);
    if (format == Format::Q5_1) return product_of<Format::Q5_1>(p);
    product_of<Format::Q5_K>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
