// Threads that share one phase of work after another. Knows nothing of models.
//
// Each thread has a range of the phase's items and takes from the others' when it is done, because
// the server shares the cores and may hold any of them up. Between phases threads spin for some tens
// of microseconds, then sleep.
#pragma once
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace naiad {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
   public:
    // threads: the caller included.
    explicit Pool(int threads) : ranges_(new Range[size_t(threads)]), threads_(threads) {
        cpu_set_t allowed;
        CPU_ZERO(&allowed);
        if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
            for (int c = 0; c < CPU_SETSIZE; c++)
                if (CPU_ISSET(c, &allowed)) cpus_.push_back(c);
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        stop_ = true;
        start(nullptr, nullptr, 0);
        for (auto& worker : workers_) worker.join();
    }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Calls body(item, thread) for each item.
    template <class Body>
    void run(int items, Body&& body) {
        if (items <= 1 || threads_ == 1) {
            for (int i = 0; i < items; i++) body(i, 0);
            return;
        }
        start([](void* b, int item, int thread) { (*static_cast<std::remove_reference_t<Body>*>(b))(item, thread); },
              &body, items);
        take(0);
        finish();
    }

    // While it lives, the caller stays on the first core: two threads on one core would wait for
    // each other at each phase. Its own cores come back at the end, because threads that others
    // start inherit them.
    class Pinned {
       public:
        explicit Pinned(const Pool& pool) {
            if (pool.threads_ < 2 || int(pool.cpus_.size()) < pool.threads_) return;
            if (sched_getaffinity(0, sizeof before_, &before_) == 0) held_ = pin(pool.cpus_[0]);
        }
        ~Pinned() {
            if (held_) sched_setaffinity(0, sizeof before_, &before_);
        }

       private:
        cpu_set_t before_;
        bool held_ = false;
    };

   private:
    struct alignas(64) Range {
        std::atomic<int> next{0};
        int end = 0;
    };
    using Call = void (*)(void*, int, int);

    static bool pin(int cpu) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        return sched_setaffinity(0, sizeof one, &one) == 0;
    }
    static void wait(std::atomic<uint32_t>& word, uint32_t value) {
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    }
    static void wake(std::atomic<uint32_t>& word) {
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
    }

    void start(Call call, void* body, int items) {
        call_ = call;
        body_ = body;
        for (int i = 0; i < threads_; i++) {
            ranges_[i].end = int(int64_t(items) * (i + 1) / threads_);
            ranges_[i].next.store(int(int64_t(items) * i / threads_), std::memory_order_relaxed);
        }
        busy_.store(uint32_t(threads_ - 1), std::memory_order_relaxed);
        phase_.fetch_add(1);
        if (sleepers_.load()) wake(phase_);
    }
    void finish() {
        for (int spins = 0; busy_.load(std::memory_order_acquire);) {
            if (++spins < SPINS) {
                relax();
                continue;
            }
            // Somebody else has that worker's core.
            caller_sleeps_.store(1);
            if (uint32_t left = busy_.load()) wait(busy_, left);
            caller_sleeps_.store(0);
        }
    }
    void take(int thread) {
        for (int i = 0; i < threads_; i++) {
            Range& range = ranges_[(thread + i) % threads_];
            for (;;) {
                int item = range.next.fetch_add(1, std::memory_order_relaxed);
                if (item >= range.end) break;
                call_(body_, item, thread);
            }
        }
    }
    void work(int thread) {
        if (int(cpus_.size()) >= threads_) pin(cpus_[size_t(thread)]);
        for (uint32_t seen = 0;;) {
            int spins = 0;
            while (phase_.load(std::memory_order_acquire) == seen) {
                if (++spins < SPINS) {
                    relax();
                    continue;
                }
                sleepers_.fetch_add(1);
                if (phase_.load() == seen) wait(phase_, seen);
                sleepers_.fetch_sub(1);
            }
            seen++;
            if (stop_) return;
            take(thread);
            if (busy_.fetch_sub(1) == 1 && caller_sleeps_.load()) wake(busy_);
        }
    }

    static constexpr int SPINS = 2000;
    std::unique_ptr<Range[]> ranges_;
    int threads_;
    Call call_ = nullptr;
    void* body_ = nullptr;
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<uint32_t> sleepers_{0};
    std::atomic<bool> stop_{false};
    alignas(64) std::atomic<uint32_t> busy_{0};
    std::atomic<uint32_t> caller_sleeps_{0};
    std::vector<int> cpus_;
    std::vector<std::thread> workers_;
};

}  // namespace naiad
