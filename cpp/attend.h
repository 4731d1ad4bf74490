// Attention over a paged cache.
//
// y[t, h] = sum_u softmax_u(scale q[t, h] . k[u, h / G]) v[u, h / G]     G = H / K query heads share a kv head
//
// Layout of a cache: cpp/attend_cache.h. What is computed on a chunk of it: cpp/attend_tile.h.
// Law: keys and values are written first and read back, so a row sees the same numbers whether a neighbour came in this step
// or before. A row's past is cut at multiples of 512 tokens into parts and these into chunks of 64. Each part has a softmax of
// its own, chunk by chunk; the parts are joined in order. So the order of a row's sums depends on its position alone, and the
// parts of a long past may be read by several threads.
// Tests: tests/kernels/test_attend.py
#pragma once

#include <memory>
#include <vector>

#include "attend_cache.h"
#include "executor.h"
#include "ops.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

struct AttendShape {
    int heads, kv_heads;
    float scale;
    int window;  // 0: all
    bool causal;
    float softcap;  // 0: none
};

// `cache` null: an encoder's attention, over the rows of this step alone.
std::unique_ptr<Op> attend(Value q, Value k, Value v, std::shared_ptr<Cache> cache, AttendShape shape, Floats sinks, Value out,
                           int threads);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
