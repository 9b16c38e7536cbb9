// The equations in plain loops, compiled once per instruction set (XHAT_ISA names it).
//
//   moments         sum += w (x - o)              sum_product += w (x - o)^2            one read
//   normalize       y = act(scale (x - mu) + beta [+ residual])                         one read, one write
//   gradient_sums   sum += g                      sum_product += g (x - mu)             two reads
//   input_gradient  dx = scale g - w (through_mu + through_var (x - mu))                two reads, one write
//
// with g = dy act'(pre). Sums are in double (of 16-bit numbers, after eight terms in float32: see statistics.h; of
// float32, at first about zero: see raw.h), in an order fixed by the tile alone; maps are in the arithmetic type of the
// dtype. No contraction but of exact products, no fast-math: every instruction set gives the same bits.
// Only this file and the headers it includes are compiled with wider instructions, and only `XHAT_ISA` is exported.
#include "formulas.h"
#include "maps.h"
#include "raw.h"
#include "sums.h"

#include <type_traits>

namespace {

using namespace xhat;
using std::ptrdiff_t;
using std::size_t;

// ----------------------------------------------------------------------------------------------- sums

// What terms are added up in before they meet a double: float for numbers of 16 bits (statistics.h says why that will
// do), and else double from the start.
template <class T, bool weighted> using TermOf = std::conditional_t<sizeof(T) == 2 && !weighted, float, double>;

template <class T, bool columns, bool weighted, class TermType> struct EachMoment {
    using Term = TermType;
    const T* RESTRICT x;
    const double* RESTRICT w;
    const double* RESTRICT origin;
    ALWAYS_INLINE void prefetch_from(size_t i) const { prefetch_numbers(x + i, together<Term> * LANES); }
    ALWAYS_INLINE void operator()(size_t i, size_t l, Term& u, Term& v) const {
        const Term d = Term(load(x[i])) - Term(columns ? origin[l] : origin[0]);
        if (weighted) {
            const Term wi = columns ? w[0] : w[i];
            const Term kept = only_if(wi > 0, d);  // a padded NaN has no weight
            u = wi * kept;
            v = u * kept;
        } else {
            u = d;
            v = d * d;
        }
    }
};

template <class T, bool columns, bool weighted, class Term = TermOf<T, weighted>> void moments(const Tile& t) {
    reduce<T, columns, false>(t, [&t](size_t r, size_t k) INLINE_LAMBDA {
        return EachMoment<T, columns, weighted, Term>{place<T, columns>(t.x, r, k),
                                                      weighted ? weights(t, r) : nullptr, t.origin + k};
    });
}

// G is T where g is made from dy on the way, and the arithmetic type where a buffer holds it already.
template <class T, class G, bool columns, int grad, bool weighted> struct EachGradient {
    using Term = TermOf<T, weighted>;
    const T* RESTRICT x;
    const G* RESTRICT dy;
    const T* RESTRICT e;
    const double* RESTRICT w;
    const double* RESTRICT mu;
    TermsAt<A<T>, columns> at;
    Slope<A<T>> slope;
    ALWAYS_INLINE void prefetch_from(size_t i) const {
        prefetch_numbers(x + i, together<Term> * LANES);
        prefetch_numbers(dy + i, together<Term> * LANES);
        if (reads_extra(grad)) prefetch_numbers(e + i, together<Term> * LANES);
    }
    ALWAYS_INLINE A<T> gradient(size_t i, size_t k) const {
        const A<T> ei = reads_extra(grad) ? A<T>(load(e[i])) : A<T>(0);
        const A<T> xi = grad == NO_ACTIVATION ? A<T>(0) : A<T>(load(x[i]));
        return through_activation<grad>(A<T>(load(dy[i])), xi, ei, at, k, slope);
    }
    ALWAYS_INLINE Term difference(size_t i, size_t k) const {
        if constexpr (sizeof(Term) == 4) return centred<Term>(load(x[i]), at.hi[k], at.lo[k]);
        else return double(load(x[i])) - mu[k];
    }
    ALWAYS_INLINE void operator()(size_t i, size_t l, Term& u, Term& v) const {
        const size_t k = at.i(l);
        u = Term(gradient(i, k));
        v = u * difference(i, k);
        if (weighted) {  // a padded NaN that the loss does not look at
            const Term wi = columns ? w[0] : w[i];
            v = only_if((wi != 0) | (u != 0), v);
        }
    }
};

// The Each of row r from number `first` on, in channel c.
template <class T, bool columns, int grad, bool weighted>
inline EachGradient<T, T, columns, grad, weighted> gradient_at(const Tile& t, size_t r, size_t c, size_t first) {
    return {from<T>(t.x, r, c) + first,
            from<T>(t.dy, r, c) + first,
            reads_extra(grad) ? from<T>(t.extra, r, c) + first : nullptr,
            weighted ? weights(t, r) + (columns ? 0 : first) : nullptr,
            t.origin + (columns ? first : c),
            {t.terms, columns ? first : c},
            Slope<A<T>>(t.slope)};
}

// g of a run: where the map will look for it (Pass::keeps_g), or in the buffer.
template <class G> G* place_of_g(const Tile& t, size_t r, size_t c, size_t first, G* buffer) {
    return t.out.at ? to<G>(t.out, r, c) + first : buffer;
}
template <class Each, class G> inline void make_gradients(const Each& each, size_t n, G* RESTRICT g) {
    for (size_t l = 0; l < n; l++) g[l] = each.gradient(l, each.at.i(l));
}

// Behind silu, and of float64 in columns behind leaky_relu, g is made first: then both loops are simple enough to become
// vector code.
template <class T, bool columns, int grad, bool weighted> void gradient_sums_buffered(const Tile& t) {
    constexpr size_t rows = columns ? 4 : 1, width = CHUNK / rows;
    const size_t ahead = columns ? rows_ahead<T>(t) : 1;
    A<T> buffer[rows][width];
    for (size_t r = 0; r < t.rows;) {
        const size_t four = t.rows - r >= rows ? rows : 1;
        for (size_t c = 0; c < t.channels; c++)
            for (size_t i = 0; i < t.width; i += width) {
                const size_t n = t.width - i < width ? t.width - i : width;
                if (columns) {
                    prefetch_rows<T>(t, t.x, r + ahead, i, n);
                    prefetch_rows<T>(t, t.dy, r + ahead, i, n);
                } else {
                    prefetch_next<T>(t, t.x, ahead, r, c, i, n);
                    prefetch_next<T>(t, t.dy, ahead, r, c, i, n);
                }
                const auto each = [&](size_t k) {
                    const auto made = gradient_at<T, columns, grad, weighted>(t, r + k, c, i);
                    A<T>* const g = place_of_g(t, r + k, c, i, buffer[k]);
                    make_gradients(made, n, g);
                    return EachGradient<T, A<T>, columns, NO_ACTIVATION, weighted>{made.x, g, nullptr, made.w,
                                                                                   made.mu, made.at, made.slope};
                };
                double* sum = t.sum + (columns ? i : c * LANES);
                double* product = t.sum_product + (columns ? i : c * LANES);
                const auto first = each(0);
                if (!columns) sum_lanes(first, first, n, sum, product);
                else if (four == 4) sum_rows({first, each(1), each(2), each(3)}, n, sum, product);
                else sum_rows({first}, n, sum, product);
            }
        r += four;
    }
}

template <class T, bool columns, int grad, bool weighted> void gradient_sums(const Tile& t) {
    if constexpr (is_silu(grad) || (sizeof(T) == 8 && columns && grad != NO_ACTIVATION)) {
        gradient_sums_buffered<T, columns, grad, weighted>(t);
    } else {
        reduce<T, columns, reads_extra(grad)>(t, [&t](size_t r, size_t k) INLINE_LAMBDA {
            return gradient_at<T, columns, grad, weighted>(t, r, columns ? 0 : k, columns ? k : 0);
        });
    }
}

// g of silu is made first.
template <bool columns, int grad> void raw_sums(const Tile& t) {
    constexpr int rest = is_silu(grad) ? int(NO_ACTIVATION) : grad;
    const auto made = [&t](size_t r, size_t c, size_t first, size_t n, float* buffer) {
        float* const g = place_of_g(t, r, c, first, buffer);
        make_gradients(gradient_at<float, columns, grad, false>(t, r, c, first), n, g);
        return g;
    };
    if constexpr (columns) {
        reduce_raw_columns<rest>(t, is_silu(grad) ? PACE : t.width,
                                 [&](size_t r, size_t rows, size_t first, size_t n, float* buffer) INLINE_LAMBDA {
            RawRows runs = raw_rows(t, r, first);
            if constexpr (is_silu(grad)) {
                for (size_t k = rows; k-- > 0;) runs.first.dy = made(r + k, 0, first, n, buffer + k * PACE);
                runs.dy = t.out.at ? t.out.row : ptrdiff_t(PACE);
            }
            return runs;
        });
    } else {
        reduce_raw_lanes<rest>(t, [&](size_t r, size_t c, size_t first, size_t n, float* buffer) INLINE_LAMBDA {
            RawRun run = raw_run(t, r, c, first);
            if constexpr (is_silu(grad)) run.dy = made(r, c, first, n, buffer);
            return run;
        });
    }
}

// ------------------------------------------------------------------------------------------------- maps

template <class T, bool columns, int activation, bool residual> struct EachNormal {
    static constexpr bool simple = activation != SILU;
    const T* RESTRICT x;
    const T* RESTRICT e;
    TermsAt<A<T>, columns> at;
    Slope<A<T>> slope;
    ALWAYS_INLINE void operator()(size_t i, A<T>& y, A<T>&) const {
        const size_t k = at.i(i);
        A<T> pre = before_activation(centred<A<T>>(load(x[i]), at.hi[k], at.lo[k]), at.scale[k], at.beta[k]);
        if (residual) pre = pre + load(e[i]);
        y = act<activation>(pre, slope);
    }
};

template <class T, bool columns, int activation, bool residual> void normalize(const Tile& t) {
    map<T, columns, false>(t, [&t](size_t r, size_t c, size_t first) INLINE_LAMBDA {
        return EachNormal<T, columns, activation, residual>{
            from<T>(t.x, r, c) + first, residual ? from<T>(t.extra, r, c) + first : nullptr,
            {t.terms, columns ? first : c}, Slope<A<T>>(t.slope)};
    });
}

template <class T, bool columns, int grad, int paths> struct EachInputGradient {
    static constexpr bool simple = !is_silu(grad);  // four rows of it become vector code
    const T* RESTRICT x;
    const T* RESTRICT dy;
    const T* RESTRICT e;
    const double* RESTRICT w;
    TermsAt<A<T>, columns> at;
    Slope<A<T>> slope;
    ALWAYS_INLINE void operator()(size_t i, A<T>& dx, A<T>& dresidual) const {
        const size_t k = at.i(i);
        const A<T> ei = reads_extra(grad) ? A<T>(load(e[i])) : A<T>(0);
        const A<T> g = through_activation<grad>(A<T>(load(dy[i])), A<T>(load(x[i])), ei, at, k, slope);
        if (reads_extra(grad)) dresidual = g;
        dx = at.scale[k] * g;
        if (paths == CONSTANT) return;
        A<T> statistics = at.mu_path[k] + at.var_path[k] * centred<A<T>>(load(x[i]), at.hi[k], at.lo[k]);  // through mu, var
        if (paths == WEIGHTED) {
            const A<T> wi = A<T>(columns ? w[0] : w[i]);
            statistics = only_if(wi > A<T>(0), wi * statistics);
        }
        dx = dx - statistics;
    }
};

template <class T, bool columns, int grad, int paths> void input_gradient(const Tile& t) {
    map<T, columns, reads_extra(grad)>(t, [&t](size_t r, size_t c, size_t first) INLINE_LAMBDA {
        return EachInputGradient<T, columns, grad, paths>{
            from<T>(t.x, r, c) + first, from<T>(t.dy, r, c) + first,
            reads_extra(grad) ? from<T>(t.extra, r, c) + first : nullptr,
            paths == WEIGHTED ? weights(t, r) + (columns ? 0 : first) : nullptr,
            {t.terms, columns ? first : c}, Slope<A<T>>(t.slope)};
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

#define XHAT_RAW_ACTIVATION_GRADS(columns)                                                                     \
    {raw_sums<columns, NO_ACTIVATION>, raw_sums<columns, LEAKY_RELU_FROM_X>, raw_sums<columns, LEAKY_RELU_FROM_Y>,  \
     raw_sums<columns, SILU_FROM_X>, raw_sums<columns, SILU_FROM_X_AND_RESIDUAL>}
template <class T> constexpr RawKernels raw_kernels() {
    if constexpr (std::is_same_v<T, float>)
        return {{raw_sums<false, MOMENTS>, raw_sums<true, MOMENTS>}, {XHAT_RAW_ACTIVATION_GRADS(false), XHAT_RAW_ACTIVATION_GRADS(true)}};
    else return {};
}

#define XHAT_WEIGHTED(kernel, ...) {kernel<__VA_ARGS__, false>, kernel<__VA_ARGS__, true>}
#define XHAT_PATHS(kernel, ...) {kernel<__VA_ARGS__, EVERY_NUMBER>, kernel<__VA_ARGS__, WEIGHTED>, kernel<__VA_ARGS__, CONSTANT>}
#define XHAT_ACTIVATION_GRADS(each, kernel, T, columns)                                                        \
    {each(kernel, T, columns, NO_ACTIVATION), each(kernel, T, columns, LEAKY_RELU_FROM_X),                    \
     each(kernel, T, columns, LEAKY_RELU_FROM_Y), each(kernel, T, columns, SILU_FROM_X),                      \
     each(kernel, T, columns, SILU_FROM_X_AND_RESIDUAL)}
#define XHAT_ACTIVATIONS(T, columns)                                                                \
    {XHAT_WEIGHTED(normalize, T, columns, IDENTITY), XHAT_WEIGHTED(normalize, T, columns, LEAKY_RELU),   \
     XHAT_WEIGHTED(normalize, T, columns, SILU)}
#define XHAT_KERNELS_OF(T)                                                                          \
    {{XHAT_WEIGHTED(moments, T, false), XHAT_WEIGHTED(moments, T, true)},                           \
     {moments<T, false, false, double>, moments<T, true, false, double>},                           \
     raw_kernels<T>(),                                                                              \
     {XHAT_ACTIVATIONS(T, false), XHAT_ACTIVATIONS(T, true)},                                       \
     {XHAT_ACTIVATION_GRADS(XHAT_WEIGHTED, gradient_sums, T, false), XHAT_ACTIVATION_GRADS(XHAT_WEIGHTED, gradient_sums, T, true)}, \
     {XHAT_ACTIVATION_GRADS(XHAT_PATHS, input_gradient, T, false), XHAT_ACTIVATION_GRADS(XHAT_PATHS, input_gradient, T, true)},     \
     widen<T>, narrow<T>}

}  // namespace

namespace xhat {
extern const Kernels XHAT_ISA;
const Kernels XHAT_ISA = {
    {XHAT_KERNELS_OF(double), XHAT_KERNELS_OF(float), XHAT_KERNELS_OF(float16), XHAT_KERNELS_OF(bfloat16)}};
}  // namespace xhat
