// Selects the table of kernels: the best instruction set that this machine can run, or the one that use_isa forces.
#include "isa/table.h"

#include <atomic>
#include <cstring>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace xhat {

extern const Kernels isa_v2, isa_v3, isa_v4, isa_baseline;

namespace {

#if defined(XHAT_HAS_v3) || defined(XHAT_HAS_v4)
#if defined(_MSC_VER) && !defined(__clang__)
bool bit(int leaf, int reg, int place) {
    int r[4];
    __cpuidex(r, leaf, 0);
    return r[reg] >> place & 1;
}
// Whether the operating system saves these registers.
bool saved(unsigned long long state) { return bit(1, 2, 27) && (_xgetbv(0) & state) == state; }
bool has_v3() { return saved(0x6) && bit(7, 1, 5) && bit(7, 1, 8) && bit(1, 2, 12) && bit(1, 2, 29); }
[[maybe_unused]] bool has_v4() {
    return has_v3() && saved(0xe6) && bit(7, 1, 16) && bit(7, 1, 17) && bit(7, 1, 30) && bit(7, 1, 31);
}
#else
bool has_v3() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
[[maybe_unused]] bool has_v4() {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
}
#endif
#endif
[[maybe_unused]] bool always() { return true; }

// Those that were built (XHAT_ISAS in CMakeLists.txt), best first.
struct Isa { const char* name; bool (*runs)(); const Kernels* table; };
const Isa ISAS[] = {
#if defined(XHAT_HAS_v4)
    {"x86-64-v4", has_v4, &isa_v4},
#endif
#if defined(XHAT_HAS_v3)
    {"x86-64-v3", has_v3, &isa_v3},
#endif
#if defined(XHAT_HAS_v2)
    {"x86-64-v2", always, &isa_v2},
#endif
#if defined(XHAT_HAS_baseline)
    {"baseline", always, &isa_baseline},
#endif
};

const Isa& best() noexcept {
    for (const Isa& isa : ISAS)
        if (isa.runs()) return isa;
    return ISAS[sizeof ISAS / sizeof *ISAS - 1];
}

std::atomic<const Isa*> in_use{&best()};

}  // namespace

const Kernels& kernels() { return *in_use.load(std::memory_order_relaxed)->table; }
const char* isa_in_use() { return in_use.load()->name; }

std::size_t isa_count() {
    std::size_t count = 0;
    for (const Isa& isa : ISAS) count += isa.runs();
    return count;
}

const char* isa_name(std::size_t index) {
    for (const Isa& isa : ISAS)
        if (isa.runs() && index-- == 0) return isa.name;
    return nullptr;
}

bool use_isa(const char* name) {
    for (const Isa& isa : ISAS)
        if (std::strcmp(isa.name, name) == 0 && isa.runs()) {
            in_use = &isa;
            return true;
        }
    return false;
}

}  // namespace xhat
