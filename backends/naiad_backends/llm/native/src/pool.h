// Threads that share one phase of work after another. Knows nothing of models.
//
// Each thread has a range of the phase's items and takes from the others' when it is done. A phase is
// over when its items are, whoever has come to help: the server shares the cores, and a thread whose
// core somebody else has holds up nobody unless it has begun an item. Between phases threads spin for
// some tens of microseconds, then sleep.
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
        finish(take(0));
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
    // Items that nobody has begun: from the low half of the number to before the high half. Whoever
    // adds one to it has begun an item of the phase that is on, which then cannot end before that.
    struct alignas(64) Range {
        std::atomic<uint64_t> items{0};

        bool begin(int& item) {
            uint64_t seen = items.load(std::memory_order_acquire);
            while (uint32_t(seen) < uint32_t(seen >> 32))
                if (items.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) {
                    item = int(uint32_t(seen));
                    return true;
                }
            return false;
        }
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
        left_.store(uint32_t(items), std::memory_order_relaxed);
        for (int i = 0; i < threads_; i++) {
            uint64_t from = uint64_t(items) * uint64_t(i) / uint64_t(threads_);
            uint64_t to = uint64_t(items) * uint64_t(i + 1) / uint64_t(threads_);
            ranges_[i].items.store(to << 32 | from, std::memory_order_release);
        }
        phase_.fetch_add(1);
        if (sleepers_.load()) wake(phase_);
    }
    // Carries out items until none is left to begin; how many it were.
    uint32_t take(int thread) {
        uint32_t done = 0;
        int item;
        for (int i = 0; i < threads_; i++)
            while (ranges_[(thread + i) % threads_].begin(item)) {
                call_(body_, item, thread);
                done++;
            }
        return done;
    }
    void finish(uint32_t done) {
        left_.fetch_sub(done);
        for (int spins = 0; left_.load(std::memory_order_acquire);) {
            if (++spins < SPINS) {
                relax();
                continue;
            }
            // Somebody else has the core of a worker with an item.
            caller_sleeps_.store(1);
            if (uint32_t left = left_.load()) wait(left_, left);
            caller_sleeps_.store(0);
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
            seen = phase_.load();
            if (stop_) return;
            uint32_t done = take(thread);
            if (done && left_.fetch_sub(done) == done && caller_sleeps_.load()) wake(left_);
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
    alignas(64) std::atomic<uint32_t> left_{0};  // Items that have not ended.
    std::atomic<uint32_t> caller_sleeps_{0};
    std::vector<int> cpus_;
    std::vector<std::thread> workers_;
};

}  // namespace naiad
