// 4-bit codes that index a table of 16 values: IQ4_NL, IQ4_XS, MXFP4. The tile, its bounds and its law are in tile.h, the layout in layout.h.
#include "rows.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_tables(Format format, const Product& p) {
    if (format == Format::IQ4_NL) return product_of<Format::IQ4_NL>(p);
    if (format == Format::IQ4_XS) return product_of<Format::IQ4_XS>(p);
    product_of<Format::MXFP4>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
