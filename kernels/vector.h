// As many doubles as a register holds, and floats widened to them: for the one loop that compilers do not find by
// themselves. Order and bits of what is computed do not depend on VECTOR.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "memory.h"

namespace {

// Compilers make four instructions of a conversion, or of a fused operation two, where the set has one for it.
#if defined(__GNUC__) && defined(__AVX512F__)
constexpr size_t VECTOR = 8;
using Doubles = __m512d;
ALWAYS_INLINE Doubles widened(const float* at) { return _mm512_cvtps_pd(_mm256_loadu_ps(at)); }
#elif defined(__GNUC__) && defined(__FMA__)
constexpr size_t VECTOR = 4;
using Doubles = __m256d;
ALWAYS_INLINE Doubles widened(const float* at) { return _mm256_cvtps_pd(_mm_loadu_ps(at)); }
#elif defined(__GNUC__) && defined(__SSE2__)
constexpr size_t VECTOR = 2;
using Doubles = __m128d;
ALWAYS_INLINE Doubles widened(const float* at) {
    return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}
#else
constexpr size_t VECTOR = 1;
using Doubles = double;
ALWAYS_INLINE Doubles widened(const float* at) { return *at; }
#endif

ALWAYS_INLINE Doubles loaded(const double* at) {
    Doubles v;
    std::memcpy(&v, at, sizeof v);
    return v;
}
ALWAYS_INLINE void put(Doubles v, double* at) { std::memcpy(at, &v, sizeof v); }

// sum + a b, of widened floats: their product has 48 bits and is exact in double, so that a fused operation rounds
// where the other two do, and gives the same bits.
ALWAYS_INLINE Doubles plus_product(Doubles sum, Doubles a, Doubles b) {
#if defined(__GNUC__) && defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, sum);
#elif defined(__GNUC__) && defined(__FMA__)
    return _mm256_fmadd_pd(a, b, sum);
#else
    return sum + a * b;
#endif
}

}  // namespace
