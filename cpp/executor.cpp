#include "executor.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

constexpr double kAlone = 4000;  // ns: a phase cheaper than this is not worth waking anyone
// ns: a step cheaper than this stays on the caller's thread. Two threads would save a part of it on an idle machine,
// and lose a scheduler's slice at every barrier on one where something else holds a core.
constexpr double kStepAlone = 1.5e6;
constexpr double kGrab = 3000;       // ns: the least that is taken at a time
constexpr size_t kAhead = 192 << 10;  // bytes a waiting thread fetches of what it will read next: they fit its second cache

// A thread's share of a phase: the tasks [begin, end) that nobody has taken. Its owner takes from the front, so that it reads
// memory in one stream; who has nothing left takes from the back.
class Share {
   public:
    void deal(int64_t begin, int64_t end) { range_.store(pack(begin, end), std::memory_order_relaxed); }

    // A third of what is left, at least `least`. False when nothing is left.
    bool take(int64_t least, bool front, int64_t& from, int64_t& to) {
        uint64_t now = range_.load(std::memory_order_relaxed);
        while (true) {
            auto begin = static_cast<int64_t>(now >> 32), end = static_cast<int64_t>(now & 0xffffffffu);
            if (begin >= end) return false;
            int64_t n = std::min(end - begin, std::max(least, (end - begin) / 3));
            from = front ? begin : end - n, to = from + n;
            if (range_.compare_exchange_weak(now, front ? pack(to, end) : pack(begin, from), std::memory_order_relaxed)) return true;
        }
    }

   private:
    static uint64_t pack(int64_t begin, int64_t end) { return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end); }
    alignas(64) std::atomic<uint64_t> range_{0};
};

}  // namespace

// One step in the hands of all threads: which phase they are in, and which of its tasks are still free. It may rest between two
// ops and go on later.
class Run {
   public:
    Run(std::vector<std::unique_ptr<Op>>& ops, const std::vector<size_t>& next_stream, const Step& step, Pool& pool, double* seconds,
        std::function<void(const Step&, int)> seen)
        : ops_(ops), next_stream_(next_stream), step_(step), pool_(pool), seconds_(seconds), seen_(seen),
          shares_(static_cast<size_t>(pool.threads())), fetched_(static_cast<size_t>(pool.threads())) {}

    using Clock = std::chrono::steady_clock;
    static constexpr Clock::time_point kNever = Clock::time_point::max();

    // Runs until the list ends, or, once an op or more are done, until the next would end behind `until`. Whether the list has
    // ended.
    bool go_on(Clock::time_point until) {
        until_ = until, rests_ = false;
        if (op_ == 0) alone_ = pool_.threads() == 1 || cost() < kStepAlone;
        last_ = Clock::now();
        advance();
        if (goes_on()) pool_.run([this](int thread) { work(thread); });
        if (failure_) std::rethrow_exception(failure_);
        return op_ == ops_.size();
    }

   private:
    bool goes_on() const { return op_ < ops_.size() && !rests_; }

    void work(int thread) {
        const int n = pool_.threads();
        int64_t from, to;
        while (goes_on()) {
            for (int other = 0; other < n; other++)
                while (shares_[static_cast<size_t>((thread + other) % n)].take(least_, other == 0, from, to))
                    attempt([&] { ops_[op_]->run(step_, phase_, from, to, thread); });
            size_t coming = op_ < ops_.size() ? next_stream_[op_] : ops_.size();
            pool_.barrier(
                [&] {
                    leave();
                    advance();
                },
                [&] { fetch(coming, thread); });
        }
    }

    // Asks memory for a little of what this thread's share of op `coming` begins with, and a little more at each call.
    void fetch(size_t coming, int thread) {
        relax();
        if (coming >= ops_.size()) return;
        Fetched& mine = fetched_[static_cast<size_t>(thread)];
        if (mine.op != coming) {
            int64_t tasks = ops_[coming]->work(step_, 0).tasks;
            Span all = tasks ? ops_[coming]->stream(begin_of(tasks, thread)) : Span{};
            mine = {coming, all.data, all.data + std::min(all.bytes, kAhead)};
        }
        for (int i = 0; i < 4 && mine.at < mine.end; i++, mine.at += 64) __builtin_prefetch(mine.at, 0, 2);
    }

    int64_t begin_of(int64_t tasks, int thread) const { return tasks * thread / pool_.threads(); }

    // What the step costs on one thread, roughly, in ns.
    double cost() const {
        double ns = 0;
        for (size_t op = 0; op < ops_.size(); op++) ns += cost(op);
        return ns;
    }
    double cost(size_t op) const {
        double ns = 0;
        for (int phase = 0; phase < ops_[op]->phases(); phase++) {
            Work w = ops_[op]->work(step_, phase);
            ns += static_cast<double>(w.tasks) * w.ns;
        }
        return ns;
    }

