// The attention op by itself, without the extension: right (against double precision), the same bits for any steps and
// threads, and how fast at a long past and on a long prompt.
//   g++ -std=gnu++20 -O3 -mavx2 -mfma -mf16c -ffp-contract=off -Wno-psabi -DKVASIR_ISA_NS=lab -Icpp lab/attend_v2.cpp
//     cpp/attend.cpp -o /tmp/attend_v2 && /tmp/attend_v2 right && /tmp/attend_v2 decode && /tmp/attend_v2 prefill
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>

#include <x86intrin.h>

#include "attend.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
void Buffer::reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    bytes = (bytes + (1 << 21)) >> 21 << 21;
    auto* p = static_cast<uint8_t*>(std::aligned_alloc(1 << 21, bytes));
    std::memset(p, 0xff, bytes);  // NaN: what nobody wrote must not be read
    data_ = std::shared_ptr<uint8_t>(p, [](uint8_t* q) { std::free(q); });
    bytes_ = bytes;
}
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
using namespace kvasir;
using Rows = std::vector<float>;

static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

static double ticks() {
    unsigned a;
    return static_cast<double>(__rdtscp(&a));
}

// Ticks of a vector multiply-add when nothing else is done.
static double peak() {
    f8 a[12], b = all(1e-3f);
    for (auto& x : a) x = all(0);
    double best = 1e30;
    for (int r = 0; r < 200; r++) {
        double t = ticks();
        for (int i = 0; i < 1000; i++) {
            for (auto& x : a) x = fma(b, b, x);
            asm volatile("" : "+x"(b));
        }
        best = std::min(best, ticks() - t);
    }
    volatile float sink = 0;
    for (auto& x : a) sink = sink + x[0];
    return best / 12000;
}

struct Case {
    int heads, kv_heads, dk, dv;
    AttendShape shape;
    KvFormat kv;
    bool sinks = false, cached = true;
    int width() const { return heads * dk + kv_heads * (dk + dv) + heads * dv; }
};

// One sequence; its rows come in steps of the given sizes. Its blocks lie in the cache from the last to the first.
struct Runner {
    Case c;
    int64_t length;
    std::shared_ptr<Cache> cache;
    std::unique_ptr<Op> op;
    std::vector<int32_t> blocks, positions, starts;
    std::vector<double> least;  // ticks of each task of the second phase, the least of all steps
    Runner(Case k, int64_t n, int threads) : c(k), length(n) {
        if (c.cached) cache = std::make_shared<Cache>(c.kv, c.kv_heads, c.kv_heads * c.dk, c.kv_heads * c.dv);
        const int64_t n_blocks = (n + kBlock - 1) / kBlock;
        if (c.cached) cache->reserve(n_blocks + 7);
        for (int64_t b = 0; b < n_blocks; b++) blocks.push_back(static_cast<int32_t>(n_blocks - 1 - b));
        Value q{0, 0, 0, 0, c.width(), c.heads * c.dk}, kk{1, 0, 0, q.width, c.width(), c.kv_heads * c.dk};
        Value v{2, 0, 0, kk.column + kk.width, c.width(), c.kv_heads * c.dv}, y{3, 0, 0, v.column + v.width, c.width(), c.heads * c.dv};
        Floats sinks;
        if (c.sinks) {
            std::vector<float> s;
            for (int h = 0; h < c.heads; h++) s.push_back(0.3f * static_cast<float>(h) - 1);
            sinks = std::make_shared<const std::vector<float>>(s);
        }
        c.shape.heads = c.heads, c.shape.kv_heads = c.kv_heads;
        op = attend(q, kk, v, cache, c.shape, sinks, y, threads);
    }
    // rows [from, from + count) of `data` (the whole sequence), phase by phase, tasks in a mixed order
    double step(Rows& data, int64_t from, int64_t count, int threads, double* keep_s = nullptr) {
        Step s;
        positions.resize(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; i++) positions[static_cast<size_t>(i)] = static_cast<int32_t>(from + i);
        starts = {0, static_cast<int32_t>(count)};
        s.positions = positions.data(), s.starts = starts.data(), s.blocks = blocks.data();
        s.T = count, s.N = 1, s.B = static_cast<int64_t>(blocks.size()), s.R = 0;
        s.sequence.assign(static_cast<size_t>(count), 0);
        s.fresh_blocks = {0, static_cast<int32_t>((count + kBlock - 1) / kBlock)};
        s.arena[0] = data.data() + from * c.width(), s.rows[0] = count, s.threads = threads;
        op->begin(s);
        double t0 = now(), t1 = t0;
        for (int phase = 0; phase < op->phases(); phase++) {
            Work w = op->work(s, phase);
            if (phase == 1) least.resize(static_cast<size_t>(w.tasks), 1e30);
            for (int64_t i = 0; i < w.tasks; i++) {
                const double t = ticks();
                op->run(s, phase, i, i + 1, static_cast<int>(i % threads));
                if (phase == 1) least[static_cast<size_t>(i)] = std::min(least[static_cast<size_t>(i)], ticks() - t);
            }
            if (phase == 0) t1 = now();
        }
        if (keep_s) *keep_s = t1 - t0;
        return now() - t1;
    }
};

