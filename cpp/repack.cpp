// Packs weights for the kernels: a permutation of the file's bits, never a rounding.
// Source of the block layouts: the GGUF specification and its Python reader, against which tests/kernels/test_linear.py compares.
#include "repack.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "simd.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using layout::Scale;
using layout::Spec;
using repack::FileBlock;
using repack::Unit;

struct Name {
    Format format;
    const char* name;
    int64_t width;  // weights in a block of the file
    size_t bytes;
};
constexpr Name kNames[] = {
    {Format::F32, "F32", 1, 4},       {Format::F16, "F16", 1, 2},       {Format::BF16, "BF16", 1, 2},
    {Format::Q4_0, "Q4_0", 32, 18},   {Format::Q4_1, "Q4_1", 32, 20},   {Format::Q5_0, "Q5_0", 32, 22},
    {Format::Q5_1, "Q5_1", 32, 24},   {Format::Q8_0, "Q8_0", 32, 34},   {Format::Q2_K, "Q2_K", 256, 84},
    {Format::Q3_K, "Q3_K", 256, 110}, {Format::Q4_K, "Q4_K", 256, 144}, {Format::Q5_K, "Q5_K", 256, 176},
    {Format::Q6_K, "Q6_K", 256, 210}, {Format::IQ4_NL, "IQ4_NL", 32, 18}, {Format::IQ4_XS, "IQ4_XS", 256, 136},
    {Format::MXFP4, "MXFP4", 32, 17},
};
const Name& entry(Format f) { return kNames[static_cast<int>(f)]; }

bool is_float(Format f) { return f == Format::F32 || f == Format::F16 || f == Format::BF16; }

uint16_t read16(const uint8_t* p) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}

// 32 nibbles of 16 bytes: low ones first.
void nibbles16(const uint8_t* q, uint8_t* codes) {
    for (int i = 0; i < 16; i++) codes[i] = q[i] & 15, codes[16 + i] = q[i] >> 4;
}

void fifth_bits(uint32_t bits, uint8_t* codes) {
    for (int i = 0; i < 32; i++) codes[i] |= static_cast<uint8_t>(((bits >> i) & 1u) << 4);
}

// The 6-bit scales and minima of Q4_K and Q5_K: 12 bytes, the upper two bits of the last four in those of the first eight.
void scales_of_12(const uint8_t* p, FileBlock& out) {
    for (int i = 0; i < 4; i++) {
        out.units[i].scales[0] = p[i] & 63;
        out.units[i].scales[1] = p[4 + i] & 63;
        out.units[4 + i].scales[0] = static_cast<uint8_t>((p[8 + i] & 15) | ((p[i] >> 6) << 4));
        out.units[4 + i].scales[1] = static_cast<uint8_t>((p[8 + i] >> 4) | ((p[4 + i] >> 6) << 4));
    }
}

void read_q2_k(const uint8_t* raw, FileBlock& out) {  // scales 16, q 64, d, dmin
    for (int u = 0; u < 8; u++) {
        out.units[u].scales[0] = raw[2 * u], out.units[u].scales[1] = raw[2 * u + 1];
        const uint8_t* q = raw + 16 + 32 * (u / 4);
        for (int i = 0; i < 32; i++) out.units[u].codes[i] = (q[i] >> (2 * (u % 4))) & 3;
    }
    out.d = read16(raw + 80), out.dmin = read16(raw + 82);
}

void read_q3_k(const uint8_t* raw, FileBlock& out) {  // high bits 32, q 64, scales 12, d
    uint8_t scales[16];
    for (int i = 0; i < 16; i++) {
        const int low = (raw[96 + i % 8] >> (i < 8 ? 0 : 4)) & 15, high = (raw[104 + i % 4] >> (2 * (i / 4))) & 3;
        scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
    }
    for (int u = 0; u < 8; u++) {
        out.units[u].scales[0] = scales[2 * u], out.units[u].scales[1] = scales[2 * u + 1];
        const uint8_t* q = raw + 32 + 32 * (u / 4);
        for (int i = 0; i < 32; i++)  // a set high bit means that 4 is not subtracted: it is bit 2 of the code, offset 4
            out.units[u].codes[i] = static_cast<uint8_t>(((q[i] >> (2 * (u % 4))) & 3) | (((raw[i] >> u) & 1) << 2));
    }
    out.d = read16(raw + 108);
}

