// The kernels: the five equations as loops over a tile, compiled once per instruction set (XHAT_ISA is its name).
//
//   moments         sum += w (x - shift)    product += w (x - shift)^2                    one read
//   normalize       y = act(scale (x - mu) + beta [+ residual])                           one read, one write
//   gradient_sums   sum += g                product += g (x - mu)                         two reads
//   input_gradient  dx = scale (g - w mean_g) - w through_var (x - mu)                    two reads, one write
//
// with g = dy act'(pre) and mean_g = sum_dy / m. Each kernel is a functor that evaluates one element, handed to a loop
// of sums.h, uncentered_sums.h or maps.h. The loops are plain C++, which the compiler vectorizes for each instruction
// set.
//
// Sums are accumulated in double; those of 16-bit formats after eight terms in float (moments.h bounds the error).
// Maps are evaluated in the arithmetic type of the dtype. The order of additions depends on the tile alone, nothing
// is contracted except exact products, and there is no fast-math: every instruction set gives the same bits.
//
// Only this file, and the headers it includes, is compiled for wider instruction sets. It exports XHAT_ISA and
// nothing else.
#include "isa/formulas.h"
#include "isa/maps.h"
#include "isa/sums.h"
#include "isa/uncentered_sums.h"

#include <type_traits>
#include <utility>

