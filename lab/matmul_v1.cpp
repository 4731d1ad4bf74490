// Each weight format's product against its two limits, on one core.
//
//   g++ -std=c++20 -O3 -mavx2 -mfma -mf16c -ffp-contract=off -DKVASIR_ISA_NS=avx2 -I cpp lab/matmul_v1.cpp cpp/matmul/*.cpp
//       cpp/repack.cpp -o /tmp/matmul_v1 && taskset -c 0 /tmp/matmul_v1 [FORMAT ...] [T ...]
//
// T = 1..16 read weights of 320 MB, far beyond the cache: GB/s against the read loop of the first line. T >= 64 use a matrix
// of 3072 x 1024: G multiply-adds/s. The best of several passes, since a busy machine only makes times longer.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "matmul/matmul.h"
#include "simd.h"

using namespace kvasir;

namespace {

double now() {  // of this thread's own time: what others take from the core does not count
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

uint8_t* pages(size_t bytes) {  // huge ones
    void* p = mmap(nullptr, bytes + (2u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    auto* at = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(p) + (2u << 20) - 1) & ~uintptr_t{(2u << 20) - 1});
    if (!std::getenv("SMALL")) madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

// One panel packed from random blocks with sane scales, copied to all: no number is subnormal or NaN.
Matrix weights(Format f, int64_t rows, int64_t width, uint8_t* at) {
    std::mt19937 random(1);
    const size_t row = raw_row_bytes(f, width);
    std::vector<uint8_t> raw(8 * row);
    for (auto& b : raw) b = static_cast<uint8_t>(random());
    const int64_t block = f <= Format::BF16 ? 1 : (f <= Format::Q8_0 || f == Format::IQ4_NL || f == Format::MXFP4) ? 32 : 256;
    const size_t step = row / static_cast<size_t>(width / block);
    for (size_t i = 0; i < raw.size(); i += step) {
        const uint16_t half = 0x2c00, small = 0x1c00;
        const float one = 0.5f;
        if (f == Format::F32) std::memcpy(&raw[i], &one, 4);
        else if (f == Format::F16 || f == Format::BF16) raw[i + 1] = 0x3c;
        else if (f == Format::Q6_K) std::memcpy(&raw[i + 208], &small, 2);
        else if (f == Format::Q3_K) std::memcpy(&raw[i + 108], &small, 2);
        else if (f == Format::Q2_K) std::memcpy(&raw[i + 80], &small, 2), std::memcpy(&raw[i + 82], &small, 2);
        else if (f == Format::MXFP4) raw[i] = 120;
        else std::memcpy(&raw[i], &half, 2), std::memcpy(&raw[i + 2], &small, f == Format::Q8_0 || f == Format::Q4_0 ? 0 : 2);
    }
    const Matrix one = pack(f, raw.data(), 8, width);
    for (int64_t p = 0; p < rows / 8; p++) std::memcpy(at + static_cast<size_t>(p) * one.panel_bytes, one.data.get(), one.panel_bytes);
    return view(f, rows, width, std::shared_ptr<const uint8_t>(at, [](const uint8_t*) {}));
}

double pass(const Matrix& w, int64_t T, const std::vector<uint8_t>& x, size_t stride, std::vector<float>& y) {
    const double begin = now();
    for (int64_t o = 0; o < w.rows; o += 64)  // as the pool hands them out
        multiply(w, x.data(), stride, T, y.data(), w.rows, nullptr, o, std::min(o + 64, w.rows));
    return now() - begin;
}

double read_loop(const uint8_t* p, size_t bytes) {
    double best = 1e9;
    for (int i = 0; i < 7; i++) {
        const double begin = now();
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
        for (size_t k = 0; k < bytes; k += 128) {
            a = _mm256_or_si256(a, simd::load_bytes(p + k)), b = _mm256_or_si256(b, simd::load_bytes(p + k + 32));
            c = _mm256_or_si256(c, simd::load_bytes(p + k + 64)), d = _mm256_or_si256(d, simd::load_bytes(p + k + 96));
        }
        a = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
        asm volatile("" : : "x"(a));
        best = std::min(best, now() - begin);
    }
    return static_cast<double>(bytes) / best / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> names;
    std::vector<int64_t> Ts;
    for (int i = 1; i < argc; i++) std::atoi(argv[i]) ? Ts.push_back(std::atoi(argv[i])) : names.push_back(argv[i]);
    if (names.empty()) names = {"Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16"};
    if (Ts.empty()) Ts = {1, 2, 4, 8, 16, 512};
    const size_t room = 320u << 20;
    uint8_t* data = pages(room);
    std::memset(data, 1, room);
    const int64_t D = 1024;
    for (const auto& name : names) {
        Format f;
        if (!format_from_name(name.c_str(), f)) return 1;
        std::printf("%-6s read %.1f GB/s |", name.c_str(), read_loop(data, room));
        const size_t each = panel_bytes(f, D);
        for (const int64_t T : Ts) {
            const bool large = T <= 16;
            const int64_t rows = large ? static_cast<int64_t>(room / each) * 8 / 64 * 64 : 3072;
            const Matrix w = weights(f, rows, D, data);
            const size_t stride = activation_stride(w.activation(), D);
            std::vector<uint8_t> x(static_cast<size_t>(T) * stride);
            std::vector<float> in(D), y(static_cast<size_t>(T * rows));
            std::mt19937 random(2);
            for (int64_t t = 0; t < T; t++) {
                for (auto& v : in) v = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
                prepare(w.activation(), in.data(), D, x.data() + static_cast<size_t>(t) * stride);
            }
            double best = 1e9, end = now() + 0.8;
            for (int i = 0; i < 4 || now() < end; i++) best = std::min(best, pass(w, T, x, stride, y));
            const double macs = static_cast<double>(T * rows * D) / best / 1e9, bytes = static_cast<double>(w.bytes()) / best / 1e9;
            if (large) std::printf(" T=%ld %.1f GB/s %.0f G |", T, bytes, macs);
            else std::printf(" T=%ld %.0f G", T, macs);
            std::fflush(stdout);
        }
        std::printf("\n");
    }
}
