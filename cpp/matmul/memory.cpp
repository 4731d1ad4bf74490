// Memory for packed weights. Matrices are cut one after another from regions of large pages: a kernel that streams weights
// otherwise spends a tenth to a quarter of its time on misses of the address cache (lab/matmul_v1.cpp, SMALL=1), and most
// matrices of a small model are smaller than one large page.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)  // each matrix of its own where a sanitizer watches
#define KVASIR_REGIONS 1
#include <sys/mman.h>
#endif

#include "matmul.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

constexpr size_t kLargePage = 2u << 20, kRegion = 64u << 20;

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

std::shared_ptr<uint8_t> reserve(size_t bytes) {
#ifdef KVASIR_REGIONS
    const size_t room = bytes + kLargePage;  // pages that nobody touches cost nothing
    void* p = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    auto* at = reinterpret_cast<uint8_t*>(rounded(reinterpret_cast<uintptr_t>(p), kLargePage));
    madvise(at, bytes, MADV_HUGEPAGE);
    return std::shared_ptr<uint8_t>(at, [p, room](uint8_t*) { munmap(p, room); });
#else
    void* p = nullptr;
    if (posix_memalign(&p, 64, bytes) != 0) throw std::bad_alloc();
    return std::shared_ptr<uint8_t>(static_cast<uint8_t*>(p), [](uint8_t* q) { std::free(q); });
#endif
}

#ifdef KVASIR_REGIONS
std::mutex cutting;
std::weak_ptr<uint8_t> open_data;  // the region that is being cut; it lives as long as a matrix in it does
size_t open_bytes = 0, open_used = 0;
#endif

}  // namespace

std::shared_ptr<uint8_t> weight_memory(size_t bytes) {
    bytes = rounded(std::max<size_t>(bytes, 1), 64);
#ifdef KVASIR_REGIONS
    const std::lock_guard<std::mutex> lock(cutting);
    std::shared_ptr<uint8_t> region = open_data.lock();
    if (!region || open_used + bytes > open_bytes) {
        const size_t fresh = rounded(std::max(bytes, kRegion), kLargePage);
        region = reserve(fresh);
        open_data = region, open_bytes = fresh, open_used = 0;  // what was left of the last one was never touched
    }
    uint8_t* at = region.get() + open_used;
    open_used += bytes;
    return std::shared_ptr<uint8_t>(region, at);
#else
    return reserve(bytes);
#endif
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