void read_q4_k(const uint8_t* raw, FileBlock& out) {  // d, dmin, scales 12, q 128
    out.d = read16(raw), out.dmin = read16(raw + 2);
    scales_of_12(raw + 4, out);
    for (int u = 0; u < 8; u++) {
        const uint8_t* q = raw + 16 + 32 * (u / 2);
        for (int i = 0; i < 32; i++) out.units[u].codes[i] = (q[i] >> (4 * (u % 2))) & 15;
    }
}

void read_q5_k(const uint8_t* raw, FileBlock& out) {  // d, dmin, scales 12, high bits 32, q 128
    out.d = read16(raw), out.dmin = read16(raw + 2);
    scales_of_12(raw + 4, out);
    for (int u = 0; u < 8; u++) {
        const uint8_t* q = raw + 48 + 32 * (u / 2);
        for (int i = 0; i < 32; i++)
            out.units[u].codes[i] = static_cast<uint8_t>(((q[i] >> (4 * (u % 2))) & 15) | (((raw[16 + i] >> u) & 1) << 4));
    }
}

void read_q6_k(const uint8_t* raw, FileBlock& out) {  // low 128, high 64, scales 16, d
    for (int u = 0; u < 8; u++) {
        const uint8_t* low = raw + 64 * (u / 4) + 32 * (u % 2);  // units 0, 1 | 2, 3 share bytes: low | high nibbles
        const uint8_t* high = raw + 128 + 32 * (u / 4);
        const int low_shift = u % 4 < 2 ? 0 : 4, high_shift = 2 * (u % 4);
        for (int i = 0; i < 32; i++)
            out.units[u].codes[i] = static_cast<uint8_t>(((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4));
        out.units[u].scales[0] = raw[192 + 2 * u], out.units[u].scales[1] = raw[192 + 2 * u + 1];
    }
    out.d = read16(raw + 208);
}

void read_iq4_xs(const uint8_t* raw, FileBlock& out) {  // d, scales' high bits 2, low nibbles 4, q 128
    out.d = read16(raw);
    const uint16_t high = read16(raw + 2);
    for (int u = 0; u < 8; u++) {
        const int low = (raw[4 + u / 2] >> (4 * (u % 2))) & 15;
        out.units[u].scales[0] = static_cast<uint8_t>((low | ((high >> (2 * u)) & 3) << 4) - 32);
        nibbles16(raw + 8 + 16 * u, out.units[u].codes);
    }
}

// ---- panels

uint32_t word(const uint8_t* p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}
void put_word(uint8_t* p, uint32_t v) { std::memcpy(p, &v, 4); }

// Four codes at a time, as a word: no bit of a code crosses into its neighbour's byte.
void write_plane(int bits, int shift, const uint8_t* codes, int row, uint8_t* plane) {
    const uint32_t mask = 0x01010101u * ((1u << bits) - 1u);
    for (int v = 0; v < 4; v++) {
        const uint32_t lo = (word(codes + 4 * v) >> shift) & mask, hi = (word(codes + 16 + 4 * v) >> shift) & mask;
        if (bits == 8) {
            put_word(plane + 32 * v + 4 * row, lo);
            put_word(plane + 128 + 32 * v + 4 * row, hi);
            continue;
        }
        uint8_t* at = plane + (bits == 4 ? 32 * v : bits == 2 ? 32 * (v / 2) : 0) + 4 * row;
        const int lo_bit = bits == 4 ? 0 : bits == 2 ? 2 * (v % 2) : v;
        const bool first = bits == 4 || (bits == 2 && v % 2 == 0) || v == 0;
        put_word(at, (first ? 0u : word(at)) | lo << lo_bit | hi << (lo_bit + 4));
    }
}

void read_plane(int bits, int shift, const uint8_t* plane, int row, uint8_t* codes) {
    const uint32_t mask = 0x01010101u * ((1u << bits) - 1u);
    for (int v = 0; v < 4; v++) {
        uint32_t lo, hi;
        if (bits == 8) {
            lo = word(plane + 32 * v + 4 * row), hi = word(plane + 128 + 32 * v + 4 * row);
        } else {
            const uint32_t both = word(plane + (bits == 4 ? 32 * v : bits == 2 ? 32 * (v / 2) : 0) + 4 * row);
            const int lo_bit = bits == 4 ? 0 : bits == 2 ? 2 * (v % 2) : v;
            lo = (both >> lo_bit) & mask, hi = (both >> (lo_bit + 4)) & mask;
        }
        put_word(codes + 4 * v, (shift ? word(codes + 4 * v) : 0u) | lo << shift);
        put_word(codes + 16 + 4 * v, (shift ? word(codes + 16 + 4 * v) : 0u) | hi << shift);
    }
}

// Where byte `i` of a unit's scales lies in its block.
size_t scale_at(Scale kind, int row, int i) {
    if (kind == Scale::Half || kind == Scale::HalfMin) return static_cast<size_t>(16 * (i / 2) + 2 * row + i % 2);
    return static_cast<size_t>(8 * i + row);
}
int scales_of_unit(Scale kind) { return static_cast<int>(layout::scale_bytes(kind) / 8); }

void write_unit(const Spec& spec, const Unit& unit, int row, uint8_t* block) {
    for (int i = 0; i < scales_of_unit(spec.scale); i++) block[scale_at(spec.scale, row, i)] = unit.scales[i];
    uint8_t* plane = block + layout::scale_bytes(spec.scale);
    write_plane(spec.low_bits, 0, unit.codes, row, plane);
    if (spec.high_bits) write_plane(spec.high_bits, spec.low_bits, unit.codes, row, plane + layout::plane_bytes(spec.low_bits));
}

void write_header(const Spec& spec, const FileBlock& from, int row, uint8_t* header) {
    std::memcpy(header + 2 * row, &from.d, 2);
    if (layout::has_min(spec.scale)) std::memcpy(header + 16 + 2 * row, &from.dmin, 2);
}

// Formats whose bytes hold weights i and i + 16 of 32 as the low plane of a panel does: its words are moved as they are.
template <int kBlock, int kScale> void pack_nibbles(const uint8_t* raw, int64_t width, int row, uint8_t* panel) {
    constexpr size_t kPlane = 8 * kScale;  // scales of 8 rows stand before the codes
    for (int64_t k = 0; k < width; k += 32, raw += kBlock, panel += kPlane + 128) {
        if constexpr (kScale == 1) panel[row] = raw[0];
        for (int i = 0; i < kScale / 2; i++) std::memcpy(panel + 16 * i + 2 * row, raw + 2 * i, 2);
        for (int v = 0; v < 4; v++) put_word(panel + kPlane + 32 * v + 4 * row, word(raw + kScale + 4 * v));
    }
}

void pack_bytes(const uint8_t* raw, int64_t width, int row, uint8_t* panel) {
    for (int64_t k = 0; k < width; k += 32, raw += 34, panel += 16 + 256) {
        std::memcpy(panel + 2 * row, raw, 2);
        for (int v = 0; v < 8; v++) put_word(panel + 16 + 32 * v + 4 * row, word(raw + 2 + 4 * v) ^ 0x80808080u);  // int8 + 128
    }
}

// The formats that most weights have, without a detour over codes.
bool pack_quickly(Format format, const uint8_t* raw, int64_t width, int row, uint8_t* panel) {
    switch (format) {
        case Format::Q4_0:
        case Format::IQ4_NL: return pack_nibbles<18, 2>(raw, width, row, panel), true;
        case Format::Q4_1: return pack_nibbles<20, 4>(raw, width, row, panel), true;
        case Format::MXFP4: return pack_nibbles<17, 1>(raw, width, row, panel), true;
        case Format::Q8_0: return pack_bytes(raw, width, row, panel), true;
        default: return false;
    }
}

void pack_row(Format format, const uint8_t* raw, int64_t width, int row, uint8_t* panel) {
    if (pack_quickly(format, raw, width, row, panel)) return;
    const Spec spec = layout::spec_of(format);
    const int group = layout::blocks_per_header(spec.scale);
    FileBlock block;
    for (int64_t k = 0; k < width; k += 32 * group) {
        repack::read_block(format, raw, block);
        raw += entry(format).bytes;
        if (layout::is_super(spec.scale)) write_header(spec, block, row, panel);
        panel += layout::header_bytes(spec.scale);
        for (int u = 0; u < group; u++, panel += layout::block_bytes(spec)) write_unit(spec, block.units[u], row, panel);
    }
}

template <class E> void pack_floats(const uint8_t* raw, int64_t rows, int64_t width, uint8_t* panel) {
    constexpr int64_t kRun = 256;  // of k at a time, so that 8 rows of the file and the panel share the first cache
    E column[kPanel];
    for (int64_t k0 = 0; k0 < width; k0 += kRun)
        for (int64_t k = k0; k < std::min(width, k0 + kRun); k++) {
            for (int64_t r = 0; r < kPanel; r++) {
                column[r] = 0;
                if (r < rows) std::memcpy(&column[r], raw + static_cast<size_t>(r * width + k) * sizeof(E), sizeof(E));
            }
            std::memcpy(panel + static_cast<size_t>(k) * sizeof column, column, sizeof column);
        }
}

void decode_unit(const Spec& spec, const uint8_t* block, int row, float d, float dmin, float* out) {
    uint8_t codes[32], s[4] = {};
    const uint8_t* plane = block + layout::scale_bytes(spec.scale);
    read_plane(spec.low_bits, 0, plane, row, codes);
    if (spec.high_bits) read_plane(spec.high_bits, spec.low_bits, plane + layout::plane_bytes(spec.low_bits), row, codes);
    for (int i = 0; i < scales_of_unit(spec.scale); i++) s[i] = block[scale_at(spec.scale, row, i)];
    float scale[2] = {d, d}, min[2] = {};
    if (spec.scale == Scale::Half || spec.scale == Scale::HalfMin) scale[0] = scale[1] = simd::float_of_half(read16(s));
    if (spec.scale == Scale::HalfMin) min[0] = min[1] = -simd::float_of_half(read16(s + 2));
    if (spec.scale == Scale::Exponent) scale[0] = scale[1] = std::ldexp(1.0f, static_cast<int>(s[0]) - 128);
    for (int h = 0; h < 2; h++) {
        if (spec.scale == Scale::Super) scale[h] = d * static_cast<float>(static_cast<int8_t>(s[0]));
        if (spec.scale == Scale::SuperMin) scale[h] = d * static_cast<float>(s[0]), min[h] = dmin * static_cast<float>(s[1]);
        if (spec.scale == Scale::Super16) scale[h] = d * static_cast<float>(static_cast<int8_t>(s[h]));
        if (spec.scale == Scale::Super16Min)
            scale[h] = d * static_cast<float>(s[h] & 15), min[h] = dmin * static_cast<float>(s[h] >> 4);
    }
    const bool centred = spec.offset >= 0 && !layout::has_min(spec.scale);
    const int offset = centred ? 1 << spec.offset : 0;
    for (int i = 0; i < 32; i++) {
        int code = codes[i];
        if (spec.table == layout::Table::Iq4) code = layout::kIq4[code];
        if (spec.table == layout::Table::Mxfp4) code = layout::kMxfp4[code];
        const float value = scale[i / 16] * static_cast<float>(code - offset);
        out[i] = layout::has_min(spec.scale) ? value - min[i / 16] : value;
    }
}

}  // namespace

