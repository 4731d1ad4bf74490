// How much of a decode step is not the streaming of weights: the real executor and kernels on the shape of Qwen3-0.6B, without
// Python. Prints the median step, the bytes of its weights over it, and the bandwidth that the same threads reach reading those
// very weights in one sweep.
//   B=build/dev/CMakeFiles/_cpu_avx2.dir/cpp
//   g++ -std=gnu++20 -O3 -mavx2 -mfma -mf16c -ffp-contract=off -DKVASIR_ISA_NS=avx2 -Icpp lab/executor_v1.cpp
//       $(ls $B/*.o $B/matmul/*.o | grep -v bindings) -o /tmp/executor_v1 -pthread
//   /tmp/executor_v1 [threads] [rows] [past] [seconds] [Q4_0|Q8_0|...]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "attend.h"
#include "products.h"

using namespace kvasir;
using Clock = std::chrono::steady_clock;

constexpr int64_t kWidth = 1024, kHeads = 16, kKv = 8, kDim = 128, kFfn = 3072, kVocab = 151936, kLayers = 28;

double bytes_of_weights = 0;
std::vector<std::pair<const uint8_t*, size_t>> all_weights;

Matrix matrix(Format f, int64_t rows, int64_t width) {
    size_t each = panel_bytes(f, width), n = static_cast<size_t>(rows / kPanel) * each;
    auto data = zeros(n);
    for (size_t i = 0; i < n; i += 2) {  // float16 near 0.01 wherever a scale may lie
        data.get()[i] = static_cast<uint8_t>(i * 131 >> 5);
        data.get()[i + 1] = 0x21;
    }
    bytes_of_weights += static_cast<double>(n);
    all_weights.push_back({data.get(), n});
    return view(f, rows, width, data);
}

struct Maker {
    Program& p;
    int64_t top = 0;
    std::vector<std::unique_ptr<Op>> links;
    Value value(int64_t width, int base = 0) {
        Value v{0, base, top, 0, width, width};
        top += width;
        return v;
    }
    void close() { p.add(chain(std::exchange(links, {}))); }
};

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

