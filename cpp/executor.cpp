#include "executor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr double kAlone = 4000;  // ns: a phase cheaper than this is not worth waking anyone
// ns: a step cheaper than this stays on the caller's thread. Two threads would save a part of it on an idle machine,
// and lose a scheduler's slice at every barrier on one where something else holds a core.
constexpr double kStepAlone = 1.5e6;
constexpr int kGrabsAThread = 6;  // tasks are taken in this many portions, so that a slow core holds nobody up

// One step in the hands of all threads: which phase they are in, and which of its tasks are still free.
class Run {
   public:
    Run(std::vector<std::unique_ptr<Op>>& ops, const Step& step, Pool& pool, const std::function<void(const Step&, int)>& seen)
        : ops_(ops), step_(step), pool_(pool), seen_(seen) {}

    void operator()() {
        alone_ = pool_.threads() == 1 || cost() < kStepAlone;
        advance();
        if (op_ < ops_.size()) pool_.run([this](int thread) { work(thread); });
        if (failure_) std::rethrow_exception(failure_);
    }

   private:
    void work(int thread) {
        while (op_ < ops_.size()) {
            for (int64_t i; (i = next_.fetch_add(grain_, std::memory_order_relaxed)) < tasks_;)
                attempt([&] { ops_[op_]->run(step_, phase_, i, std::min(i + grain_, tasks_), thread); });
            pool_.barrier([&] {
                leave();
                advance();
            });
        }
    }

    // What the step costs on one thread, roughly, in ns.
    double cost() const {
        double ns = 0;
        for (const auto& op : ops_)
            for (int phase = 0; phase < op->phases(); phase++) {
                Work w = op->work(step_, phase);
                ns += static_cast<double>(w.tasks) * w.ns;
            }
        return ns;
    }

    // To the next phase that all threads should share, running the small ones on the way. One thread only.
    void advance() {
        for (; op_ < ops_.size(); leave()) {
            Work w = ops_[op_]->work(step_, phase_);
            bool alone = alone_ || static_cast<double>(w.tasks) * w.ns < kAlone;
            if (!alone) {
                tasks_ = w.tasks;
                grain_ = std::max<int64_t>(1, w.tasks / (kGrabsAThread * pool_.threads()));
                next_.store(0, std::memory_order_relaxed);
                return;
            }
            if (w.tasks > 0) attempt([&] { ops_[op_]->run(step_, phase_, 0, w.tasks, 0); });
        }
    }

    void leave() {
        if (failure_) {
            op_ = ops_.size();
        } else if (++phase_ >= ops_[op_]->phases()) {
            if (seen_) attempt([&] { seen_(step_, static_cast<int>(op_)); });
            op_++, phase_ = 0;
        }
    }

    template <class F>
    void attempt(F&& f) {
        try {
            f();
        } catch (...) {
            std::lock_guard<std::mutex> lock(failing_);
            if (!failure_) failure_ = std::current_exception();
        }
    }

    std::vector<std::unique_ptr<Op>>& ops_;
    const Step& step_;
    Pool& pool_;
    const std::function<void(const Step&, int)>& seen_;
    bool alone_ = false;
    size_t op_ = 0;
    int phase_ = 0;
    int64_t tasks_ = 0, grain_ = 1;
    alignas(64) std::atomic<int64_t> next_{0};
    std::mutex failing_;
    std::exception_ptr failure_;
};

}  // namespace

std::shared_ptr<uint8_t> zeros(size_t bytes) {
    void* raw = std::calloc(bytes + 64, 1);
    if (!raw) throw std::bad_alloc();
    auto* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 63) & ~uintptr_t{63});
    return std::shared_ptr<uint8_t>(aligned, [raw](uint8_t*) { std::free(raw); });
}

void Buffer::reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    data_.reset();
    data_ = zeros(bytes);
    bytes_ = bytes;
}

Program::Program(std::shared_ptr<Pool> pool, std::vector<int64_t> widths, int output_rows, Limits limits)
    : pool_(std::move(pool)), widths_(std::move(widths)), output_rows_(output_rows), limits_(limits) {}

