// The most multiply-adds a second that this machine's cores do: what a product could reach if nothing else cost time.
#include "peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "matmul/pair.h"
#include "pool.h"
#include "simd.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

using namespace simd;

constexpr int kSums = 8, kRounds = 1 << 21;  // enough sums that none waits for its last addition; some 10 ms
#ifdef KVASIR_FOURS
constexpr int kByteSums = KVASIR_FOURS == 512 ? 12 : 6, kBytes = 64;  // without the tiles of AMX
#else
constexpr int kByteSums = kSums, kBytes = 32;
#endif

// The compiler must not see that `v` is what it was, or it would multiply once and for all.
template <class T> inline void changed(T& v) {
#if defined(KVASIR_FOURS) && KVASIR_FOURS == 512
    asm volatile("" : "+v"(v));
#elif defined(KVASIR_AVX2)
    asm volatile("" : "+x"(v));
#else
    asm volatile("" : "+m"(v));
#endif
}

#ifdef KVASIR_FOURS

#if KVASIR_FOURS == 256
inline void changed(Pair& v) { changed(v.of[0]), changed(v.of[1]); }
#endif

int byte_products(int rounds) {
    alignas(64) const uint8_t ones[64] = {1};
    Pair x = load_pair(ones), sums[kByteSums];
    const Pair u = x;
    for (Pair& s : sums) s = pair_of_shorts(0);
    for (int i = 0; i < rounds; i++)
        for (Pair& s : sums) {
            changed(x);
            s = dot4(s, u, x);
            changed(s);
        }
    Pair total = pair_of_shorts(0);
    for (const Pair& s : sums) total = add_ints(total, s);
    int first;
    std::memcpy(&first, &total, sizeof first);
    return first;
}

#else

int byte_products(int rounds) {
    const uint8_t ones[32] = {1};
    Bytes x = load_bytes(ones);
    const Bytes u = x;
    Shorts sums[kByteSums];
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

#endif

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
        best = std::max(best, 1.0 * threads * kRounds * (bytes ? kByteSums * kBytes : kSums * 8) / took.count());
    }
    return best;
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
