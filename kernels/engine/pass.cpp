// Which kernels a pass runs, and where its tiles are in memory.
#include "engine/pass.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

namespace xhat {

namespace {

void* offset(void* at, std::ptrdiff_t elements, Dtype dtype) {
    return static_cast<char*>(at) + elements * std::ptrdiff_t(SIZE_OF[dtype]);
}

// Whether all weights are 0 or 1.
bool is_mask(const Call& call) {
    return std::all_of(call.weights, call.weights + call.outer * call.inner, [](double w) { return w == 0 || w == 1; });
}

}  // namespace

Pass::Pass(const Call& c, bool is_backward, bool by_columns, std::size_t bytes)
    : call(c), backward(is_backward), columns(by_columns) {
    contiguous = true;
    std::size_t arrays = 0;
    for (const Array* a : {&call.x, &call.dy, &call.saved, &call.out, &call.dresidual}) {
        contiguous &= !a->at || row_stride(*a) == 1;
        arrays += a->at != nullptr;
    }
    in_place = call.out.at && (call.out.at == call.x.at || call.out.at == call.dy.at);
    // Not for 16-bit formats, where g would be rounded.
    keeps_g = backward && call.reduce && call.map && takes_exp(call.activation_grad) && contiguous &&
              SIZE_OF[call.dtype] > 2 && (call.dresidual.at || !in_place);
    const bool fast = !call.weights && contiguous && (backward || call.map);
    float_partials = fast && SIZE_OF[call.dtype] == 2;
    uncentered = fast && call.dtype == FLOAT32;
    inputs = 1 + (call.dy.at != nullptr) + (call.saved.at != nullptr);
    // The lines of dx that hold g are in the cache already, so they are not streamed.
    streams = arrays * bytes >= STREAM_BYTES && (!keeps_g || call.dresidual.at);
    fits_in_cache = arrays * bytes <= CACHE_BYTES;
    separates_pre = call.dtype != FLOAT64 && (!backward || call.activation_grad == LEAKY_RELU_FROM_X);
    is_part = bytes > call.size() * SIZE_OF[call.dtype];
    choose_kernels();
}

void Pass::choose_kernels() {
    const bool weighted = call.weights != nullptr;
    const Statistics statistics = std::isinf(call.m) ? CONSTANT : !weighted ? BATCH : is_mask(call) ? MASKED : WEIGHTED;
    const auto choose = [&](const KernelsOf& of, ActivationGrad grad, Kernel& reduce, Kernel& map) {
        if (backward) {
            reduce = of.gradient_sums[columns][grad][weighted];
            map = of.input_gradient[columns][keeps_g ? NO_ACTIVATION : grad][statistics];
        } else {
            // Moments without a map (xhat.moments) may be merged with others later: in double from the first term.
            reduce = call.map || weighted ? of.moments[columns][weighted] : of.moments_in_double[columns];
            map = of.normalize[columns][call.activation][call.saved.at != nullptr];
        }
    };
    const KernelsOf& of = kernels().of[call.dtype];
    choose(of, call.activation_grad, reduce_, map_);
    const ActivationGrad in_double = backward && separates_pre ? LEAKY_RELU_FROM_Y : call.activation_grad;
    choose(kernels().of[FLOAT64], in_double, double_reduce_, double_map_);
    fast_reduce_ = reduce_;
    const UncenteredKernels& fast = of.uncentered;
    if (uncentered) fast_reduce_ = backward ? fast.gradient_sums[columns][call.activation_grad] : fast.moments[columns];
}

Tile Pass::tile(std::size_t row, std::size_t channel, std::size_t place, std::size_t rows, std::size_t channels,
                std::size_t width) const {
    const auto at = [&](const Array& a) {
        const auto elements = std::ptrdiff_t(row) * a.outer + std::ptrdiff_t(channel) * a.channel +
                              std::ptrdiff_t(place) * row_stride(a);
        return a.at ? offset(a.at, elements, call.dtype) : nullptr;
    };
    Tile t{};
    t.rows = rows;
    t.channels = channels;
    t.width = width;
    t.x = {at(call.x), call.x.outer, call.x.channel};
    t.dy = {at(call.dy), call.dy.outer, call.dy.channel};
    t.saved = {at(call.saved), call.saved.outer, call.saved.channel};
    t.out = {at(call.out), call.out.outer, call.out.channel};
    t.dresidual = {at(call.dresidual), call.dresidual.outer, call.dresidual.channel};
    t.weights = call.weights ? call.weights + row * call.inner + place : nullptr;
    t.weights_row = std::ptrdiff_t(call.inner);
    t.slope = call.slope;
    t.via_buffer = in_place;
    t.fits_in_cache = fits_in_cache;
    return t;
}

void Pass::first_elements(std::size_t row, double* to) const {
    const auto at = std::ptrdiff_t(row) * call.x.outer;
    kernels().of[call.dtype].widen(offset(call.x.at, at, call.dtype), call.x.channel, call.channels, to);
}

double Pass::shift_from_mean(double mean, double any) {
    const double rounded = double(float(mean));
    return rounded == 0 || !std::isfinite(rounded) ? any : rounded;
}

double Pass::shift_of(std::size_t channel, std::size_t first, std::size_t last, std::size_t heaviest) const {
    const std::size_t inner = call.inner;
    const auto read = [&](std::size_t index, std::ptrdiff_t stride, std::size_t count, double* to) {
        const auto at = std::ptrdiff_t(index / inner) * call.x.outer + std::ptrdiff_t(channel) * call.x.channel +
                        std::ptrdiff_t(index % inner) * call.x.inner;
        kernels().of[call.dtype].widen(offset(call.x.at, at, call.dtype), stride, count, to);
    };
    constexpr std::size_t most = 16;
    double values[most], sum = 0, any = 0;
    if (!float_partials) {
        read(heaviest, 1, 1, values);
        return values[0];
    }
    // The same place in several rows or, if there are few rows, several places in the first one.
    const std::size_t rows = (last - first) / inner;
    const bool down = rows >= most / 2;
    const std::size_t places = down ? rows : std::min(last - first, inner - first % inner);
    const std::size_t count = std::min(most, places);
    read(first, std::ptrdiff_t(places / count) * (down ? call.x.outer : call.x.inner), count, values);
    for (std::size_t k = 0; k < count; k++) {
        sum += values[k];
        any = any == 0 ? values[k] : any;
    }
    return shift_from_mean(sum / double(count), any);
}

}  // namespace xhat
