#include "pass.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

namespace xhat {

namespace {

constexpr std::size_t CHUNK = 512;  // a multiple of 4 * LANES: cutting a row there keeps the order of its sums

const char* address(const void* at, std::ptrdiff_t elements, Dtype dtype) {
    return static_cast<const char*>(at) + elements * std::ptrdiff_t(SIZE_OF[dtype]);
}
void* address(void* at, std::ptrdiff_t elements, Dtype dtype) {
    return static_cast<char*>(at) + elements * std::ptrdiff_t(SIZE_OF[dtype]);
}

}  // namespace

Pass::Pass(const Batch& batch, bool is_backward, bool by_columns, std::size_t bytes)
    : b(batch), backward(is_backward), columns(by_columns) {
    const bool weighted = b.weights != nullptr;
    neighbours = true;
    std::size_t arrays = 0;
    for (const Array* a : {&b.x, &b.dy, &b.extra, &b.out, &b.dresidual}) {
        neighbours &= !a->at || step(*a) == 1;
        arrays += a->at != nullptr;
    }
    in_place = b.out.at && (b.out.at == b.x.at || b.out.at == b.dy.at);
    // Of 16-bit numbers g would be rounded.
    keeps_g = backward && b.reduce && b.map && (b.activation_grad == SILU_FROM_X || b.activation_grad == SILU_FROM_X_AND_RESIDUAL) && neighbours &&
              SIZE_OF[b.dtype] > 2 && (b.dresidual.at || !in_place);
    const Paths paths = std::isinf(b.m) ? CONSTANT : weighted ? WEIGHTED : EVERY_NUMBER;
    const auto choose = [&](const KernelsOf& of, Kernel& reduce_kernel, Kernel& map_kernel) {
        if (backward) {
            reduce_kernel = of.gradient_sums[columns][b.activation_grad][weighted];
            map_kernel = of.input_gradient[columns][keeps_g ? NO_ACTIVATION : b.activation_grad][paths];
        } else {
            // Moments that are asked for themselves are merged with others, and have all their digits.
            reduce_kernel = b.map || weighted ? of.moments[columns][weighted] : of.moments_alone[columns];
            map_kernel = of.normalize[columns][b.activation][b.extra.at != nullptr];
        }
    };
    choose(kernels().of[b.dtype], reduce, map);
    choose(kernels().of[FLOAT64], wide_reduce, wide_map);
    const bool quick = !weighted && neighbours && (backward || b.map);
    brief = quick && SIZE_OF[b.dtype] == 2;
    raw = quick && b.dtype == FLOAT32;
    const RawKernels& of_raw = kernels().of[b.dtype].raw;
    quick_reduce = !raw ? reduce : backward ? of_raw.gradient_sums[columns][b.activation_grad] : of_raw.moments[columns];
    read = 1 + (b.dy.at != nullptr) + (b.extra.at != nullptr);
    large = arrays * bytes >= STREAM_FROM && (!keeps_g || b.dresidual.at);  // what g was written to is in the caches
    near = arrays * bytes <= NEAR;
    part = bytes > b.size() * SIZE_OF[b.dtype];
}

Tile Pass::tile(std::size_t row, std::size_t channel, std::size_t place, std::size_t rows, std::size_t channels,
                std::size_t width) const {
    const auto at = [&](const Array& a) {
        const auto elements = std::ptrdiff_t(row) * a.outer + std::ptrdiff_t(channel) * a.channel +
                              std::ptrdiff_t(place) * step(a);
        return a.at ? address(a.at, elements, b.dtype) : nullptr;
    };
    Tile t{};
    t.rows = rows;
    t.channels = channels;
    t.width = width;
    t.x = {at(b.x), b.x.outer, b.x.channel};
    t.dy = {at(b.dy), b.dy.outer, b.dy.channel};
    t.extra = {at(b.extra), b.extra.outer, b.extra.channel};
    t.out = {at(b.out), b.out.outer, b.out.channel};
    t.dresidual = {at(b.dresidual), b.dresidual.outer, b.dresidual.channel};
    t.weights = b.weights ? b.weights + row * b.inner + place : nullptr;
    t.weights_row = std::ptrdiff_t(b.inner);
    t.slope = b.slope;
    t.staged = in_place;
    t.near = near;
    return t;
}

double Pass::value(std::size_t channel, std::size_t i) const {
    const auto elements = std::ptrdiff_t(i / b.inner) * b.x.outer + std::ptrdiff_t(channel) * b.x.channel +
                          std::ptrdiff_t(i % b.inner) * b.x.inner;
    double value;
    kernels().of[b.dtype].widen(address(b.x.at, elements, b.dtype), 1, 1, &value);
    return value;
}

void Pass::values(std::size_t row, double* to) const {
    kernels().of[b.dtype].widen(address(b.x.at, std::ptrdiff_t(row) * b.x.outer, b.dtype), b.x.channel, b.channels, to);
}

double Pass::origin_from(double mean, double any) {
    const double rounded = double(float(mean));
    return rounded == 0 || !std::isfinite(rounded) ? any : rounded;
}

double Pass::origin(std::size_t channel, std::size_t first, std::size_t last, std::size_t heaviest) const {
    if (!brief) return value(channel, heaviest);
    constexpr std::size_t most = 16;
    const std::size_t rows = (last - first) / b.inner, place = first % b.inner;
    const bool down = rows >= most / 2;  // the same place of several rows; else several places of the first row
    const std::size_t places = down ? rows : std::min(last - first, b.inner - place);
    const std::size_t count = std::min(most, places);
    const std::ptrdiff_t step = down ? b.x.outer : b.x.inner;
    const auto at = std::ptrdiff_t(first / b.inner) * b.x.outer + std::ptrdiff_t(channel) * b.x.channel +
                    std::ptrdiff_t(place) * b.x.inner;
    double numbers[most], sum = 0, any = 0;
    kernels().of[b.dtype].widen(address(b.x.at, at, b.dtype), std::ptrdiff_t(places / count) * step, count, numbers);
    for (std::size_t k = 0; k < count; k++) {
        sum += numbers[k];
        any = any == 0 ? numbers[k] : any;
    }
    return origin_from(sum / double(count), any);
}

// The float64 kernel on buffers: gathered and widened before, rounded and scattered after.
void Pass::run_widened(const Tile& t, Kernel kernel) const {
    const KernelsOf& of = kernels().of[b.dtype];
    double x[CHUNK], dy[CHUNK], extra[CHUNK], out[CHUNK], dresidual[CHUNK];
    for (std::size_t r = 0; r < t.rows; r++)
        for (std::size_t c = 0; c < t.channels; c++)
            for (std::size_t i = 0; i < t.width; i += CHUNK) {
                const std::size_t n = std::min(CHUNK, t.width - i), k = columns ? i : c;
                const auto place = [&](const auto& s, const Array& a) {
                    return std::ptrdiff_t(r) * s.row + std::ptrdiff_t(c) * s.channel + std::ptrdiff_t(i) * step(a);
                };
                const auto widen = [&](const Source& s, const Array& a, double* buffer) {
                    if (s.at) of.widen(address(s.at, place(s, a), b.dtype), step(a), n, buffer);
                };
                const auto narrow = [&](const Target& s, const Array& a, const double* buffer) {
                    if (s.at) of.narrow(buffer, address(s.at, place(s, a), b.dtype), step(a), n);
                };
                const auto term = [&](const void* p) { return p ? static_cast<const double*>(p) + k : nullptr; };
                widen(t.x, b.x, x);
                widen(t.dy, b.dy, dy);
                widen(t.extra, b.extra, extra);
                Tile u = t;
                u.rows = u.channels = 1;
                u.width = n;
                u.x.at = x, u.dy.at = dy, u.extra.at = extra, u.out.at = out, u.dresidual.at = dresidual;
                if (t.weights) u.weights = t.weights + std::ptrdiff_t(r) * t.weights_row + (columns ? 0 : i);
                u.origin = t.origin ? t.origin + k : nullptr;
                u.sum = t.sum ? t.sum + (columns ? i : c * LANES) : nullptr;
                u.sum_product = t.sum_product ? t.sum_product + (columns ? i : c * LANES) : nullptr;
                u.terms = {term(t.terms.mu_hi), term(t.terms.mu_lo),      term(t.terms.scale),
                           term(t.terms.beta),  term(t.terms.kink),       term(t.terms.through_mu),
                           term(t.terms.through_var)};
                u.staged = u.stream = false;
                u.following = 0;  // nothing lies behind a buffer
                kernel(u);
                narrow(t.out, b.out, out);
                narrow(t.dresidual, b.dresidual, dresidual);
            }
}

}  // namespace xhat
