#include "pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

Pool::Pool(int threads) { start(threads); }

Pool::~Pool() { stop(); }

void Pool::start(int threads) {
    ending_ = false;
    try {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i, seen = job_.load()]() mutable {
            while (true) {
                await_change(job_, seen, kSpinsBetween, relax);
                seen++;
                if (ending_) return;
                work(i);
            }
        });
    } catch (const std::system_error&) {
        size_t started = workers_.size() + 1;
        stop();
        throw std::runtime_error("the system refused thread " + std::to_string(started + 1) + " of " + std::to_string(threads));
    }
    threads_ = std::max(threads, 1);
}

void Pool::stop() {
    ending_ = true;
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
    for (auto& w : workers_) w.join();
    workers_.clear();
    threads_ = 1;
}

void Pool::resize(int threads) {
    std::lock_guard<std::mutex> lock(one_job_);
    if (std::max(threads, 1) == threads_) return;
    stop();
    start(threads);
}

void Pool::work(int thread) {
    (*body_)(thread);
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_all();
}

void Pool::run(const std::function<void(int)>& body) {
    std::lock_guard<std::mutex> lock(one_job_);
    body_ = &body;
    unfinished_.store(static_cast<uint32_t>(threads_ - 1), std::memory_order_relaxed);
    if (threads_ > 1) {
        job_.fetch_add(1, std::memory_order_release);
        job_.notify_all();
    }
    body(0);
    for (uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) > 0;)
        await_change(unfinished_, left, kSpinsInStep, relax);
    body_ = nullptr;
}

void Pool::split(int64_t tasks, int64_t grain, const std::function<void(int64_t, int64_t, int)>& body) {
    std::atomic<int64_t> next{0};
    run([&](int thread) {
        for (int64_t i; (i = next.fetch_add(grain)) < tasks;) body(i, std::min(i + grain, tasks), thread);
    });
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
