// Cache-line arithmetic on addresses. Both the kernels and the engine need it, so it stands alone.
//
// Anonymous namespace: see isa/number.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace {

constexpr std::size_t CACHE_LINE = 64;  // bytes; x86-64 and most ARM processors

// Bytes from the start of the line (of `line` bytes, a power of two) to `at`; 0 if `at` is aligned.
inline std::size_t bytes_past_line(const void* at, std::size_t line = CACHE_LINE) {
    return reinterpret_cast<std::uintptr_t>(at) & (line - 1);
}
// Bytes from `at` to the next start of a line; 0 if `at` is aligned.
inline std::size_t bytes_to_line(const void* at, std::size_t line = CACHE_LINE) {
    return (line - bytes_past_line(at, line)) & (line - 1);
}

}  // namespace