std::string Program::fault(const Batch& b) const {
    auto name = [](const char* what, int64_t i, int64_t value) {
        return std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(value);
    };
    if (b.T < 1 || b.N < 1) return "the batch is empty";
    if (b.starts[0] != 0 || b.starts[b.N] != b.T) return "starts do not run from 0 to T";
    for (int64_t n = 0; n < b.N; n++)
        if (b.starts[n + 1] <= b.starts[n] || b.starts[n + 1] > b.T) return "starts do not rise: sequence " + std::to_string(n);
    for (int64_t t = 0; t < b.T; t++) {
        if (limits_.vocab && (b.tokens[t] < 0 || b.tokens[t] >= limits_.vocab)) return name("tokens", t, b.tokens[t]);
        if (b.positions[t] < 0 || (limits_.context && b.positions[t] >= limits_.context))
            return name("positions", t, b.positions[t]);
    }
    for (int64_t r = 0; r < b.R; r++)
        if (b.logit_rows[r] < 0 || b.logit_rows[r] >= b.T) return name("logit_rows", r, b.logit_rows[r]);
    std::vector<int32_t> written, slots;
    for (int64_t n = 0; n < b.N; n++) {
        int64_t first = b.starts[n], last = b.starts[n + 1] - 1;
        for (int64_t t = first; t < last; t++)
            if (b.positions[t + 1] != b.positions[t] + 1) return name("positions", t + 1, b.positions[t + 1]) + ", a gap";
        if (limits_.paged) {
            int64_t oldest = limits_.window ? std::max<int64_t>(0, b.positions[first] - limits_.window + 1) : 0;
            if (b.positions[last] / kBlock >= b.B) return "sequence " + std::to_string(n) + " has too few blocks";
            for (int64_t i = oldest / kBlock; i <= b.positions[last] / kBlock; i++) {
                int32_t block = b.blocks[n * b.B + i];
                if (block < 0 || block >= limits_.n_blocks) return name("blocks", n * b.B + i, block);
                if (i >= b.positions[first] / kBlock) written.push_back(block);
            }
        }
        if (limits_.slots) {
            if (b.slots[n] < 0 || b.slots[n] >= limits_.n_slots) return name("slots", n, b.slots[n]);
            slots.push_back(b.slots[n]);
        }
    }
    for (auto* ids : {&written, &slots}) {
        std::sort(ids->begin(), ids->end());
        if (std::adjacent_find(ids->begin(), ids->end()) != ids->end())
            return ids == &written ? "two sequences write one block" : "two sequences share a slot";
    }
    return "";
}

void Program::prepare(const Batch& b, float* output) {
    static_cast<Batch&>(now_) = b;
    now_.threads = pool_->threads();
    now_.sequence.resize(static_cast<size_t>(b.T));
    now_.fresh_blocks.assign(static_cast<size_t>(b.N) + 1, 0);
    for (int32_t n = 0; n < b.N; n++) {
        int32_t first = b.starts[n], stop = b.starts[n + 1];
        std::fill(now_.sequence.begin() + first, now_.sequence.begin() + stop, n);
        auto at = static_cast<size_t>(n);
        now_.fresh_blocks[at + 1] = now_.fresh_blocks[at] + (stop - first + kBlock - 1) / kBlock;
    }
    const int64_t rows[3] = {b.T, b.R, b.N};
    for (int i = 0; i < 3; i++) {
        size_t bytes = static_cast<size_t>(widths_[static_cast<size_t>(i)] * rows[i]) * sizeof(float);
        if (bytes > arena_[i].bytes()) arena_[i].reserve(bytes + bytes / 4);
        now_.arena[i] = arena_[i].as<float>();
        now_.rows[i] = rows[i];
        if (poison && bytes) std::memset(arena_[i].as<uint8_t>(), 0xff, bytes);
    }
    now_.arena[3] = output;
    now_.rows[3] = rows[output_rows_];
    for (auto& op : ops_) op->begin(now_);
}

void Program::step(const Batch& b, float* output, const std::function<void(const Step&, int)>& seen) {
    prepare(b, output);
    Run(ops_, now_, *pool_, seen)();
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
