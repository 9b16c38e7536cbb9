// The equations in plain loops, compiled once per instruction set (XHAT_ISA names it).
//
//   moments         sum += w (x - o)              sum_product += w (x - o)^2            one read
//   normalize       y = act(scale (x - mu) + beta [+ residual])                         one read, one write
//   gradient_sums   sum += g                      sum_product += g (x - mu)             two reads
//   input_gradient  dx = scale g - w (through_mu + through_var (x - mu))                two reads, one write
//
// with g = dy act'(pre). Sums are in double, in an order fixed by the tile alone; maps are in the
// arithmetic type of the dtype. No contraction, no fast-math: every instruction set gives the same bits.
// Only this file and number.h may be compiled with wider instructions, and only `XHAT_ISA` is exported.
#include "kernels.h"
#include "number.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define XHAT_SSE2 1
#endif

#if defined(_MSC_VER)
#define RESTRICT __restrict
#define ALWAYS_INLINE __forceinline
#else
#define RESTRICT __restrict__
#define ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace {

using namespace xhat;
using std::ptrdiff_t;
using std::size_t;

template <class T> using A = typename Arithmetic<T>::type;

template <class T> const T* from(const Source& s, size_t row, size_t channel) {
    return static_cast<const T*>(s.at) + ptrdiff_t(row) * s.row + ptrdiff_t(channel) * s.channel;
}
template <class T> T* to(const Target& t, size_t row, size_t channel) {
    return static_cast<T*>(t.at) + ptrdiff_t(row) * t.row + ptrdiff_t(channel) * t.channel;
}

constexpr size_t CHUNK = 512;  // numbers that go through a buffer at a time: it stays in the first cache

// Where channel k of a row begins (lanes), or its column k lies.
template <class T, bool columns> const T* place(const Source& s, size_t row, size_t k) {
    return columns ? from<T>(s, row, 0) + k : from<T>(s, row, k);
}

inline const double* weights(const Tile& t, size_t row) { return t.weights + ptrdiff_t(row) * t.weights_row; }

// ---------------------------------------------------------------------------------------------- pieces

// xhat's numerator. Subtracting the mean in two halves keeps its double precision in float arithmetic.
template <class A> inline A centred(A x, A hi, A lo) { return (x - hi) - lo; }

// slope * v, and 0 for relu also where v is infinite.
template <class A> inline A sloped(A v, A slope) { return slope == A(0) ? A(0) : slope * v; }

template <int activation, class A> inline A act(A pre, A slope) {
    if (activation == LEAKY_RELU) return pre < A(0) ? sloped(pre, slope) : pre;
    if (activation == SILU) return pre < -FAR<A> ? A(0) : pre * sigmoid(pre);
    return pre;
}

// g = dy act'(pre).
template <int side, class A> inline A through_activation(A dy, A pre, A slope) {
    if (side == NO_ACTIVATION) return dy;
    if (side == LEAKY_FROM_X || side == LEAKY_FROM_Y) return pre > A(0) ? dy : sloped(dy, slope);
    const A sigma = sigmoid(pre);
    A slope_here = sigma * (A(1) + pre * (A(1) - sigma));
    slope_here = pre < -FAR<A> ? A(0) : slope_here;
    slope_here = pre > FAR<A> ? A(1) : slope_here;
    return dy == A(0) ? dy : dy * slope_here;  // no gradient passes a padded NaN
}

// What stands before the activation, as the forward pass had it (or y, of the same sign).
template <int side, class A> inline A before_activation(A d, A scale, A beta, A extra) {
    if (side == LEAKY_FROM_Y) return extra;
    if (side == SILU_FROM_RESIDUAL) return d * scale + beta + extra;
    return d * scale + beta;
}
constexpr bool reads_extra(int side) { return side == LEAKY_FROM_Y || side == SILU_FROM_RESIDUAL; }

// The terms at one place: with step 0 the channel's, with step 1 the column's.
template <class A, int step> struct TermsAt {
    const A *RESTRICT hi, *RESTRICT lo, *RESTRICT scale, *RESTRICT beta, *RESTRICT mu_path, *RESTRICT var_path;
    TermsAt(const Terms& t, size_t at)
        : hi(static_cast<const A*>(t.mu_hi) + at), lo(static_cast<const A*>(t.mu_lo) + at),
          scale(static_cast<const A*>(t.scale) + at), beta(static_cast<const A*>(t.beta) + at),
          mu_path(static_cast<const A*>(t.through_mu) + at), var_path(static_cast<const A*>(t.through_var) + at) {}
    static size_t i(size_t column) { return step * column; }
};

