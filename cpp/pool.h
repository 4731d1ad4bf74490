// The threads of a backend: awake from the first op of a step to the last. They spin for a moment and then park.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Counters that go round: unsigned, so that wrapping is defined. 2^32 barriers are days of decoding.
using Count = std::atomic<uint32_t>;

// Waits until `word` is no longer `old`: spins `spins` times with a call of `idle` each, then sleeps in the kernel.
template <class F>
inline void await_change(const Count& word, uint32_t old, int spins, F&& idle) {
    for (int i = 0; i < spins; i++) {
        if (word.load(std::memory_order_acquire) != old) return;
        idle();
    }
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

class Pool {
   public:
    explicit Pool(int threads);  // throws std::runtime_error when the system refuses a thread
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }
    // Ends the old threads and starts new ones; waits for a running job. Left with one thread if the system refuses more.
    void resize(int threads);

    // Calls body(thread) once on every thread, the caller being thread 0; returns when all are done. One job at a time:
    // a second caller waits. `body` must not throw.
    void run(const std::function<void(int)>& body);

    // Splits [0, tasks) into grabs of `grain` that idle threads take: body(begin, end, thread).
    void split(int64_t tasks, int64_t grain, const std::function<void(int64_t, int64_t, int)>& body);

    // Inside a job: waits for all threads. The last to arrive runs `alone` before the others go on; they call `idle` while
    // they wait, again and again.
    template <class F, class G>
    void barrier(F&& alone, G&& idle) {
        uint32_t now = generation_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            alone();
            generation_.store(now + 1, std::memory_order_release);
            generation_.notify_all();
        } else {
            await_change(generation_, now, kSpinsInStep, idle);
        }
    }

   private:
    static constexpr int kSpinsInStep = 4000;      // about 50 us: longer than any fair wait in a decode step
    static constexpr int kSpinsBetween = 20000;    // about 250 us: the engine's work between two steps

    void start(int threads);
    void stop();
    void work(int thread);

    std::mutex one_job_;
    int threads_ = 1;
    std::vector<std::thread> workers_;
    const std::function<void(int)>* body_ = nullptr;
    alignas(64) Count job_{0};
    alignas(64) Count unfinished_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) Count generation_{0};
    bool ending_ = false;
};

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
