// From the rows of a file to the panels of a kernel, and back for one row. The layouts are in matmul/layout.h, the face in
// matmul/matmul.h (pack, pack_panels, decode_row).
#pragma once

#include "matmul/layout.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
// Raise it when panels change in a way that a matrix of 27 x 512 does not show: packed weights that lie on disk are known by
// what `pack` makes of one in each format, and by this number (kvasir/backends/packed.py).
constexpr int kLayout = 1;

namespace repack {

// 32 weights of one row, between the file and the panel.
struct Unit {
    uint8_t codes[32];  // unsigned, all their bits
    uint8_t scales[4];  // d, m as two bytes each; or one byte a scale as layout::Scale lists them
};

// A block of the file, which is one unit, or eight with float16 scales over all.
struct FileBlock {
    uint16_t d, dmin;
    Unit units[8];
};

void read_block(Format format, const uint8_t* raw, FileBlock& out);
size_t file_block_bytes(Format format);
int64_t file_block_width(Format format);

}  // namespace repack
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
