// What a kernel says to the caches: ask early for what comes next, and write past them what will not be read soon.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define XHAT_SSE2 1
#endif

#if defined(_MSC_VER)
#define RESTRICT __restrict
#define ALWAYS_INLINE __forceinline  // of what loops call: one call more, and they are no vector code
#define INLINE_LAMBDA
#define IVDEP __pragma(loop(ivdep))
#else
#define RESTRICT __restrict__
#if defined(__clang__)
#define IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define IVDEP _Pragma("GCC ivdep")
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace {

using std::size_t;

// Always inline: g++ takes a function that only prefetches for one that does nothing, and drops its calls.
ALWAYS_INLINE void prefetch(const void* at) {
#if defined(XHAT_SSE2)
    _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1);
#elif defined(__GNUC__)
    __builtin_prefetch(at, 0, 2);
#else
    (void)at;
#endif
}

template <class T> ALWAYS_INLINE void prefetch_numbers(const T* at, size_t count) {
    for (size_t i = 0; i < count; i += 64 / sizeof(T)) prefetch(at + i);
}

// Copies a finished chunk to its place, past the caches where asked: whole cache lines in the widest stores there
// are, and 16-byte pieces around them, which meet those of the chunks beside it in the write-combining buffers.
#if defined(XHAT_SSE2)
inline void stream16(char* out, const char* in) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out), _mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
}
inline void stream64(char* out, const char* in) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
#elif defined(__AVX__)
    for (size_t i = 0; i < 64; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
#else
    for (size_t i = 0; i < 64; i += 16) stream16(out + i, in + i);
#endif
}
#endif

inline size_t beyond_line(const void* at, size_t line) { return reinterpret_cast<std::uintptr_t>(at) & (line - 1); }

inline void flush(const void* chunk, void* place, size_t bytes, bool stream) {
    auto* out = static_cast<char*>(place);
    const auto* in = static_cast<const char*>(chunk);
    size_t i = 0;
#if defined(XHAT_SSE2)
    if (stream) {
        i = (16 - beyond_line(out, 16)) & 15;
        i = i < bytes ? i : bytes;
        if (i) std::memcpy(out, in, i);
        for (; i + 16 <= bytes && beyond_line(out + i, 64); i += 16) stream16(out + i, in + i);
        for (; i + 64 <= bytes; i += 64) stream64(out + i, in + i);
        for (; i + 16 <= bytes; i += 16) stream16(out + i, in + i);
    }
#else
    (void)stream;
#endif
    if (i < bytes) std::memcpy(out + i, in + i, bytes - i);
}

}  // namespace