// Always inline: g++ takes a function that only prefetches for one that does nothing, and drops its calls.
ALWAYS_INLINE void prefetch(const void* at) {
#if defined(XHAT_SSE2)
    _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0);
#elif defined(__GNUC__)
    __builtin_prefetch(at, 0, 2);
#else
    (void)at;
#endif
}

template <class T> ALWAYS_INLINE void prefetch_ahead(const T* row, size_t count, ptrdiff_t ahead) {
    for (size_t i = 0; i < count; i += 64 / sizeof(T)) prefetch(row + ptrdiff_t(i) + ahead);
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
        std::memcpy(out, in, i);
        for (; i + 16 <= bytes && beyond_line(out + i, 64); i += 16) stream16(out + i, in + i);
        for (; i + 64 <= bytes; i += 64) stream64(out + i, in + i);
        for (; i + 16 <= bytes; i += 16) stream16(out + i, in + i);
    }
#else
    (void)stream;
#endif
    std::memcpy(out + i, in + i, bytes - i);
}

// ------------------------------------------------------------------------------------------- reductions

// A reduction is an `Each` with  void operator()(p, i, l, &u, &v): the two summands of number i, where l is
// its lane or column. Four rows of lanes, or of columns, are added before they meet the running sums.
template <class Each>
inline void sum_lanes(const Each& each, const Each& next, size_t width, double* RESTRICT sum,
                      double* RESTRICT product) {
    double s[LANES], q[LANES];
    for (size_t l = 0; l < LANES; l++) { s[l] = sum[l]; q[l] = product[l]; }
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        next.prefetch_from(i);
        for (size_t l = 0; l < LANES; l++) {
            double u0, u1, u2, u3, v0, v1, v2, v3;
            each(i + l, l, u0, v0);
            each(i + l + LANES, l, u1, v1);
            each(i + l + 2 * LANES, l, u2, v2);
            each(i + l + 3 * LANES, l, u3, v3);
            s[l] += (u0 + u1) + (u2 + u3);
            q[l] += (v0 + v1) + (v2 + v3);
        }
    }
    for (; i + LANES <= width; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            double u, v;
            each(i + l, l, u, v);
            s[l] += u;
            q[l] += v;
        }
    for (size_t l = 0; i < width; i++, l++) {
        double u, v;
        each(i, l, u, v);
        s[l] += u;
        q[l] += v;
    }
    for (size_t l = 0; l < LANES; l++) { sum[l] = s[l]; product[l] = q[l]; }
}

template <class Each>
inline void sum_four_rows(const Each& a, const Each& b, const Each& c, const Each& d, size_t width,
                          double* RESTRICT sum, double* RESTRICT product) {
    for (size_t l = 0; l < width; l++) {
        double u0, u1, u2, u3, v0, v1, v2, v3;
        a(l, l, u0, v0);
        b(l, l, u1, v1);
        c(l, l, u2, v2);
        d(l, l, u3, v3);
        sum[l] += (u0 + u1) + (u2 + u3);
        product[l] += (v0 + v1) + (v2 + v3);
    }
}
template <class Each>
inline void sum_row(const Each& each, size_t width, double* RESTRICT sum, double* RESTRICT product) {
    for (size_t l = 0; l < width; l++) {
        double u, v;
        each(l, l, u, v);
        sum[l] += u;
        product[l] += v;
    }
}

// Four rows read side by side are no stream to the processor's own prefetcher: it is told what comes next, the
// following four rows in the order of memory, at the pace of the columns.
constexpr size_t PACE = 128;
template <class T> ALWAYS_INLINE void prefetch_rows(const Tile& t, const Source& s, size_t row, size_t first, size_t n) {
    if (row + 4 <= t.rows && s.row == ptrdiff_t(t.width)) prefetch_ahead(from<T>(s, row, 0) + 4 * first, 4 * n, 0);
}