static Rows random_rows(const Case& c, int64_t n, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    Rows data(static_cast<size_t>(n * c.width()));
    for (float& x : data) x = normal(rng);
    return data;
}

static double error(const Case& c, const Rows& data, int64_t n) {
    double worst = 0;
    const int G = c.heads / c.kv_heads;
    for (int64_t t = 0; t < n; t += t < 40 || t > n - 20 ? 1 : 37)
        for (int h = 0; h < c.heads; h++) {
            const float* row = &data[static_cast<size_t>(t * c.width())];
            int64_t first = c.shape.window ? std::max<int64_t>(0, t - c.shape.window + 1) : 0, last = c.shape.causal ? t : n - 1;
            std::vector<double> s;
            double top = -1e30, total = 0;
            for (int64_t u = first; u <= last; u++) {
                const float* k = &data[static_cast<size_t>(u * c.width() + c.heads * c.dk + h / G * c.dk)];
                double x = 0;
                for (int i = 0; i < c.dk; i++) x += static_cast<double>(row[h * c.dk + i]) * k[i];
                x *= c.shape.scale;
                if (c.shape.softcap > 0) x = c.shape.softcap * std::tanh(x / c.shape.softcap);
                s.push_back(x), top = std::max(top, x);
            }
            double sink = 0.3 * h - 1;
            if (c.sinks) top = std::max(top, sink), total = std::exp(sink - top);
            for (double& x : s) x = std::exp(x - top), total += x;
            for (int i = 0; i < c.dv; i++) {
                double y = 0;
                for (int64_t u = first; u <= last; u++)
                    y += s[static_cast<size_t>(u - first)] * data[static_cast<size_t>(u * c.width() + c.heads * c.dk + c.kv_heads * c.dk + h / G * c.dv + i)];
                y /= total;
                double got = row[c.heads * c.dk + c.kv_heads * (c.dk + c.dv) + h * c.dv + i];
                double off = std::abs(got - y);
                worst = std::isnan(got) ? 1e9 : std::max(worst, off);
            }
        }
    return worst;
}

