// The matrix product: y[t, o] = sum_k x[t, k] * w[o, k] (+ bias[o]).   x: [T, D]   w: [O, D] in any weight format   y: [T, O]
//
// Law: y[t, o] is the same bits for any T, any split of the output rows and any number of threads, because lanes are output
// rows (panels of 8) and each sum runs along k in one order. Weights are repacked once, losslessly, and are never floats in
// memory. Q8 activations: products are exact integers until the scale of a block of 32 is applied.
// Equals the reference on the same prepared activations within 1e-5 of the norm. Tests: tests/kernels/test_linear.py
//
// Use:  Matrix w = pack(format, raw, O, D);
//       size_t stride = activation_stride(w.activation(), D);
//       for each row:  prepare(w.activation(), x + t * D, D, buffer + t * stride);
//       each thread:   multiply(w, buffer, stride, T, y, O, nullptr, o_begin, o_end);
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#ifndef KVASIR_ISA_NS
#error "KVASIR_ISA_NS names this build, as CMakeLists.txt does"
#endif

namespace kvasir {
inline namespace KVASIR_ISA_NS {

enum class Format : int {
    F32, F16, BF16,
    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,
    Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,
    IQ4_NL, IQ4_XS, MXFP4,
};

// False when `name` (as in kvasir/quant/formats.py) is none of them; else sets `format`.
bool format_from_name(const char* name, Format& format);
const char* format_name(Format format);

// Bytes of a row as the file has it; 0 when `width` is no multiple of the format's block (32, or 256 for the K formats and IQ4_XS).
size_t raw_row_bytes(Format format, int64_t width);

// What the kernel of a format reads: floats as they are, or int8 in blocks of 32 with a float32 scale (amax / 127).
enum class Activation : int { F32, Q8 };

inline Activation activation_of(Format f) {
    return f == Format::F32 || f == Format::F16 || f == Format::BF16 ? Activation::F32 : Activation::Q8;
}

constexpr int64_t kPanel = 8;  // output rows that share a panel; splits of the output rows are multiples of it

// A weight matrix in the layout of its kernel: panels of 8 rows, `panel_bytes` each. Copies share the bytes.
struct Matrix {
    Format format = Format::F32;
    int64_t rows = 0;   // O
    int64_t width = 0;  // D
    size_t panel_bytes = 0;
    std::shared_ptr<const uint8_t> data;  // 64-byte aligned, panels() * panel_bytes; own memory or a view of mapped memory

    int64_t panels() const { return (rows + kPanel - 1) / kPanel; }
    size_t bytes() const { return static_cast<size_t>(panels()) * panel_bytes; }
    Activation activation() const { return activation_of(format); }
};

// Bytes of one panel of 8 rows of `width` weights; packed size of a matrix = panels * this.
size_t panel_bytes(Format format, int64_t width);

// Room for packed weights, 64-byte aligned, in large pages where the system has them. Throws std::bad_alloc.
std::shared_ptr<uint8_t> weight_memory(size_t bytes);

// Repacks `rows` file rows; rows beyond O in the last panel are zero. Throws std::invalid_argument for a bad width.
Matrix pack(Format format, const uint8_t* raw, int64_t rows, int64_t width);
// The same in pieces (for loading by several threads): writes panels [begin, end) of a matrix of `rows` rows into `out`.
void pack_panels(Format format, const uint8_t* raw, int64_t rows, int64_t width, int64_t begin, int64_t end, uint8_t* out);
// A matrix over packed bytes that someone else holds (a repacked cache that is mapped); `keep` keeps them alive.
Matrix view(Format format, int64_t rows, int64_t width, std::shared_ptr<const uint8_t> keep);
// Rows [begin, end) as a matrix of their own, sharing bytes: an expert of a stack. `begin` is a multiple of 8.
Matrix slice(const Matrix& w, int64_t begin, int64_t end);
// Row `o` as floats [D]: an embedding read from the packed table.
void decode_row(const Matrix& w, int64_t o, float* out);

size_t activation_bytes(Activation kind, int64_t width);                              // per row; a multiple of 16
// How far apart rows should lie: near a multiple of 1024 bytes they would contend for the same places of the first cache, which can
// cost half the speed (6 rows of floats 4096 bytes apart: 21 G multiply-adds a second, 4416 apart: 49).
size_t activation_stride(Activation kind, int64_t width);
void prepare(Activation kind, const float* x, int64_t width, void* out);              // one row; out is 16-byte aligned
void unprepare(Activation kind, const void* prepared, int64_t width, float* out);     // one row, as the kernel sees it

// Output rows [o_begin, o_end) of all T rows: y[t * ldy + o], o counted from the matrix's first row. o_begin is a multiple of
// 8, and so is o_end unless it is O. `x` is prepared, rows `x_stride` bytes apart. Runs on the calling thread alone.
void multiply(const Matrix& w, const void* x, size_t x_stride, int64_t T, float* y, int64_t ldy, const float* bias,
              int64_t o_begin, int64_t o_end);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