// Walks the tile: lanes go run by run, columns four rows at a time. `at(row, k)` is the Each of channel or column k on.
template <class T, bool columns, bool gradient, class At> inline void reduce(const Tile& t, const At& at) {
    if (columns) {
        size_t r = 0;
        for (; r + 4 <= t.rows; r += 4)
            for (size_t i = 0; i < t.width; i += PACE) {
                const size_t n = t.width - i < PACE ? t.width - i : PACE;
                prefetch_rows<T>(t, t.x, r + 4, i, n);
                if (gradient) prefetch_rows<T>(t, t.dy, r + 4, i, n);
                sum_four_rows(at(r, i), at(r + 1, i), at(r + 2, i), at(r + 3, i), n, t.sum + i, t.sum_product + i);
            }
        for (; r < t.rows; r++) sum_row(at(r, 0), t.width, t.sum, t.sum_product);
    } else {
        for (size_t r = 0; r < t.rows; r++)
            for (size_t c = 0; c < t.channels; c++) {
                const bool last = c + 1 == t.channels;
                const size_t next = last ? r + 1 : r;  // the run after this one; after the last there is none to ask for
                sum_lanes(at(r, c), next < t.rows ? at(next, last ? 0 : c + 1) : at(r, c), t.width, t.sum + c * LANES,
                          t.sum_product + c * LANES);
            }
    }
}

template <class T, bool columns, bool weighted> struct EachMoment {
    const T* RESTRICT x;
    const double* RESTRICT w;
    const double* RESTRICT origin;
    ALWAYS_INLINE void prefetch_from(size_t i) const { prefetch_ahead(x + i, 4 * LANES, 0); }
    inline void operator()(size_t i, size_t l, double& u, double& v) const {
        const double d = double(load(x[i])) - (columns ? origin[l] : origin[0]);
        if (weighted) {
            const double wi = columns ? w[0] : w[i];
            const double kept = wi > 0 ? d : 0.0;  // a padded NaN has no weight
            u = wi * kept;
            v = u * kept;
        } else {
            u = d;
            v = d * d;
        }
    }
};

template <class T, bool columns, bool weighted> void moments(const Tile& t) {
    reduce<T, columns, false>(t, [&t](size_t r, size_t k) {
        return EachMoment<T, columns, weighted>{place<T, columns>(t.x, r, k), weighted ? weights(t, r) : nullptr,
                                                t.origin + k};
    });
}

template <class T, class G, bool columns, bool weighted> struct EachGradient {
    const T* RESTRICT x;
    const G* RESTRICT g;
    const double* RESTRICT w;
    const double* RESTRICT mu;
    ALWAYS_INLINE void prefetch_from(size_t i) const {
        prefetch_ahead(x + i, 4 * LANES, 0);
        prefetch_ahead(g + i, 4 * LANES, 0);
    }
    inline void operator()(size_t i, size_t l, double& u, double& v) const {
        u = double(load(g[i]));
        v = u * (double(load(x[i])) - (columns ? mu[l] : mu[0]));
        if (weighted) {  // a padded NaN that the loss does not look at
            const double wi = columns ? w[0] : w[i];
            v = (wi == 0) & (u == 0) ? 0.0 : v;
        }
    }
};

// g of `n` numbers from column `first` on.
template <class T, bool columns, int side>
inline void activation_gradient(const Tile& t, size_t r, size_t c, size_t first, size_t n, A<T>* RESTRICT g) {
    const A<T> slope = A<T>(t.slope);
    const T* RESTRICT x = from<T>(t.x, r, c) + first;
    const T* RESTRICT dy = from<T>(t.dy, r, c) + first;
    const T* RESTRICT e = reads_extra(side) ? from<T>(t.extra, r, c) + first : nullptr;
    const TermsAt<A<T>, columns> at(t.terms, columns ? first : c);
    for (size_t i = 0; i < n; i++) {
        const size_t k = at.i(i);
        const A<T> d = centred<A<T>>(load(x[i]), at.hi[k], at.lo[k]);
        const A<T> ei = reads_extra(side) ? A<T>(load(e[i])) : A<T>(0);
        g[i] = through_activation<side, A<T>>(
            load(dy[i]), before_activation<side>(d, at.scale[k], at.beta[k], ei), slope);
    }
}

// Behind an activation, g goes through a buffer: then both loops are simple enough to become vector code.
template <class T, bool columns, int side, bool weighted> void gradient_sums_activated(const Tile& t) {
    using Each = EachGradient<T, A<T>, columns, weighted>;
    constexpr size_t rows = columns ? 4 : 1, width = CHUNK / rows;
    A<T> g[rows][width];
    for (size_t r = 0; r < t.rows;) {
        const size_t four = t.rows - r >= rows ? rows : 1;
        for (size_t c = 0; c < t.channels; c++)
            for (size_t i = 0; i < t.width; i += width) {
                const size_t n = t.width - i < width ? t.width - i : width;
                if (columns) {
                    prefetch_rows<T>(t, t.x, r + four, i, n);
                    prefetch_rows<T>(t, t.dy, r + four, i, n);
                }
                for (size_t k = 0; k < four; k++) activation_gradient<T, columns, side>(t, r + k, c, i, n, g[k]);
                const auto each = [&](size_t k) {
                    return Each{from<T>(t.x, r + k, c) + i, g[k],
                                weighted ? weights(t, r + k) + (columns ? 0 : i) : nullptr, t.origin + (columns ? i : c)};
                };
                double* sum = t.sum + (columns ? i : c * LANES);
                double* product = t.sum_product + (columns ? i : c * LANES);
                if (!columns) sum_lanes(each(0), each(0), n, sum, product);
                else if (four == 4) sum_four_rows(each(0), each(1), each(2), each(3), n, sum, product);
                else sum_row(each(0), n, sum, product);
            }
        r += four;
    }
}