namespace {

// ---------------------------------------------------------------------------------------------------- moments

// The type in which UNROLL terms are added before they are widened to double.
template <class T, bool weighted> using PartialOf = std::conditional_t<sizeof(T) == 2 && !weighted, float, double>;

template <class T, bool columns, bool weighted, class PartialType> struct MomentTerms {
    using Partial = PartialType;
    const T* RESTRICT x;
    const double* RESTRICT w;
    const double* RESTRICT shift;
    ALWAYS_INLINE void prefetch_from(size_t i) const { prefetch_elements(x + i, UNROLL<Partial> * LANES); }
    ALWAYS_INLINE void operator()(size_t i, size_t l, Partial& u, Partial& v) const {
        const Partial d = Partial(load(x[i])) - Partial(columns ? shift[l] : shift[0]);
        if constexpr (weighted) {
            const Partial wi = columns ? w[0] : w[i];
            const Partial kept = only_if(wi > 0, d);  // x may be NaN where w == 0 (padding), and 0 * NaN is NaN
            u = wi * kept;
            v = u * kept;
        } else {
            u = d;
            v = d * d;
        }
    }
};

template <class T, bool columns, bool weighted, class Partial = PartialOf<T, weighted>> void moments(const Tile& t) {
    reduce<T, columns, false>(t, [&t](size_t r, size_t k) INLINE_LAMBDA {
        return MomentTerms<T, columns, weighted, Partial>{element<T, columns>(t.x, r, k),
                                                          weighted ? weights(t, r) : nullptr, t.shift + k};
    });
}

// ---------------------------------------------------------------------------------------------- gradient sums

// G is the type of the elements of `dy`: T, or the arithmetic type if they are gradients that were computed into a
// buffer.
template <class T, class G, bool columns, ActivationGrad grad, bool weighted> struct GradientTerms {
    using Partial = PartialOf<T, weighted>;
    const T* RESTRICT x;
    const G* RESTRICT dy;
    const T* RESTRICT saved;
    const double* RESTRICT w;
    const double* RESTRICT mu;
    CoefficientsAt<A<T>, columns> c;
    Slope<A<T>> slope;
    ALWAYS_INLINE void prefetch_from(size_t i) const {
        prefetch_elements(x + i, UNROLL<Partial> * LANES);
        prefetch_elements(dy + i, UNROLL<Partial> * LANES);
        if (reads_saved(grad)) prefetch_elements(saved + i, UNROLL<Partial> * LANES);
    }
    ALWAYS_INLINE A<T> gradient(size_t i, size_t k) const {
        const A<T> si = reads_saved(grad) ? A<T>(load(saved[i])) : A<T>(0);
        const A<T> xi = grad == NO_ACTIVATION ? A<T>(0) : A<T>(load(x[i]));
        return through_activation<grad>(A<T>(load(dy[i])), xi, si, c, k, slope);
    }
    ALWAYS_INLINE Partial difference(size_t i, size_t k) const {
        if constexpr (sizeof(Partial) == 4) return c.difference(load(x[i]), k);
        else return double(load(x[i])) - mu[k];
    }
    ALWAYS_INLINE void operator()(size_t i, size_t l, Partial& u, Partial& v) const {
        const size_t k = c.index(l);
        u = Partial(gradient(i, k));
        v = u * difference(i, k);
        if constexpr (weighted) {  // padding (w == 0) with zero gradient must not add x = NaN to the sum
            const Partial wi = columns ? w[0] : w[i];
            v = only_if((wi != 0) | (u != 0), v);
        }
    }
};

// The functor of row r, channel c, from element `first` on.
template <class T, bool columns, ActivationGrad grad, bool weighted>
inline GradientTerms<T, T, columns, grad, weighted> gradient_terms(const Tile& t, size_t r, size_t c, size_t first) {
    return {from<T>(t.x, r, c) + first,
            from<T>(t.dy, r, c) + first,
            reads_saved(grad) ? from<T>(t.saved, r, c) + first : nullptr,
            weighted ? weights(t, r) + (columns ? 0 : first) : nullptr,
            t.shift + (columns ? first : c),
            {t.coefficients, columns ? first : c},
            Slope<A<T>>(t.slope)};
}

// Where the g of a run are computed: where the map will read them (Pass::keeps_g), or in the buffer.
template <class G> G* g_of(const Tile& t, size_t r, size_t c, size_t first, G* buffer) {
    return t.out.at ? to<G>(t.out, r, c) + first : buffer;
}
template <class Terms, class G> inline void compute_gradients(const Terms& terms, size_t n, G* RESTRICT g) {
    for (size_t l = 0; l < n; l++) g[l] = terms.gradient(l, terms.c.index(l));
}

// In two loops: one computes g into a buffer, the other adds. Each of them is simple enough to be vectorized; one
// loop of both is not, if act' takes exp, and in columns of float64 behind leaky_relu (there it is 14 times slower).
template <class T, bool columns, ActivationGrad grad, bool weighted> void gradient_sums_buffered(const Tile& t) {
    constexpr size_t rows = columns ? 4 : 1, width = CHUNK / rows;
    const size_t ahead = columns ? rows_ahead<T>(t) : 1;
    A<T> buffer[rows][width];
    for (size_t r = 0; r < t.rows;) {
        const size_t four = t.rows - r >= rows ? rows : 1;
        for (size_t c = 0; c < t.channels; c++)
            for (size_t i = 0; i < t.width; i += width) {
                const size_t n = least(t.width - i, width);
                if (columns) {
                    prefetch_rows<T>(t, t.x, r + ahead, i, n);
                    prefetch_rows<T>(t, t.dy, r + ahead, i, n);
                } else {
                    prefetch_run<T>(t, t.x, ahead, r, c, i, n);
                    prefetch_run<T>(t, t.dy, ahead, r, c, i, n);
                }
                const auto terms_of_g = [&](size_t k) {
                    const auto terms = gradient_terms<T, columns, grad, weighted>(t, r + k, c, i);
                    A<T>* const g = g_of(t, r + k, c, i, buffer[k]);
                    compute_gradients(terms, n, g);
                    return GradientTerms<T, A<T>, columns, NO_ACTIVATION, weighted>{terms.x, g, nullptr, terms.w,
                                                                                    terms.mu, terms.c, terms.slope};
                };
                double* sum = t.sum + (columns ? i : c * LANES);
                double* product = t.sum_product + (columns ? i : c * LANES);
                const auto first = terms_of_g(0);
                if (!columns) sum_lanes(first, first, n, sum, product);
                else if (four == 4) sum_rows({first, terms_of_g(1), terms_of_g(2), terms_of_g(3)}, n, sum, product);
                else sum_rows({first}, n, sum, product);
            }
        r += four;
    }
}

template <class T, bool columns, ActivationGrad grad, bool weighted> void gradient_sums(const Tile& t) {
    if constexpr (takes_exp(grad) || (sizeof(T) == 8 && columns && grad != NO_ACTIVATION)) {
        gradient_sums_buffered<T, columns, grad, weighted>(t);
    } else {
        reduce<T, columns, reads_saved(grad)>(t, [&t](size_t r, size_t k) INLINE_LAMBDA {
            return gradient_terms<T, columns, grad, weighted>(t, r, columns ? 0 : k, columns ? k : 0);
        });
    }
}

// Moments about zero.
template <bool columns> void uncentered_moments(const Tile& t) {
    if constexpr (columns)
        reduce_uncentered_columns<MOMENTS>(
            t, t.width, [&t](size_t r, size_t, size_t first, size_t, float*) INLINE_LAMBDA {
                return input_rows_at(t, r, first);
            });
    else
        reduce_uncentered_lanes<MOMENTS>(t, [&t](size_t r, size_t c, size_t first, size_t, float*) INLINE_LAMBDA {
            return inputs_at(t, r, c, first);
        });
}

// Gradient sums about zero. If act' takes exp, g is computed first, and then summed without activation.
template <bool columns, ActivationGrad grad> void uncentered_gradient_sums(const Tile& t) {
    constexpr ActivationGrad summed = takes_exp(grad) ? NO_ACTIVATION : grad;
    const auto computed = [&t](size_t r, size_t c, size_t first, size_t n, float* buffer) {
        float* const g = g_of(t, r, c, first, buffer);
        compute_gradients(gradient_terms<float, columns, grad, false>(t, r, c, first), n, g);
        return g;
    };
    if constexpr (columns) {
        const auto inputs = [&](size_t r, size_t rows, size_t first, size_t n, float* buffer) INLINE_LAMBDA {
            InputRows in = input_rows_at(t, r, first);
            if constexpr (takes_exp(grad)) {
                for (size_t k = rows; k-- > 0;) in.first.dy = computed(r + k, 0, first, n, buffer + k * PREFETCH_BLOCK);
                in.dy = t.out.at ? t.out.row : ptrdiff_t(PREFETCH_BLOCK);
            }
            return in;
        };
        reduce_uncentered_columns<summed>(t, takes_exp(grad) ? PREFETCH_BLOCK : t.width, inputs);
    } else {
        const auto inputs = [&](size_t r, size_t c, size_t first, size_t n, float* buffer) INLINE_LAMBDA {
            Inputs in = inputs_at(t, r, c, first);
            if constexpr (takes_exp(grad)) in.dy = computed(r, c, first, n, buffer);
            return in;
        };
        reduce_uncentered_lanes<summed>(t, inputs);
    }
}

// ------------------------------------------------------------------------------------------------------- maps

template <class T, bool columns, Activation activation, bool residual> struct NormalizedElement {
    static constexpr bool simple = !takes_exp(activation);
    const T* RESTRICT x;
    const T* RESTRICT r;
    CoefficientsAt<A<T>, columns> c;
    Slope<A<T>> slope;
    ALWAYS_INLINE void operator()(size_t i, A<T>& y, A<T>&) const {
        A<T> pre = c.pre(load(x[i]), c.index(i));
        if (residual) pre = pre + load(r[i]);
        y = act<activation>(pre, slope);
    }
};

template <class T, bool columns, Activation activation, bool residual> void normalize(const Tile& t) {
    map<T, columns, false>(t, [&t](size_t r, size_t c, size_t first) INLINE_LAMBDA {
        return NormalizedElement<T, columns, activation, residual>{
            from<T>(t.x, r, c) + first, residual ? from<T>(t.saved, r, c) + first : nullptr,
            {t.coefficients, columns ? first : c}, Slope<A<T>>(t.slope)};
    });
}

template <class T, bool columns, ActivationGrad grad, Statistics statistics> struct InputGradientElement {
    static constexpr bool simple = !takes_exp(grad);  // four rows at once would not be vectorized
    const T* RESTRICT x;
    const T* RESTRICT dy;
    const T* RESTRICT saved;
    const double* RESTRICT w;
    CoefficientsAt<A<T>, columns> c;
    Slope<A<T>> slope;
    ALWAYS_INLINE void operator()(size_t i, A<T>& dx, A<T>& dresidual) const {
        const size_t k = c.index(i);
        const A<T> si = reads_saved(grad) ? A<T>(load(saved[i])) : A<T>(0);
        const A<T> g = through_activation<grad>(A<T>(load(dy[i])), A<T>(load(x[i])), si, c, k, slope);
        if (reads_saved(grad)) dresidual = g;
        if constexpr (statistics == CONSTANT) {
            dx = c.scale[k] * g;
            return;
        }
        // g and x lose the high parts of their means first, which is exact near the mean. The low parts follow, scaled.
        const A<T> mean = c.g_hi[k], through = c.through_var[k] * (A<T>(load(x[i])) - c.hi[k]) - c.low_terms[k];
        if constexpr (statistics == BATCH) {
            dx = c.scale[k] * (g - mean) - through;
        } else {
            const double wi = columns ? w[0] : w[i];
            const bool counts = wi > 0;
            if constexpr (statistics == MASKED) {
                dx = c.scale[k] * (g - only_if(counts, mean)) - only_if(counts, through);
            } else {  // w mean_g in double: if it were rounded, the digits of g would not cancel
                const A<T> deviation = A<T>(double(g) - only_if(counts, wi * double(mean)));
                dx = c.scale[k] * deviation - only_if(counts, A<T>(wi) * through);
            }
        }
    }
};

template <class T, bool columns, ActivationGrad grad, Statistics statistics> void input_gradient(const Tile& t) {
    map<T, columns, reads_saved(grad)>(t, [&t](size_t r, size_t c, size_t first) INLINE_LAMBDA {
        return InputGradientElement<T, columns, grad, statistics>{
            from<T>(t.x, r, c) + first, from<T>(t.dy, r, c) + first,
            reads_saved(grad) ? from<T>(t.saved, r, c) + first : nullptr,
            statistics == MASKED || statistics == WEIGHTED ? weights(t, r) + (columns ? 0 : first) : nullptr,
            {t.coefficients, columns ? first : c}, Slope<A<T>>(t.slope)};
    });
}

// ------------------------------------------------------------------------------------------------ conversions

// Between `count` elements, `stride` apart, and contiguous doubles.
template <class T> void widen(const void* at, ptrdiff_t stride, size_t count, double* RESTRICT to) {
    const T* RESTRICT p = static_cast<const T*>(at);
    for (size_t i = 0; i < count; i++) to[i] = double(load(p[ptrdiff_t(i) * stride]));
}
template <class T> void narrow(const double* RESTRICT from, void* at, ptrdiff_t stride, size_t count) {
    T* RESTRICT p = static_cast<T*>(at);
    for (size_t i = 0; i < count; i++) store(p[ptrdiff_t(i) * stride], from[i]);
}

// ------------------------------------------------------------------------------------------------------ table

// The values of an enum, from 0 to `count` - 1, as a pack: the tables have a kernel for each of them, in their order.
template <class Enum, Enum... values> struct Values {};
template <class Enum, int... values> Values<Enum, Enum(values)...> values_of(std::integer_sequence<int, values...>);
template <class Enum, int count>
using ValuesOf = decltype(values_of<Enum>(std::make_integer_sequence<int, count>()));

template <class T, ActivationGrad... grad> constexpr UncenteredKernels uncentered_kernels() {
    if constexpr (std::is_same_v<T, float>)
        return {{uncentered_moments<false>, uncentered_moments<true>},
                {{uncentered_gradient_sums<false, grad>...}, {uncentered_gradient_sums<true, grad>...}}};
    else return {};
}

template <class T, Activation... activation, ActivationGrad... grad>
constexpr KernelsOf kernels_of(Values<Activation, activation...>, Values<ActivationGrad, grad...>) {
    return {{{moments<T, false, false>, moments<T, false, true>}, {moments<T, true, false>, moments<T, true, true>}},
            {moments<T, false, false, double>, moments<T, true, false, double>},
            uncentered_kernels<T, grad...>(),
            {{{normalize<T, false, activation, false>, normalize<T, false, activation, true>}...},
             {{normalize<T, true, activation, false>, normalize<T, true, activation, true>}...}},
            {{{gradient_sums<T, false, grad, false>, gradient_sums<T, false, grad, true>}...},
             {{gradient_sums<T, true, grad, false>, gradient_sums<T, true, grad, true>}...}},
            {{{input_gradient<T, false, grad, BATCH>, input_gradient<T, false, grad, MASKED>,
               input_gradient<T, false, grad, WEIGHTED>, input_gradient<T, false, grad, CONSTANT>}...},
             {{input_gradient<T, true, grad, BATCH>, input_gradient<T, true, grad, MASKED>,
               input_gradient<T, true, grad, WEIGHTED>, input_gradient<T, true, grad, CONSTANT>}...}},
            widen<T>, narrow<T>};
}
template <class T> constexpr KernelsOf kernels_of() {
    return kernels_of<T>(ValuesOf<Activation, ACTIVATIONS>(), ValuesOf<ActivationGrad, ACTIVATION_GRADS>());
}

}  // namespace

namespace xhat {
extern const Kernels XHAT_ISA;
constexpr Kernels XHAT_ISA = {
    {kernels_of<double>(), kernels_of<float>(), kernels_of<float16>(), kernels_of<bfloat16>()}};
}  // namespace xhat
