// Chooses the traversal and the number of threads for a call.
#include "engine/call.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "engine/moments.h"
#include "engine/pass.h"
#include "engine/threads.h"

namespace xhat {

namespace {

using std::ptrdiff_t;
using std::size_t;

// Columns if neighbouring elements belong to different channels, or if a channel's contiguous runs are so short that
// reducing the lanes of each would cost too much.
bool by_columns(const Call& call) {
    if (call.inner == 1) return true;
    const size_t shortest = call.outer < FEW_ROWS ? LANES : SHORT_RUN[call.dtype];
    bool short_runs = call.inner < shortest && !call.weights;
    for (const Array* a : {&call.x, &call.dy, &call.saved, &call.out, &call.dresidual})
        short_runs &= !a->at || (a->inner == 1 && a->channel == ptrdiff_t(call.inner));
    return short_runs;
}

// The same call for channels [first, first + count).
Call channels_of(const Call& call, size_t first, size_t count) {
    Call part = call;
    part.channels = count;
    for (Array* a : {&part.x, &part.dy, &part.saved, &part.out, &part.dresidual})
        if (a->at) a->at = static_cast<char*>(a->at) + ptrdiff_t(first) * a->channel * ptrdiff_t(SIZE_OF[call.dtype]);
    for (const double** p : {&part.gamma, &part.beta})
        if (*p) *p += first;
    for (double** p : {&part.mean, &part.var, &part.sum_dy, &part.sum_dy_xhat, &part.rest})
        if (*p) *p += first;
    return part;
}

void run(const Call& call, bool backward, int threads) {
    if (call.size() == 0) return;
    if (call.size() < PARALLEL_THRESHOLD) threads = 1;
    const size_t bytes = call.size() * SIZE_OF[call.dtype];
    if (!by_columns(call)) return run_lanes(Pass(call, backward, false, bytes), threads);
    if (call.inner == 1 || call.channels * call.inner < MANY_COLUMNS)
        return run_columns(Pass(call, backward, true, bytes), threads);
    // Short runs of many channels (a deep layer of 7 x 7): each thread takes blocks of channels, and none waits for
    // another.
    const size_t block = std::max<size_t>(1, MANY_COLUMNS / 2 / call.inner);
    const size_t blocks = (call.channels + block - 1) / block;
    parallel(threads, [&](ThreadTeam team) {
        for (size_t k = team.first(blocks); k < team.last(blocks); k++) {
            const Call part = channels_of(call, k * block, std::min(block, call.channels - k * block));
            run_columns(Pass(part, backward, true, bytes), 1);
        }
    });
}

// What rounding has left over of the batch's means, from one more read of x.
std::vector<double> rest_of_means(const Call& call, int threads) {
    const size_t channels = call.channels;
    std::vector<double> found(3 * channels);
    double *const mean = found.data(), *const rest = mean + 2 * channels;
    Call again = call;
    again.map = false;
    for (Array* a : {&again.dy, &again.saved, &again.out, &again.dresidual}) *a = Array{};
    again.mean = mean, again.var = mean + channels, again.rest = rest;
    run(again, false, threads);
    for (size_t c = 0; c < channels; c++) rest[c] += mean[c] - call.mean[c];
    return {rest, rest + channels};
}

// Whether the gradient sums of a batch may need them.
bool needs_rest(const Call& call) {
    bool far = false;
    if (call.reduce && call.map && !std::isinf(call.m))
        for (size_t c = 0; c < call.channels; c++) far |= (call.var[c] > 0) & far_from_zero(call.mean[c], call.var[c]);
    return far;
}

}  // namespace

void forward(const Call& call, int threads) { run(call, false, threads); }

void backward(const Call& call, int threads) {
    if (!needs_rest(call)) return run(call, true, threads);
    std::vector<double> rest = rest_of_means(call, threads);
    Call with_rest = call;
    with_rest.rest = rest.data();
    run(with_rest, true, threads);
}

}  // namespace xhat