static int right() {
    int bad = 0;
    const Case cases[] = {
        {4, 2, 64, 64, {0, 0, 0.2f, 0, true, 0}, KvFormat::f32}, {1, 1, 32, 64, {0, 0, 0.2f, 0, true, 0}, KvFormat::f32},
        {3, 1, 64, 32, {0, 0, 0.2f, 0, true, 0}, KvFormat::f16}, {4, 1, 16, 24, {0, 0, 0.5f, 0, true, 0}, KvFormat::q8_0},
        {5, 1, 5, 11, {0, 0, 0.5f, 0, true, 0}, KvFormat::q8_0}, {8, 1, 40, 72, {0, 0, 0.3f, 100, true, 2}, KvFormat::q8_0, true},
        {4, 2, 64, 64, {0, 0, 0.2f, 700, true, 0}, KvFormat::f16}, {12, 2, 128, 128, {0, 0, 0.1f, 0, true, 0}, KvFormat::f32},
        {2, 1, 128, 128, {0, 0, 0.1f, 0, true, 0}, KvFormat::q8_0}, {9, 1, 16, 24, {0, 0, 0.5f, 1, true, 0}, KvFormat::f32},
        {6, 2, 16, 8, {0, 0, 0.5f, 33, true, 3}, KvFormat::f32, true}, {4, 4, 24, 40, {0, 0, 0.5f, 0, false, 0}, KvFormat::f32, false, false},
        {4, 2, 24, 40, {0, 0, 0.5f, 5, false, 0}, KvFormat::f32, false, false}};
    for (const Case& c : cases) {
        const int64_t n = 1300;
        Rows whole = random_rows(c, n, 1), first = whole;
        Runner a(c, n, 1);
        a.step(whole, 0, n, 1);
        double off = error(c, whole, n);
        bool same = true;
        for (int way = 0; way < (c.cached ? 4 : 1); way++) {
            Rows again = first;
            const int threads = way % 2 ? 1 : 9;
            Runner b(c, n, threads);
            std::mt19937 rng(static_cast<unsigned>(way));
            for (int64_t at = 0; at < n;) {
                int64_t count = c.cached ? std::min<int64_t>(n - at, way == 0 ? 1 : 1 + rng() % (way == 1 ? 4 : way == 2 ? 90 : 700)) : n;
                b.step(again, at, count, threads);
                at += count;
            }
            same = same && std::memcmp(again.data(), whole.data(), whole.size() * 4) == 0;
        }
        std::printf("%2d/%d heads, d %d, %d, window %d, format %d: off by %.2g, %s\n", c.heads, c.kv_heads, c.dk, c.dv, c.shape.window,
                    static_cast<int>(c.kv), off, same ? "same bits" : "OTHER BITS");
        const double limit = c.kv == KvFormat::f32 ? 1e-5 : c.kv == KvFormat::f16 ? 5e-3 : 5e-2;
        bad += !same || !(off < limit);
    }
    std::puts(bad ? "WRONG" : "right");
    return bad;
}

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "right";
    if (what == "right") return right();
    const KvFormat kv = argc > 2 ? kv_format_from_name(argv[2]) : KvFormat::f16;
    const int heads = argc > 3 ? std::atoi(argv[3]) : 16, kv_heads = argc > 4 ? std::atoi(argv[4]) : 8, d = argc > 5 ? std::atoi(argv[5]) : 128;
    Case c{heads, kv_heads, d, d, {0, 0, 0.1f, 0, true, 0}, kv};
    if (what == "prefill") {
        const int64_t n = 2048;
        Rows data = random_rows(c, n, 1);
        Runner r(c, n, 1);
        double best = 1e9, keep = 1e9, k;
        for (int i = 0; i < 6; i++) best = std::min(best, r.step(data, 0, n, 1, &k)), keep = std::min(keep, k);
        const double macs = static_cast<double>(n) * (n + 1) / 2 * heads * 2 * d;
        double quiet = 0;
        for (double t : r.least) quiet += t;
        std::printf("prefill %ld: %.1f ms, %.1f G multiply-adds/s; undisturbed %.1f %% of the peak; written in %.1f ms\n", n, best * 1e3,
                    macs / best / 1e9, 100 * macs / 8 * peak() / quiet, keep * 1e3);
    } else {
        const int64_t n = 16384, layers = 2;
        std::vector<std::unique_ptr<Runner>> r;
        Rows data = random_rows(c, 64, 1);
        data.resize(static_cast<size_t>(n * c.width()), 0.1f);
        for (int64_t l = 0; l < layers; l++) {
            r.push_back(std::make_unique<Runner>(c, n, 1));
            std::memset(r.back()->cache->tile(0, 0), 0, static_cast<size_t>(n / kBlock * kv_heads * r.back()->cache->tile_bytes));
        }
        for (int64_t at : {4096, 16383}) {
            double best = 1e9;
            for (int i = 0; i < 5; i++) {
                double s = 0;
                for (auto& x : r) s += x->step(data, at, 1, 1);
                best = std::min(best, s);
            }
            const double bytes = static_cast<double>(at / kBlock * kv_heads * r[0]->cache->tile_bytes * layers);
            std::printf("decode after %ld: %.2f ms a layer, %.2f GB/s\n", at, best * 1e3 / layers, bytes / best / 1e9);
        }
    }
}
