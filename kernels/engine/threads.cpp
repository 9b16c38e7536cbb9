// Whether this process is a forked child: pthread_atfork calls back in every child.
#include "engine/threads.h"

#include <atomic>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace xhat {

namespace {

std::atomic<bool> forked{false};

#if !defined(_WIN32)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

bool in_forked_child() { return forked; }

}  // namespace xhat
