// Prefetches and streaming stores, and the compiler-specific keywords.
//
// Batch normalization is limited by memory bandwidth. Prefetching starts a read before its data are needed. A
// streaming (non-temporal) store writes a line without reading it first, and without evicting others from the caches;
// large results are written this way. A streaming store is efficient for whole cache lines only, so results are
// collected in a buffer.
//
// Anonymous namespace: see number.h.
#pragma once
#include <cstddef>
#include <cstring>

#include "cache_line.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define XHAT_SSE2 1
#endif

#if defined(_MSC_VER)
#define RESTRICT __restrict
#define ALWAYS_INLINE __forceinline  // for functions called in loops: a loop with a call is not vectorized
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

// Always inline: g++ considers a function that only prefetches to be free of effects, and removes calls to it.
ALWAYS_INLINE void prefetch(const void* at) {
#if defined(XHAT_SSE2)
    _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1);
#elif defined(__GNUC__)
    __builtin_prefetch(at, 0, 2);
#else
    (void)at;
#endif
}

template <class T> ALWAYS_INLINE void prefetch_elements(const T* at, size_t count) {
    for (size_t i = 0; i < count; i += CACHE_LINE / sizeof(T)) prefetch(at + i);
}

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

// Copies a finished chunk from the buffer to its destination. With `stream`, whole cache lines are written by the
// widest streaming stores, and the parts before and after them in 16-byte pieces; the processor's write-combining
// buffers join these with the pieces of the neighbouring chunks.
inline void flush(const void* chunk, void* destination, size_t bytes, bool stream) {
    auto* out = static_cast<char*>(destination);
    const auto* in = static_cast<const char*>(chunk);
    size_t i = 0;
#if defined(XHAT_SSE2)
    if (stream) {
        i = bytes_to_line(out, 16);
        i = i < bytes ? i : bytes;
        if (i) std::memcpy(out, in, i);
        for (; i + 16 <= bytes && bytes_past_line(out + i); i += 16) stream16(out + i, in + i);
        for (; i + 64 <= bytes; i += 64) stream64(out + i, in + i);
        for (; i + 16 <= bytes; i += 16) stream16(out + i, in + i);
    }
#else
    (void)stream;
#endif
    if (i < bytes) std::memcpy(out + i, in + i, bytes - i);
}

}  // namespace
