// Attention over a paged cache.
//
// y[t, h] = sum_u softmax_u(scale q[t, h] . k[u, h / G]) v[u, h / G]     G = H / K query heads share a kv head
//
// Layout of a cache: [n_blocks][K] tiles of 16 tokens: keys turned, [d][16], so that lanes are tokens and no sum runs across
// lanes; then values, [16][dv], so that lanes are columns. float16 or float32.
// Law: keys and values are written first and read back, so a row sees the same numbers whether a neighbour came in this step
// or before. A row walks the blocks of its own past in order with an online softmax, one block at a time, from the block of
// its oldest visible position: the order of its sums depends on its position alone.
// Tests: tests/kernels/test_attend.py
#pragma once

#include <memory>
#include <vector>

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

class Cache {
   public:
    Cache(bool half, int kv_heads, int64_t k_width, int64_t v_width);

    void reserve(int64_t n_blocks);  // forgets what was there when it grows
    uint8_t* tile(int64_t block, int head) const { return data_.as<uint8_t>() + (block * kv_heads + head) * tile_bytes; }

    const bool half;
    const int kv_heads;
    const int64_t k_dim, v_dim, v_stride;  // v_stride: v_dim rounded up to whole vectors; the rest stays zero
    const int64_t element, tile_bytes;

   private:
    Buffer data_;
};

// `cache` null: an encoder's attention, over the rows of this step alone.
std::unique_ptr<Op> attend(Value q, Value k, Value v, std::shared_ptr<Cache> cache, AttendShape shape, Floats sinks, Value out,
                           int threads);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