    // How long an op of the same cost took last: mostly the same op of the layer before. Zero where none has run.
    Clock::duration& took(size_t op) {
        const double ns = cost(op);
        for (auto& [cost, time] : took_)
            if (cost == ns) return time;
        return took_.emplace_back(ns, Clock::duration::zero()).second;
    }

    // To the next phase that all threads should share, running the small ones on the way. One thread only.
    void advance() {
        for (; goes_on(); leave()) {
            Work w = ops_[op_]->work(step_, phase_);
            bool alone = alone_ || w.tasks == 1 || static_cast<double>(w.tasks) * w.ns < kAlone;
            if (!alone) {
                least_ = std::max<int64_t>(1, static_cast<int64_t>(kGrab / w.ns));
                for (int i = 0; i < pool_.threads(); i++)
                    shares_[static_cast<size_t>(i)].deal(begin_of(w.tasks, i), begin_of(w.tasks, i + 1));
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
            if (seconds_ || until_ != kNever) {
                auto now = Clock::now();
                if (seconds_) seconds_[op_] = std::chrono::duration<double>(now - last_).count();
                if (until_ != kNever) {
                    took(op_) = now - last_;
                    rests_ = op_ + 1 < ops_.size() && now + took(op_ + 1) > until_;
                }
                last_ = now;
            }
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

    struct alignas(64) Fetched {
        size_t op = ~size_t{0};
        const uint8_t *at = nullptr, *end = nullptr;
    };

    std::vector<std::unique_ptr<Op>>& ops_;
    const std::vector<size_t>& next_stream_;
    const Step& step_;
    Pool& pool_;
    double* seconds_;
    std::function<void(const Step&, int)> seen_;
    bool alone_ = false, rests_ = false;
    Clock::time_point until_ = kNever;
    std::vector<std::pair<double, Clock::duration>> took_;
    size_t op_ = 0;
    int phase_ = 0;
    int64_t least_ = 1;
    std::vector<Share> shares_;
    std::vector<Fetched> fetched_;
    Clock::time_point last_;
    std::mutex failing_;
    std::exception_ptr failure_;
};

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

Program::~Program() = default;

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
        if (b.adapters && b.adapters[n] < -1) return name("adapters", n, b.adapters[n]);
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
    find_adapted();
    for (auto& op : ops_) op->begin(now_);
}

void Program::find_adapted() {
    for (auto& stretches : now_.adapted) stretches.clear();
    if (!now_.adapters) return;
    auto put = [this](int base, int64_t row, int32_t n) {
        auto& all = now_.adapted[base];
        const int32_t adapter = now_.adapters[n];
        if (adapter < 0) return;
        if (!all.empty() && all.back().adapter == adapter && all.back().row + all.back().rows == row) {
            all.back().rows++;
        } else {
            all.push_back({adapter, row, 1});
        }
    };
    for (int64_t t = 0; t < now_.T; t++) put(0, t, now_.sequence[static_cast<size_t>(t)]);
    for (int64_t r = 0; r < now_.R; r++) put(1, r, now_.sequence[static_cast<size_t>(now_.logit_rows[r])]);
    for (int64_t n = 0; n < now_.N; n++) put(2, n, static_cast<int32_t>(n));
    now_.adapted[3] = now_.adapted[output_rows_];
}

void Program::add(std::unique_ptr<Op> op) {
    if (op->stream(0).bytes)
        for (size_t i = next_stream_.size(); i-- > 0 && next_stream_[i] == kNone;) next_stream_[i] = ops_.size();
    ops_.push_back(std::move(op));
    next_stream_.push_back(kNone);
}

void Program::step(const Batch& b, float* output, const std::function<void(const Step&, int)>& seen) {
    prepare(b, output);
    seconds.assign(timed ? ops_.size() : 0, 0.0);
    Run(ops_, next_stream_, now_, *pool_, timed ? seconds.data() : nullptr, seen).go_on(Run::kNever);
}

void Program::begin(const Batch& b, float* output) {
    prepare(b, output);
    run_ = std::make_unique<Run>(ops_, next_stream_, now_, *pool_, nullptr, nullptr);
}

bool Program::go_on(double seconds) {
    if (!run_) throw std::runtime_error("no step is under way");
    if (now_.threads != pool_->threads()) throw std::runtime_error("the threads have changed in the middle of a step");
    using std::chrono::duration, std::chrono::duration_cast;
    const bool at_once = !(seconds < 1e6);
    const auto rest = duration_cast<Run::Clock::duration>(duration<double>(at_once ? 0 : std::max(seconds, 0.0)));
    try {
        const bool ended = run_->go_on(at_once ? Run::kNever : Run::Clock::now() + rest);
        if (ended) run_.reset();
        return ended;
    } catch (...) {
        run_.reset();
        throw;
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
