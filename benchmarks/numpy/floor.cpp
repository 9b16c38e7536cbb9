// The floor: what moving the bytes costs when nothing else is done with them.
//
// copy   to = from             1 read + 1 write, the bytes of a forward pass
// triad  to = a + 0.5 b        2 reads + 1 write, the bytes of a backward pass
// Each with plain stores and with non-temporal ones, which leave the caches alone; `count` floats, a multiple of 16.
#include <cstddef>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr std::ptrdiff_t LINE = 16;  // floats in a cache line

void store_line(float* to, const float* values) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, _mm512_loadu_ps(values));
#elif defined(__AVX__)
    for (int k = 0; k < LINE; k += 8) _mm256_stream_ps(to + k, _mm256_loadu_ps(values + k));
#elif defined(__SSE2__)
    for (int k = 0; k < LINE; k += 4) _mm_stream_ps(to + k, _mm_loadu_ps(values + k));
#else
    for (int k = 0; k < LINE; ++k) to[k] = values[k];  // no portable non-temporal store: the plain one again
#endif
}

void drain() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace

extern "C" {

void copy(const float* __restrict from, float* __restrict to, std::ptrdiff_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = from[i];
}

void copy_stream(const float* __restrict from, float* __restrict to, std::ptrdiff_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (std::ptrdiff_t i = 0; i < count; i += LINE) store_line(to + i, from + i);
        drain();
    }
}

void triad(const float* __restrict a, const float* __restrict b, float* __restrict to, std::ptrdiff_t count,
           int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = a[i] + 0.5f * b[i];
}

void triad_stream(const float* __restrict a, const float* __restrict b, float* __restrict to, std::ptrdiff_t count,
                  int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (std::ptrdiff_t i = 0; i < count; i += LINE) {
            alignas(64) float line[LINE];
            for (int k = 0; k < LINE; ++k) line[k] = a[i + k] + 0.5f * b[i + k];
            store_line(to + i, line);
        }
        drain();
    }
}

}  // extern "C"
