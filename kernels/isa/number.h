// Floating-point formats: load and store of float64, float32, float16 and bfloat16, and exp.
//
// Conversions and exp are written as integer and floating-point arithmetic without tables and branches, so that every
// compiler can vectorize a loop over them, and every instruction set gives the same bits. float16 is converted by
// moving its exponent into float32's place and rescaling by a power of two; bfloat16 is the upper half of a float32.
//
// Everything is in an anonymous namespace. This header is compiled once per instruction set; an inline function with
// external linkage would be a weak symbol, and the linker would keep one copy, perhaps with AVX-512, for all of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits() needs two types of the same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// The unsigned integer of the same size, for bit masks.
template <class V> struct Bits;
template <> struct Bits<float> { using type = std::uint32_t; };
template <> struct Bits<double> { using type = std::uint64_t; };

struct float16 { std::uint16_t u; };
struct bfloat16 { std::uint16_t u; };

// The type in which arithmetic is done: float for the 16-bit formats.
template <class T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

inline double load(double v) { return v; }
inline float load(float v) { return v; }
inline float load(bfloat16 v) { return bits<float>(std::uint32_t(v.u) << 16); }
inline float load(float16 v) {
    // Exponent and fraction are moved to their places in float32. Multiplying by 2^112 corrects the exponent's bias;
    // this is exact, and normalizes subnormals too. Infinity and NaN get an exponent of all ones.
    const std::uint32_t magnitude = std::uint32_t(v.u & 0x7fffu) << 13;
    const std::uint32_t finite = bits<std::uint32_t>(bits<float>(magnitude) * 0x1p112f);
    const std::uint32_t special = magnitude | 0x7f800000u;
    return bits<float>((magnitude >= 0x0f800000u ? special : finite) | std::uint32_t(v.u & 0x8000u) << 16);
}

// Round to nearest, ties to even. A NaN stays NaN if it is quiet, or if its payload fits in the 16 bits.
inline void store(double& to, double v) { to = v; }
inline void store(float& to, double v) { to = static_cast<float>(v); }
inline void store(float& to, float v) { to = v; }
inline void store(bfloat16& to, float v) {
    const std::uint32_t u = bits<std::uint32_t>(v), half = 0x7fffu + ((u >> 16) & 1u);
    to.u = static_cast<std::uint16_t>((u + (v == v ? half : 0u)) >> 16);
}
inline void store(float16& to, float v) {
    const std::uint32_t u = bits<std::uint32_t>(v), magnitude = u & 0x7fffffffu;
    const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    // Adding 1/2 rounds to a multiple of 2^-24, the spacing of float16's subnormals.
    const std::uint32_t subnormal = bits<std::uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    std::uint32_t h = magnitude < 0x38800000u ? subnormal : normal;
    h = magnitude >= 0x477ff000u ? 0x7c00u : h;
    h = magnitude > 0x7f800000u ? 0x7e00u : h;
    to.u = static_cast<std::uint16_t>(h | (u >> 16 & 0x8000u));
}
inline void store(bfloat16& to, double v) { store(to, static_cast<float>(v)); }
inline void store(float16& to, double v) { store(to, static_cast<float>(v)); }

// The argument of exp is clamped to FAR. Beyond it, sigmoid is 0 or 1 to far below rounding; up to it, products with
// exp(-FAR) are normal numbers, since arithmetic on subnormals is slow (silu: 2.3 -> 0.7 ns per element).
template <class A> constexpr A FAR = A(60);
template <> constexpr double FAR<double> = 300;

// e^-a for 0 <= a <= FAR. With -a = k ln 2 + r and |r| <= ln 2 / 2, a polynomial gives e^r, and k is added to its
// exponent. Adding `magic` rounds to an integer, which is then in the low bits. ln 2 is subtracted in two parts, so
// that r is exact. The float polynomial has an error of at most 3e-9. It is evaluated in pairs, which shortens the
// chain of dependent operations that Horner's rule would have.
inline float decay(float a) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    const float shifted = a * -1.44269504f + magic;
    const float k = shifted - magic;
    const float r = (-a - k * 0.693145752f) - k * 1.42860677e-6f, r2 = r * r;
    const float middle = 0.49999994f + 0.166665211f * r, high = 0.041668389f + 0.00836871658f * r;
    const float p = (1.0f + r) + r2 * (middle + r2 * (high + r2 * 0.00138145976f));
    return bits<float>(bits<std::uint32_t>(p) + (bits<std::uint32_t>(shifted) << 23));
}
// In double, the polynomial is the Taylor series.
inline double decay(double a) {
    constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    const double shifted = a * -1.4426950408889634 + magic;
    const double k = shifted - magic;
    const double r = (-a - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return bits<double>(bits<std::uint64_t>(p) + (bits<std::uint64_t>(shifted) << 52));
}

}  // namespace