namespace repack {

size_t file_block_bytes(Format format) { return entry(format).bytes; }
int64_t file_block_width(Format format) { return entry(format).width; }

void read_block(Format format, const uint8_t* raw, FileBlock& out) {
    Unit& unit = out.units[0];
    switch (format) {
        case Format::Q4_0:
        case Format::IQ4_NL:
            std::memcpy(unit.scales, raw, 2);
            return nibbles16(raw + 2, unit.codes);
        case Format::Q4_1:
            std::memcpy(unit.scales, raw, 4);
            return nibbles16(raw + 4, unit.codes);
        case Format::Q5_0:
            std::memcpy(unit.scales, raw, 2);
            nibbles16(raw + 6, unit.codes);
            return fifth_bits(word(raw + 2), unit.codes);
        case Format::Q5_1:
            std::memcpy(unit.scales, raw, 4);
            nibbles16(raw + 8, unit.codes);
            return fifth_bits(word(raw + 4), unit.codes);
        case Format::Q8_0:
            std::memcpy(unit.scales, raw, 2);
            for (int i = 0; i < 32; i++) unit.codes[i] = raw[2 + i] ^ 0x80;  // int8 + 128
            return;
        case Format::MXFP4:
            unit.scales[0] = raw[0];
            return nibbles16(raw + 1, unit.codes);
        case Format::Q2_K: return read_q2_k(raw, out);
        case Format::Q3_K: return read_q3_k(raw, out);
        case Format::Q4_K: return read_q4_k(raw, out);
        case Format::Q5_K: return read_q5_k(raw, out);
        case Format::Q6_K: return read_q6_k(raw, out);
        case Format::IQ4_XS: return read_iq4_xs(raw, out);
        default: return;  // F32, F16, BF16 have no blocks
    }
}

}  // namespace repack

