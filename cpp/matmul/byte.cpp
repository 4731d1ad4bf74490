// 8-bit codes, multiplied as two nibbles so that sums stay in int16: Q8_0. The tile, its bounds and its law are in tile.h, the layout in layout.h.
#include "rows.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_bytes(Format, const Product& p) {
    product_of<Format::Q8_0>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
