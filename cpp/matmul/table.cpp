// 4-bit codes that index a table of 16 values: IQ4_NL, IQ4_XS, MXFP4. The tile, its bounds and its law are in tile.h, the layout in layout.h.
#include "tile.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_tables(Format format, const Product& p) {
    if (format == Format::IQ4_NL) return tiles::product<Format::IQ4_NL>(p);
    if (format == Format::IQ4_XS) return tiles::product<Format::IQ4_XS>(p);
    tiles::product<Format::MXFP4>(p);
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
