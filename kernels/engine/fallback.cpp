// The float64 fallback: runs the float64 kernel on a tile of any dtype and any stride.
//
// It serves what the other kernels can't take: arrays whose elements are not contiguous, coefficients near the ends
// of float's range (values near 1e-30 with a tiny eps have rstd = 1e30), and sums of 16-bit formats that float
// partial sums get wrong. Inputs are gathered and widened into buffers of doubles that stay in L1, the kernel runs on
// them, and results are rounded and scattered. It takes two to four times as long as a kernel of the dtype.
//
// pre alone is evaluated in the arithmetic of the dtype wherever the channel's coefficients of the forward pass fit in
// it, so that its sign does not depend on whether a pass, another channel or an array's strides led here.
#include <algorithm>

#include "engine/coefficients.h"
#include "engine/pass.h"

namespace xhat {

namespace {

using std::ptrdiff_t;
using std::size_t;

// One row of a tile, or of one of its channels: the strides are those of the pass, in elements.
struct RowOf {
    size_t row, channel, first;
    ptrdiff_t offset(ptrdiff_t row_stride, ptrdiff_t channel_stride, ptrdiff_t stride) const {
        return ptrdiff_t(row) * row_stride + ptrdiff_t(channel) * channel_stride + ptrdiff_t(first) * stride;
    }
};

// Of y = x: pre stands where a kernel reads x.
struct IdentityCoefficients {
    double zero[CHUNK] = {}, one[CHUNK];
    IdentityCoefficients() { std::fill_n(one, CHUNK, 1.0); }
    Coefficients from() const { return {zero, zero, one, zero, zero, zero, zero}; }
};

}  // namespace

// pre of a chunk whose buffers hold doubles, without a residual.
void Pass::before_activation(Tile t, double* pre) const {
    const auto linear = [this](Dtype dtype) { return kernels().of[dtype].normalize[columns][IDENTITY][false]; };
    const Coefficients& c = t.coefficients;
    const auto* const mu = static_cast<const double*>(c.mu_hi);
    const auto* const scale = static_cast<const double*>(c.scale);
    const auto* const beta = static_cast<const double*>(c.beta);
    float x[CHUNK], out[CHUNK], hi[CHUNK], lo[CHUNK], float_scale[CHUNK], float_beta[CHUNK];
    bool fits[CHUNK], all = true, any = false;
    for (size_t k = 0; k < (columns ? t.width : 1); k++) {
        fits[k] = ChannelCoefficients::pre_fits_float(mu[k], scale[k], beta[k], call.slope);
        all &= fits[k], any |= fits[k];
        hi[k] = float(mu[k]), lo[k] = float(mu[k] - double(hi[k]));
        float_scale[k] = float(scale[k]), float_beta[k] = float(beta[k]);
    }
    t.out.at = pre;
    if (!all) linear(FLOAT64)(t);
    if (!any) return;
    kernels().of[FLOAT32].narrow(static_cast<const double*>(t.x.at), x, 1, t.width);
    t.x.at = x, t.out.at = out;
    t.coefficients = {hi, lo, float_scale, float_beta, nullptr, nullptr, nullptr};
    linear(FLOAT32)(t);
    for (size_t i = 0; i < t.width; i++) pre[i] = fits[columns ? i : 0] ? double(out[i]) : pre[i];
}

void Pass::run_fallback(const Tile& t, Kernel double_kernel) const {
    const KernelsOf& of = kernels().of[call.dtype];
    const auto size = ptrdiff_t(SIZE_OF[call.dtype]);
    double x[CHUNK], dy[CHUNK], saved[CHUNK], out[CHUNK], dresidual[CHUNK], pre[CHUNK];
    const IdentityCoefficients identity;
    const bool has_pre = separates_pre && (backward || t.out.at);  // not if moments are computed
    const auto gather = [&](const Source& s, const Array& a, const RowOf& r, size_t n, double* buffer) {
        const auto at = r.offset(s.row, s.channel, row_stride(a)) * size;
        if (s.at) of.widen(static_cast<const char*>(s.at) + at, row_stride(a), n, buffer);
    };
    const auto scatter = [&](const Target& s, const Array& a, const RowOf& r, size_t n, const double* buffer) {
        const auto at = r.offset(s.row, s.channel, row_stride(a)) * size;
        if (s.at) of.narrow(buffer, static_cast<char*>(s.at) + at, row_stride(a), n);
    };
    // The tile of a chunk: one row of one channel, in the buffers.
    const auto chunk_of = [&](const RowOf& r, size_t n) {
        const size_t k = columns ? r.first : r.channel, sums = columns ? r.first : r.channel * LANES;
        const auto coefficient = [&](const void* p) { return p ? static_cast<const double*>(p) + k : nullptr; };
        const Coefficients& c = t.coefficients;
        Tile u = t;
        u.rows = u.channels = 1;
        u.width = n;
        u.x.at = x, u.dy.at = dy, u.saved.at = saved, u.out.at = out, u.dresidual.at = dresidual;
        if (t.weights) u.weights = t.weights + ptrdiff_t(r.row) * t.weights_row + (columns ? 0 : r.first);
        u.shift = t.shift ? t.shift + k : nullptr;
        u.sum = t.sum ? t.sum + sums : nullptr;
        u.sum_product = t.sum_product ? t.sum_product + sums : nullptr;
        u.coefficients = {coefficient(c.mu_hi), coefficient(c.mu_lo),      coefficient(c.scale),
                          coefficient(c.beta),  coefficient(c.g_hi),  coefficient(c.through_var),
                          coefficient(c.low_terms)};
        u.via_buffer = u.stream = false;
        u.prefetch_next_block = 0;  // there is nothing behind a buffer
        return u;
    };
    for (size_t row = 0; row < t.rows; row++)
        for (size_t channel = 0; channel < t.channels; channel++)
            for (size_t first = 0; first < t.width; first += CHUNK) {
                const RowOf r{row, channel, first};
                const size_t n = std::min(CHUNK, t.width - first);
                gather(t.x, call.x, r, n, x);
                gather(t.dy, call.dy, r, n, dy);
                gather(t.saved, call.saved, r, n, saved);
                Tile u = chunk_of(r, n);
                if (has_pre) {
                    before_activation(u, pre);
                    if (backward) u.saved.at = pre;
                    else u.x.at = pre, u.coefficients = identity.from();
                }
                double_kernel(u);
                scatter(t.out, call.out, r, n, out);
                scatter(t.dresidual, call.dresidual, r, n, dresidual);
            }
}

}  // namespace xhat
