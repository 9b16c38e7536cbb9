// A team of threads for one call: OpenMP's pool, shared with whoever else in the process uses it.
// Work is split into pieces that depend on the shape alone, so the team's size never shows in a result.
#pragma once
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

// work(team) on every member; alone where the team would be one. What a member throws is thrown here, when all have ended.
// None may then be waiting for it at a barrier: where there is one, memory is asked for before.
template <class Work> void parallel(int threads, const Work& work) {
#if defined(_OPENMP)
    if (threads > 1 && !in_forked_child()) {
        std::exception_ptr thrown;
#pragma omp parallel num_threads(threads)
        try {
            work(Team{std::size_t(omp_get_thread_num()), std::size_t(omp_get_num_threads())});
        } catch (...) {
#pragma omp critical
            thrown = std::current_exception();
        }
        if (thrown) std::rethrow_exception(thrown);
        return;
    }
#endif
    (void)threads;
    work(Team{0, 1});
}

}  // namespace xhat
