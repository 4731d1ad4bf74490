// The quantized products of the VNNI and AMX builds with their instructions emulated (matmul/pair.h), as a library of one C function:
// tests/kernels/test_emulated.py compiles it and compares it with the AVX2 build. One file of all, so that it compiles in 10 s.
#include "../matmul/byte.cpp"
#include "../matmul/five.cpp"
#include "../matmul/matmul.cpp"
#include "../matmul/memory.cpp"
#include "../matmul/nibble.cpp"
#include "../matmul/sixteen.cpp"
#include "../matmul/table.cpp"
#include "../repack.cpp"

#include <vector>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

void multiply_floats(Format, const Product&) {}  // has no instructions of its own, and is left out

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir

// y [T, rows] = x [T, width] times the file rows `raw`, of outputs [begin, end). 0, or 1 for a format of no such name.
extern "C" int kvasir_emulated(const char* name, const uint8_t* raw, int64_t rows, int64_t width, const float* x, int64_t T, float* y,
                               int64_t begin, int64_t end) {
    using namespace kvasir;
    Format format;
    if (!format_from_name(name, format)) return 1;
    const Matrix w = pack(format, raw, rows, width);
    const size_t stride = activation_stride(w.activation(), width);
    std::vector<uint8_t> room(stride * static_cast<size_t>(T) + 64);
    uint8_t* at = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64;
    for (int64_t t = 0; t < T; t++) prepare(w.activation(), x + t * width, width, at + static_cast<size_t>(t) * stride);
    multiply(w, at, stride, T, y, rows, nullptr, begin, end);
    return 0;
}
