// A team of threads for one call, from OpenMP's pool, which the process shares with its frameworks: two pools would
// compete for the same cores. Work is cut by the shape alone, so the size of the team does not change any result.
#pragma once
#include <cstddef>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace xhat {

struct ThreadTeam {
    std::size_t index, size;  // of this thread; of the team

    void barrier() const {
#if defined(_OPENMP)
        if (size > 1) {
#pragma omp barrier
        }
#endif
    }
    // This thread's share of `count` items: [first, last), contiguous and in the order of indices.
    std::size_t first(std::size_t count) const { return count * index / size; }
    std::size_t last(std::size_t count) const { return count * (index + 1) / size; }
};

// A forked child has none of its parent's threads, and OpenMP would wait for them forever.
bool in_forked_child();

inline int max_threads() {
#if defined(_OPENMP)
    return in_forked_child() ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

// While one exists, this thread rounds to nearest and does not flush subnormal numbers to zero, whatever mode its
// caller has set (torch.set_flush_denormal): the threads of a team would differ in it, and so would their results.
class DefaultFloatMode {
  public:
    DefaultFloatMode(const DefaultFloatMode&) = delete;
    DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;
#if defined(__SSE2__) || defined(_M_X64)
    DefaultFloatMode() : before_(_mm_getcsr()), set_((before_ & CONTROL) != DEFAULT) {
        if (set_) _mm_setcsr(DEFAULT);
    }
    ~DefaultFloatMode() {
        if (set_) _mm_setcsr(before_);
    }

  private:
    static constexpr unsigned CONTROL = 0xffc0, DEFAULT = 0x1f80;  // of MXCSR: the bits that are no status
    unsigned before_;
    bool set_;
#else
    DefaultFloatMode() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatMode() { std::fesetenv(&before_); }

  private:
    std::fenv_t before_;
#endif
};

// Runs work(team) on `threads` threads, and rethrows what one of them threw after all have ended. A thread that throws
// before a barrier would leave the others waiting there, so code with barriers allocates its memory before.
template <class Work> void parallel(int threads, const Work& work) {
#if defined(_OPENMP)
    if (threads > 1 && !in_forked_child()) {
        std::exception_ptr thrown;
#pragma omp parallel num_threads(threads)
        try {
            const DefaultFloatMode mode;
            work(ThreadTeam{std::size_t(omp_get_thread_num()), std::size_t(omp_get_num_threads())});
        } catch (...) {
#pragma omp critical
            thrown = std::current_exception();
        }
        if (thrown) std::rethrow_exception(thrown);
        return;
    }
#endif
    (void)threads;
    work(ThreadTeam{0, 1});
}

}  // namespace xhat
