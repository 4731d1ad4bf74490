// A compiled plan: ops in order over an arena of values, run as one step by all threads of a pool.
//
// An op is one or more phases; a phase is a number of tasks that any thread may take in any order, so a task's result may
// depend on nothing but its index and the batch. Between phases all threads meet. Phases too small to be worth a meeting
// are run by whichever thread came last to the one before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pool.h"

#ifndef KVASIR_ISA_NS
#error "KVASIR_ISA_NS names this build: avx2 or portable"
#endif

namespace kvasir {
inline namespace KVASIR_ISA_NS {

constexpr int kBlock = 16;    // tokens a cache block, as in kvasir/backends/base.py
constexpr int kBases = 4;     // where values live: rows T, rows R, rows N, and the caller's output

// A matrix in the arena: row r begins at base + offset * rows + r * stride + column (floats).
struct Value {
    int id = -1;
    int base = 0;
    int64_t offset = 0, column = 0, stride = 0, width = 0;
};

// What the engine hands down: kvasir/backends/base.py. Pointers are the caller's for the length of the step.
struct Batch {
    const int32_t *tokens, *positions, *starts, *blocks, *slots, *logit_rows;
    int64_t T, N, B, R;
    const int32_t* adapters = nullptr;  // null: no sequence has one
};

// Rows side by side whose sequences have one adapter.
struct Stretch {
    int32_t adapter;
    int64_t row, rows;
};

// A batch with what ops derive from it, and where the values of this step lie.
struct Step : Batch {
    std::vector<int32_t> sequence;      // [T]    the sequence of a row
    std::vector<int32_t> fresh_blocks;  // [N+1]  first block of a sequence in a cache that lives for this step
    std::vector<Stretch> adapted[kBases];  // of each kind of rows, in order; rows without an adapter are in none
    float* arena[kBases] = {};
    int64_t rows[kBases] = {};
    int threads = 1;

    float* at(const Value& v, int64_t row) const {
        return arena[v.base] + v.offset * rows[v.base] + row * v.stride + v.column;
    }
    int64_t count(const Value& v) const { return rows[v.base]; }
    bool begins(int64_t n) const { return positions[starts[n]] == 0; }
};

// `ns` is what one task costs on one thread, roughly: it decides how tasks are grouped, never what they give.
struct Work {
    int64_t tasks;
    double ns;
};

struct Span {
    const uint8_t* data = nullptr;
    size_t bytes = 0;
};

class Op {
   public:
    virtual ~Op() = default;
    virtual int phases() const { return 1; }
    // Whether the first phase has a task a row that reads, of values, nothing but that row: such phases may be joined.
    virtual bool by_rows() const { return false; }
    // The weights that tasks from `task` on read one after another, as far as they lie side by side: fetched ahead by threads
    // that wait. Of first phases only; nothing where it is not known before the step.
    virtual Span stream(int64_t task) const { return (void)task, Span{}; }
    virtual void begin(const Step&) {}  // before the step, on one thread: room for scratch
    virtual Work work(const Step& s, int phase) const = 0;
    virtual void run(const Step& s, int phase, int64_t begin, int64_t end, int thread) = 0;
};

// Memory that grows and is 64-byte aligned. Growing forgets what was there.
class Buffer {
   public:
    void reserve(size_t bytes);
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_.get());
    }
    size_t bytes() const { return bytes_; }

   private:
    std::shared_ptr<uint8_t> data_;
    size_t bytes_ = 0;
};

// `bytes` zeros, 64-byte aligned; pages are not touched before they are used.
std::shared_ptr<uint8_t> zeros(size_t bytes);

struct Limits {
    int64_t n_blocks, n_slots, vocab, context;  // vocab, context: rows of the tables that tokens and positions index; 0: none
    bool paged, slots;                          // whether the plan has such states
    int64_t window;                             // rows further back are never read; 0: all are
};

class Run;  // a step under way

class Program {
   public:
    Program(std::shared_ptr<Pool> pool, std::vector<int64_t> widths, int output_rows, Limits limits);
    ~Program();

    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    void add(std::unique_ptr<Op> op);
    size_t size() const { return ops_.size(); }

    // What is wrong with a batch, or "".
    std::string fault(const Batch& b) const;

    // Runs the list. `output` holds [rows of output_rows, width]. `seen(i)` is called after op i with all threads at rest,
    // if given. Rethrows what an op threw.
    void step(const Batch& b, float* output, const std::function<void(const Step&, int)>& seen = {});

    // The same in pieces: `begin` makes ready, and forgets a step that was begun before; `go_on` runs for as many ops as should fit
    // into `seconds` by what others took, one at least, and says whether that was the last. Until then what `b` and `output` point
    // at must stay. After a throw the step is over.
    void begin(const Batch& b, float* output);
    bool go_on(double seconds);

    bool timed = false;           // take the time of each op
    std::vector<double> seconds;  // of each op in the last step, if it was timed
    bool poison = false;  // fill the arena with NaN before each step: an op that reads what nobody wrote shows

    Pool& pool() { return *pool_; }

   private:
    void prepare(const Batch& b, float* output);
    void find_adapted();

    std::shared_ptr<Pool> pool_;
    std::vector<int64_t> widths_;  // floats a row in the arenas of T, R and N
    int output_rows_;
    Limits limits_;
    static constexpr size_t kNone = ~size_t{0};
    std::vector<std::unique_ptr<Op>> ops_;
    std::vector<size_t> next_stream_;  // for each op the next one that has a stream
    Buffer arena_[3];
    Step now_;
    std::unique_ptr<Run> run_;  // what `begin` began
};

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
