// SIMD vectors of doubles, and floats that are widened to them. Only uncentered_sums.h uses them.
//
// All other loops are left to the compiler. This one is not: g++ 12 converts floats to doubles with four instructions
// where AVX has one, and keeps the running sums in memory. VECTOR is the number of elements; the order of additions,
// and so the bits of a result, do not depend on it.
//
// Anonymous namespace: see number.h.
#pragma once
#include "isa/memory.h"
#include "isa/number.h"

namespace {

#if defined(__GNUC__) && defined(__AVX512VL__)
constexpr size_t VECTOR = 8;
typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));
typedef std::uint32_t FloatBits __attribute__((vector_size(32)));
ALWAYS_INLINE Doubles widened(Floats v) { return _mm512_cvtps_pd(v); }
ALWAYS_INLINE Floats floats(const float* at) { return _mm256_loadu_ps(at); }
ALWAYS_INLINE Floats floats(const float* at, size_t n) { return _mm256_maskz_loadu_ps(__mmask8((1u << n) - 1), at); }
ALWAYS_INLINE Floats broadcast(float v) { return _mm256_set1_ps(v); }
#elif defined(__GNUC__) && defined(__FMA__)
constexpr size_t VECTOR = 4;
typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(32)));
typedef std::uint32_t FloatBits __attribute__((vector_size(16)));
ALWAYS_INLINE Doubles widened(Floats v) { return _mm256_cvtps_pd(v); }
ALWAYS_INLINE Floats floats(const float* at) { return _mm_loadu_ps(at); }
ALWAYS_INLINE Floats floats(const float* at, size_t n) {
    return _mm_maskload_ps(at, _mm_cmpgt_epi32(_mm_set1_epi32(int(n)), _mm_setr_epi32(0, 1, 2, 3)));
}
ALWAYS_INLINE Floats broadcast(float v) { return _mm_set1_ps(v); }
#elif defined(__GNUC__)
constexpr size_t VECTOR = 2;
typedef float Floats __attribute__((vector_size(8)));
typedef double Doubles __attribute__((vector_size(16)));
typedef std::uint32_t FloatBits __attribute__((vector_size(8)));
ALWAYS_INLINE Doubles widened(Floats v) { return __builtin_convertvector(v, Doubles); }
ALWAYS_INLINE Floats floats(const float* at) { return Floats{at[0], at[1]}; }
ALWAYS_INLINE Floats floats(const float* at, size_t n) { return Floats{n > 0 ? at[0] : 0, n > 1 ? at[1] : 0}; }
ALWAYS_INLINE Floats broadcast(float v) { return Floats{v, v}; }
#else
constexpr size_t VECTOR = 1;
using Floats = float;
using Doubles = double;
ALWAYS_INLINE Doubles widened(Floats v) { return v; }
ALWAYS_INLINE Floats floats(const float* at) { return *at; }
ALWAYS_INLINE Floats floats(const float* at, size_t n) { return n ? *at : 0; }
ALWAYS_INLINE Floats broadcast(float v) { return v; }
#endif

#if defined(__GNUC__)
template <> struct Bits<Floats> { using type = FloatBits; };
#endif

ALWAYS_INLINE Doubles doubles(const double* at) {
    Doubles v;
    std::memcpy(&v, at, sizeof v);
    return v;
}
ALWAYS_INLINE void put(Doubles v, double* at) { std::memcpy(at, &v, sizeof v); }

// sum + a b for widened floats. The product of two floats has 48 bits and is exact in double, so a fused multiply-add
// rounds once, as the addition alone does, and gives the same bits.
ALWAYS_INLINE Doubles plus_product(Doubles sum, Doubles a, Doubles b) {
#if defined(__GNUC__) && defined(__AVX512VL__)
    return _mm512_fmadd_pd(a, b, sum);
#elif defined(__GNUC__) && defined(__FMA__)
    return _mm256_fmadd_pd(a, b, sum);
#else
    return sum + a * b;
#endif
}

}  // namespace