bool format_from_name(const char* name, Format& format) {
    for (const Name& n : kNames)
        if (std::strcmp(n.name, name) == 0) return format = n.format, true;
    return false;
}

const char* format_name(Format format) { return entry(format).name; }

size_t raw_row_bytes(Format format, int64_t width) {
    const Name& n = entry(format);
    return width <= 0 || width % n.width ? 0 : static_cast<size_t>(width / n.width) * n.bytes;
}

size_t panel_bytes(Format format, int64_t width) {
    if (is_float(format)) return static_cast<size_t>(width) * kPanel * (format == Format::F32 ? 4 : 2);
    const Spec spec = layout::spec_of(format);
    const size_t blocks = static_cast<size_t>(width / 32);
    return blocks * layout::block_bytes(spec) + blocks / static_cast<size_t>(layout::blocks_per_header(spec.scale)) * layout::header_bytes(spec.scale);
}

void pack_panels(Format format, const uint8_t* raw, int64_t rows, int64_t width, int64_t begin, int64_t end, uint8_t* out) {
    const size_t row_bytes = raw_row_bytes(format, width), each = panel_bytes(format, width);
    for (int64_t p = begin; p < end; p++) {
        const int64_t here = std::min(kPanel, rows - p * kPanel);
        const uint8_t* from = raw + static_cast<size_t>(p * kPanel) * row_bytes;
        uint8_t* to = out + static_cast<size_t>(p) * each;
        if (format == Format::F32) pack_floats<uint32_t>(from, here, width, to);
        else if (is_float(format)) pack_floats<uint16_t>(from, here, width, to);
        else {
            if (here < kPanel) std::memset(to, 0, each);
            for (int r = 0; r < here; r++) pack_row(format, from + static_cast<size_t>(r) * row_bytes, width, r, to);
        }
    }
}