double sweep(Pool& pool) {  // bytes a second over the weights themselves
    std::atomic<int> sink{0};
    std::vector<double> found;
    for (int i = 0; i < 7; i++) {
        auto begin = Clock::now();
        pool.run([&](int thread) {
            i8 sum = all_int(0);
            for (auto [data, n] : all_weights) {
                size_t from = n / 64 * static_cast<size_t>(thread) / static_cast<size_t>(pool.threads()) * 64;
                size_t to = n / 64 * static_cast<size_t>(thread + 1) / static_cast<size_t>(pool.threads()) * 64;
                for (size_t k = from; k < to; k += 64) {
                    i8 a, b;
                    std::memcpy(&a, data + k, 32);
                    std::memcpy(&b, data + k + 32, 32);
                    sum |= a | b;
                }
            }
            sink.fetch_or(sum[0] | sum[5]);
        });
        found.push_back(bytes_of_weights / std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return median(found);
}

int main(int argc, char** argv) {
    int threads = argc > 1 ? std::atoi(argv[1]) : 2;
    int64_t T = argc > 2 ? std::atoi(argv[2]) : 1, past = argc > 3 ? std::atoi(argv[3]) : 64;
    double seconds = argc > 4 ? std::atof(argv[4]) : 3;
    Format f;
    if (!format_from_name(argc > 5 ? argv[5] : "Q4_0", f)) return 1;
    auto pool = std::make_shared<Pool>(threads);
    Program program(pool, {200000, 4096, 0}, 1, Limits{});
    Maker m{program, 0, {}};
    auto ones = std::make_shared<const std::vector<float>>(3072, 1.0f);
    auto turned = std::make_shared<Turn>(Turn{std::vector<double>(64, 0.01), 1.0, {}});
    auto ready = [&](Value x) {
        auto p = std::make_shared<Prepared>(Prepared{x, activation_of(f), std::make_shared<Buffer>()});
        m.links.push_back(prepare_rows(p));
        return p;
    };
    Value x = m.value(kWidth);
    m.links.push_back(turn(turned, x));
    m.links.push_back(scale(x, 0.5f, x));
    for (int64_t i = 0; i < kLayers; i++) {
        m.top = 2 * kWidth;
        Value h = m.value(kWidth), q = m.value(kHeads * kDim), k = m.value(kKv * kDim), v = m.value(kKv * kDim);
        m.links.push_back(norm(x, ones, nullptr, 1e-6f, 1, false, h));
        auto hp = ready(h);
        m.close();
        program.add(products({{hp, matrix(f, q.width, kWidth), nullptr, q}, {hp, matrix(f, k.width, kWidth), nullptr, k},
                              {hp, matrix(f, v.width, kWidth), nullptr, v}}));
        Value qn = m.value(q.width), kn = m.value(k.width), qr = m.value(q.width), kr = m.value(k.width), a = m.value(q.width);
        m.links.push_back(norm(q, ones, nullptr, 1e-6f, kHeads, false, qn));
        m.links.push_back(norm(k, ones, nullptr, 1e-6f, kKv, false, kn));
        m.links.push_back(rope(qn, turned, kHeads, qr));
        m.links.push_back(rope(kn, turned, kKv, kr));
        auto cache = std::make_shared<Cache>(true, kKv, k.width, v.width);
        cache->reserve((past + T) / kBlock * (T > 64 ? 1 : T) + T + 1);
        m.links.push_back(attend(qr, kr, v, cache, AttendShape{kHeads, kKv, 0.088f, 0, true, 0}, nullptr, a, threads));
        m.close();
        auto ap = ready(a);
        m.close();
        Value o = m.value(kWidth), y = m.value(kWidth), h2 = m.value(kWidth);
        program.add(products({{ap, matrix(f, kWidth, a.width), nullptr, o}}));
        m.links.push_back(add(x, o, y));
        m.links.push_back(norm(y, ones, nullptr, 1e-6f, 1, false, h2));
        auto h2p = ready(h2);
        m.close();
        Value gate = m.value(kFfn), up = m.value(kFfn), g = m.value(kFfn), d = m.value(kWidth);
        auto gp = std::make_shared<Prepared>(Prepared{g, activation_of(f), std::make_shared<Buffer>()});
        program.add(gated({{h2p, matrix(f, kFfn, kWidth), nullptr, gate}, {h2p, matrix(f, kFfn, kWidth), nullptr, up},
                           Activated::silu, 0, g, {gp}}));
        program.add(products({{gp, matrix(f, kWidth, kFfn), nullptr, d}}));
        m.links.push_back(add(y, d, x));
    }
    m.close();
    Value last{0, 1, 0, 0, kWidth, kWidth}, logits{0, 3, 0, 0, kVocab, kVocab};
    m.links.push_back(take(x, last));
    auto lp = ready(last);
    m.close();
    program.add(products({{lp, matrix(f, kVocab, kWidth), nullptr, logits}}));

    int64_t N = T > 64 ? 1 : T, each = T / N, B = (past + each) / kBlock + 1;
    std::vector<int32_t> tokens(static_cast<size_t>(T)), positions, starts{0}, blocks, slots(static_cast<size_t>(N)), rows;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t t = 0; t < each; t++) positions.push_back(static_cast<int32_t>(past + t));
        starts.push_back(static_cast<int32_t>((n + 1) * each));
        rows.push_back(starts.back() - 1);
        for (int64_t b = 0; b < B; b++) blocks.push_back(static_cast<int32_t>(n * B + b) % static_cast<int32_t>((past + T) / kBlock * N + T));
    }
    Batch batch{tokens.data(), positions.data(), starts.data(), blocks.data(), slots.data(), rows.data(), T, N, B, N};
    std::vector<float> out(static_cast<size_t>(N * kVocab));
    std::vector<double> bands{sweep(*pool)}, times;
    for (auto end = Clock::now() + std::chrono::duration<double>(seconds); Clock::now() < end || times.size() < 3;) {
        auto begin = Clock::now();
        program.step(batch, out.data());
        times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    bands.push_back(sweep(*pool));
    double took = median(times), best = *std::min_element(times.begin(), times.end());
    double band = median(bands);
    std::printf("%d threads, %ld rows, %ld past: %.2f ms (min %.2f), %.1f MB, %.2f GB/s of %.2f: %.1f %%, %.1f rows/s\n", threads,
                static_cast<long>(T), static_cast<long>(past), took * 1e3, best * 1e3, bytes_of_weights / 1e6, bytes_of_weights / took / 1e9,
                band / 1e9, 100 * bytes_of_weights / took / band, static_cast<double>(T) / took);
    program.timed = true;
    std::vector<double> sums;
    for (int i = 0; i < 20; i++) {
        program.step(batch, out.data());
        sums.resize(program.seconds.size());
        for (size_t k = 0; k < sums.size(); k++) sums[k] += program.seconds[k] / 20;
    }
    const char* names[] = {"rows before qkv", "qkv", "attend", "rows before o", "o", "rows before gate", "gate up", "down"};
    double kinds[8] = {};
    for (size_t k = 0; k + 3 < sums.size(); k++) kinds[k % 8] += sums[k];
    for (int k = 0; k < 8; k++) std::printf("  %-18s %8.1f us\n", names[k], kinds[k] * 1e6);
    std::printf("  %-18s %8.1f us\n", "head", sums.back() * 1e6);
}
