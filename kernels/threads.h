// A team of threads for one call: OpenMP's pool, shared with whoever else in the process uses it.
// Work is split into pieces that depend on the shape alone, so the team's size never shows in a result.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace xhat {

struct Team {
    std::size_t rank, size;

    void barrier() const {
#if defined(_OPENMP)
        if (size > 1) {
#pragma omp barrier
        }
#endif
    }
    // This member's share of `count` pieces: [first, last), contiguous and in rank order.
    std::size_t first(std::size_t count) const { return count * rank / size; }
    std::size_t last(std::size_t count) const { return count * (rank + 1) / size; }
};

// A forked child has none of the parent's threads, and OpenMP would wait for them for ever.
bool in_forked_child();

inline int max_threads() {
#if defined(_OPENMP)
    return in_forked_child() ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

// work(team) on every member; alone where the team would be one. It must not throw: no exception leaves OpenMP's threads,
// and a member that is gone would be waited for at the next barrier.
template <class Work> void parallel(int threads, const Work& work) {
#if defined(_OPENMP)
    if (threads > 1 && !in_forked_child()) {
#pragma omp parallel num_threads(threads)
        work(Team{std::size_t(omp_get_thread_num()), std::size_t(omp_get_num_threads())});
        return;
    }
#endif
    (void)threads;
    work(Team{0, 1});
}

// The same for members that never wait for one another: what one of them throws is thrown here, when all have ended.
template <class Work> void parallel_apart(int threads, const Work& work) {
    std::atomic_flag caught = ATOMIC_FLAG_INIT;
    std::exception_ptr first;
    parallel(threads, [&](Team team) {
        try {
            work(team);
        } catch (...) {
            if (!caught.test_and_set()) first = std::current_exception();
        }
    });
    if (first) std::rethrow_exception(first);
}

}  // namespace xhat