template <class T, bool columns, int side, bool weighted> void gradient_sums(const Tile& t) {
    if (side != NO_ACTIVATION) return gradient_sums_activated<T, columns, side, weighted>(t);
    reduce<T, columns, true>(t, [&t](size_t r, size_t k) {
        return EachGradient<T, T, columns, weighted>{place<T, columns>(t.x, r, k), place<T, columns>(t.dy, r, k),
                                                     weighted ? weights(t, r) : nullptr, t.origin + k};
    });
}

// ------------------------------------------------------------------------------------------------- maps

// The numbers of a chunk, rounded to their place: an own loop, which becomes vector code for 16-bit numbers too.
template <class T> inline void round_to(T* RESTRICT to, const A<T>* RESTRICT from, size_t n) {
    for (size_t i = 0; i < n; i++) store(to[i], from[i]);
}

// Runs `chunk(row, channel, first, count, out, dresidual)` over the tile, with the results, in the arithmetic
// type, going to their places; or to a buffer, where they are to be rounded or flushed.
template <class T, bool second, class Chunk> inline void map(const Tile& t, const Chunk& chunk) {
    constexpr bool rounded = sizeof(T) < sizeof(A<T>);
    alignas(64) A<T> buffer[CHUNK], buffer2[second ? CHUNK : 1];
    alignas(64) T narrow[rounded ? CHUNK : 1];
    const auto finish = [&](A<T>* values, T* place, size_t n) {
        const void* chunk_out = values;
        if (rounded) {
            round_to(t.staged ? narrow : place, values, n);
            chunk_out = narrow;
        }
        if (t.staged) flush(chunk_out, place, n * sizeof(T), t.stream);
    };
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) {
            T* out = to<T>(t.out, r, c);
            T* dresidual = second ? to<T>(t.dresidual, r, c) : nullptr;
            for (size_t i = 0, n; i < t.width; i += n) {
                n = CHUNK - beyond_line(out + i, 64) / sizeof(T);  // the next chunk begins a cache line
                n = n < t.width - i ? n : t.width - i;
                if constexpr (!rounded) {
                    if (!t.staged) {
                        chunk(r, c, i, n, out + i, second ? dresidual + i : nullptr);
                        continue;
                    }
                }
                chunk(r, c, i, n, buffer, buffer2);
                finish(buffer, out + i, n);
                if (second) finish(buffer2, dresidual + i, n);
            }
        }
}

// Asks for the same part of the run after this one, and of the same run of what comes after the tile.
template <class T> ALWAYS_INLINE void prefetch_next(const Tile& t, const Source& s, size_t r, size_t c, size_t first,
                                                    size_t n) {
    const bool last = c + 1 == t.channels;
    if (r + last < t.rows) prefetch_ahead(from<T>(s, r + last, last ? 0 : c + 1) + first, n, 0);
    if (t.ahead) prefetch_ahead(from<T>(s, r, c) + first, n, t.ahead);
}

template <class T, bool columns, int activation, bool residual> void normalize(const Tile& t) {
    const A<T> slope = A<T>(t.slope);
    map<T, false>(t, [&t, slope](size_t r, size_t c, size_t first, size_t n, A<T>* RESTRICT y, A<T>*) {
        const T* RESTRICT x = from<T>(t.x, r, c) + first;
        const T* RESTRICT e = residual ? from<T>(t.extra, r, c) + first : nullptr;
        const TermsAt<A<T>, columns> at(t.terms, columns ? first : c);
        prefetch_next<T>(t, t.x, r, c, first, n);
        for (size_t i = 0; i < n; i++) {
            const size_t k = at.i(i);
            A<T> pre = centred<A<T>>(load(x[i]), at.hi[k], at.lo[k]) * at.scale[k] + at.beta[k];
            if (residual) pre = pre + load(e[i]);
            y[i] = act<activation>(pre, slope);
        }
    });
}

