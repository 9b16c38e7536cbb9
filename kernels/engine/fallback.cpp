// The float64 fallback: runs the float64 kernel on a tile of any dtype and any stride.
//
// It serves what the other kernels can't take: arrays whose elements are not contiguous, coefficients near the ends
// of float's range (values near 1e-30 with a tiny eps have rstd = 1e30), and sums of 16-bit formats that float
// partial sums get wrong. Inputs are gathered and widened into buffers of doubles that stay in L1, the kernel runs on
// them, and results are rounded and scattered. It takes two to four times as long as a kernel of the dtype.
#include <algorithm>

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

}  // namespace

void Pass::run_fallback(const Tile& t, Kernel double_kernel) const {
    const KernelsOf& of = kernels().of[call.dtype];
    const auto size = ptrdiff_t(SIZE_OF[call.dtype]);
    double x[CHUNK], dy[CHUNK], saved[CHUNK], out[CHUNK], dresidual[CHUNK];
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
                          coefficient(c.beta),  coefficient(c.through_mu), coefficient(c.through_var)};
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
                double_kernel(chunk_of(r, n));
                scatter(t.out, call.out, r, n, out);
                scatter(t.dresidual, call.dresidual, r, n, dresidual);
            }
}

}  // namespace xhat
