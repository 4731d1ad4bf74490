// The most multiply-adds a second that this machine's cores do: what a product could reach if nothing else cost time.
#include "peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "pool.h"
#include "simd.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using namespace simd;

constexpr int kSums = 8, kRounds = 1 << 21;  // enough sums that none waits for its last addition; some 10 ms

// The compiler must not see that `v` is what it was, or it would multiply once and for all.
template <class T> inline void changed(T& v) {
#ifdef KVASIR_AVX2
    asm volatile("" : "+x"(v));
#else
    asm volatile("" : "+m"(v));
#endif
}

int byte_products(int rounds) {
    const uint8_t ones[32] = {1};
    Bytes x = load_bytes(ones);
    const Bytes u = x;
    Shorts sums[kSums];
    for (Shorts& s : sums) s = zero_shorts();
    for (int i = 0; i < rounds; i++)
        for (Shorts& s : sums) {
            changed(x);
            s = add_shorts(s, dot_bytes(u, x));
            changed(s);
        }
    Shorts total = zero_shorts();
    for (const Shorts& s : sums) total = add_shorts(total, s);
    int first;
    std::memcpy(&first, &total, sizeof first);
    return first;
}

int float_products(int rounds) {
    Floats x = all(1.0f), sums[kSums];
    for (Floats& s : sums) s = zero_floats();
    for (int i = 0; i < rounds; i++)
        for (Floats& s : sums) {
            s = fma(x, x, s);
            changed(s);
        }
    Floats total = zero_floats();
    for (const Floats& s : sums) total = add(total, s);
    float lanes[8];
    store(lanes, total);
    return static_cast<int>(lanes[0]);
}

}  // namespace

double peak(bool bytes, int threads) {
    Pool pool(threads);
    std::atomic<int> sink{0};
    double best = 0;
    for (int sweep = 0; sweep < 20; sweep++) {
        auto begin = std::chrono::steady_clock::now();
        pool.split(threads, 1, [&](int64_t i, int64_t end, int) {
            for (; i < end; i++) sink.fetch_add(bytes ? byte_products(kRounds) : float_products(kRounds), std::memory_order_relaxed);
        });
        std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        best = std::max(best, 1.0 * threads * kRounds * kSums * (bytes ? 32 : 8) / took.count());
    }
    return best;
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