Matrix pack(Format format, const uint8_t* raw, int64_t rows, int64_t width) {
    if (raw_row_bytes(format, width) == 0)
        throw std::invalid_argument(std::string(format_name(format)) + " rows hold a multiple of " +
                                    std::to_string(entry(format).width) + " weights, not " + std::to_string(width));
    Matrix m{format, rows, width, panel_bytes(format, width), nullptr};
    std::shared_ptr<uint8_t> data = weight_memory(m.bytes());
    pack_panels(format, raw, rows, width, 0, m.panels(), data.get());
    m.data = std::move(data);
    return m;
}

Matrix view(Format format, int64_t rows, int64_t width, std::shared_ptr<const uint8_t> keep) {
    return Matrix{format, rows, width, panel_bytes(format, width), std::move(keep)};
}

Matrix slice(const Matrix& w, int64_t begin, int64_t end) {
    const size_t skip = static_cast<size_t>(begin / kPanel) * w.panel_bytes;
    return Matrix{w.format, end - begin, w.width, w.panel_bytes, std::shared_ptr<const uint8_t>(w.data, w.data.get() + skip)};
}

void decode_row(const Matrix& w, int64_t o, float* out) {
    const uint8_t* p = w.data.get() + static_cast<size_t>(o / kPanel) * w.panel_bytes;
    const int row = static_cast<int>(o % kPanel);
    if (is_float(w.format)) {
        for (int64_t k = 0; k < w.width; k++) {
            const int64_t i = k * kPanel + row;
            if (w.format == Format::F32) std::memcpy(out + k, p + 4 * i, 4);
            else if (w.format == Format::F16) out[k] = simd::float_of_half(read16(p + 2 * i));
            else {
                const uint32_t bits = static_cast<uint32_t>(read16(p + 2 * i)) << 16;
                std::memcpy(out + k, &bits, 4);
            }
        }
        return;
    }
    const Spec spec = layout::spec_of(w.format);
    const int group = layout::blocks_per_header(spec.scale);
    for (int64_t k = 0; k < w.width; k += 32 * group) {
        const float d = layout::is_super(spec.scale) ? simd::float_of_half(read16(p + 2 * row)) : 0.0f;
        const float dmin = layout::has_min(spec.scale) && layout::is_super(spec.scale) ? simd::float_of_half(read16(p + 16 + 2 * row)) : 0.0f;
        p += layout::header_bytes(spec.scale);
        for (int u = 0; u < group; u++, p += layout::block_bytes(spec)) decode_unit(spec, p, row, d, dmin, out + k + 32 * u);
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
