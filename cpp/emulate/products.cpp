// The quantized products of the VNNI and AMX builds with their instructions emulated (matmul/pair.h), as a library of one C function:
// build.sh makes it, tests/kernels/test_emulated.py compares it with the AVX2 build.
#include <vector>

#include "../matmul/matmul.h"

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