template <class T, bool columns, int side, bool weighted> void input_gradient(const Tile& t) {
    const A<T> slope = A<T>(t.slope);
    map<T, reads_extra(side)>(t, [&t, slope](size_t r, size_t c, size_t first, size_t n, A<T>* RESTRICT dx,
                                             A<T>* RESTRICT dresidual) {
        const T* RESTRICT x = from<T>(t.x, r, c) + first;
        const T* RESTRICT dy = from<T>(t.dy, r, c) + first;
        const T* RESTRICT e = reads_extra(side) ? from<T>(t.extra, r, c) + first : nullptr;
        const double* RESTRICT w = weighted ? weights(t, r) + (columns ? 0 : first) : nullptr;
        const TermsAt<A<T>, columns> at(t.terms, columns ? first : c);
        if (t.ahead) {
            prefetch_next<T>(t, t.x, r, c, first, n);
            prefetch_ahead(dy, n, t.ahead);
        }
        for (size_t i = 0; i < n; i++) {
            const size_t k = at.i(i);
            const A<T> d = centred<A<T>>(load(x[i]), at.hi[k], at.lo[k]);
            A<T> g = load(dy[i]);
            if (side != NO_ACTIVATION) {
                const A<T> ei = reads_extra(side) ? A<T>(load(e[i])) : A<T>(0);
                g = through_activation<side>(g, before_activation<side>(d, at.scale[k], at.beta[k], ei), slope);
            }
            if (reads_extra(side)) dresidual[i] = g;
            A<T> statistics = at.mu_path[k] + at.var_path[k] * d;  // through mu, through var
            if (weighted) {
                const A<T> wi = A<T>(columns ? w[0] : w[i]);
                statistics = wi > A<T>(0) ? wi * statistics : A<T>(0);
            }
            dx[i] = at.scale[k] * g - statistics;
        }
    });
}

// ------------------------------------------------------------------------------------------ conversions

template <class T> void widen(const void* at, ptrdiff_t stride, size_t count, double* RESTRICT to) {
    const T* RESTRICT p = static_cast<const T*>(at);
    for (size_t i = 0; i < count; i++) to[i] = double(load(p[ptrdiff_t(i) * stride]));
}
template <class T> void narrow(const double* RESTRICT from, void* at, ptrdiff_t stride, size_t count) {
    T* RESTRICT p = static_cast<T*>(at);
    for (size_t i = 0; i < count; i++) store(p[ptrdiff_t(i) * stride], from[i]);
}

// ------------------------------------------------------------------------------------------------ table

#define XHAT_WEIGHTED(kernel, ...) {kernel<__VA_ARGS__, false>, kernel<__VA_ARGS__, true>}
#define XHAT_SIDES(kernel, T, columns)                                                              \
    {XHAT_WEIGHTED(kernel, T, columns, NO_ACTIVATION), XHAT_WEIGHTED(kernel, T, columns, LEAKY_FROM_X),  \
     XHAT_WEIGHTED(kernel, T, columns, LEAKY_FROM_Y), XHAT_WEIGHTED(kernel, T, columns, SILU_FROM_X),    \
     XHAT_WEIGHTED(kernel, T, columns, SILU_FROM_RESIDUAL)}
#define XHAT_ACTIVATIONS(T, columns)                                                                \
    {XHAT_WEIGHTED(normalize, T, columns, IDENTITY), XHAT_WEIGHTED(normalize, T, columns, LEAKY_RELU),   \
     XHAT_WEIGHTED(normalize, T, columns, SILU)}
#define XHAT_KERNELS_OF(T)                                                                          \
    {{XHAT_WEIGHTED(moments, T, false), XHAT_WEIGHTED(moments, T, true)},                           \
     {XHAT_ACTIVATIONS(T, false), XHAT_ACTIVATIONS(T, true)},                                       \
     {XHAT_SIDES(gradient_sums, T, false), XHAT_SIDES(gradient_sums, T, true)},                     \
     {XHAT_SIDES(input_gradient, T, false), XHAT_SIDES(input_gradient, T, true)},                   \
     widen<T>, narrow<T>}

}  // namespace

namespace xhat {
extern const Kernels XHAT_ISA;
const Kernels XHAT_ISA = {
    {XHAT_KERNELS_OF(double), XHAT_KERNELS_OF(float), XHAT_KERNELS_OF(float16), XHAT_KERNELS_OF(bfloat16)}};
}  // namespace xhat
