// The two passes: which traversal walks the batch, and with how many threads.
#include "batch.h"

#include <algorithm>
#include <initializer_list>

#include "pass.h"
#include "threads.h"

namespace xhat {

namespace {

using std::ptrdiff_t;
using std::size_t;

// Numbers; below, lanes start and stop too often: raw sums less so.
constexpr size_t SHORT_RUN[DTYPES] = {256, 64, 256, 256};
constexpr size_t MANY_COLUMNS = 4096;   // whose sums and factors would crowd the numbers out of the cache

// Columns where neighbours belong to different channels, or to so few of each that a run hardly pays its lanes.
bool by_columns(const Batch& b) {
    if (b.inner == 1) return true;
    bool dense = b.inner < (b.outer < 8 ? LANES : SHORT_RUN[b.dtype]) && !b.weights;
    for (const Array* a : {&b.x, &b.dy, &b.extra, &b.out, &b.dresidual})
        dense &= !a->at || (a->inner == 1 && a->channel == ptrdiff_t(b.inner));
    return dense;
}

// The batch of channels [first, first + count).
Batch channels_of(const Batch& batch, size_t first, size_t count) {
    Batch b = batch;
    b.channels = count;
    for (Array* a : {&b.x, &b.dy, &b.extra, &b.out, &b.dresidual})
        if (a->at) a->at = static_cast<char*>(a->at) + ptrdiff_t(first) * a->channel * ptrdiff_t(SIZE_OF[b.dtype]);
    for (const double** p : {&b.gamma, &b.beta})
        if (*p) *p += first;
    for (double** p : {&b.mean, &b.var, &b.sum_dy, &b.sum_dy_xhat})
        if (*p) *p += first;
    return b;
}

void run(const Batch& batch, bool backward, int threads) {
    if (batch.size() == 0) return;
    if (batch.size() < WORTH_A_TEAM) threads = 1;
    const size_t bytes = batch.size() * SIZE_OF[batch.dtype];
    if (!by_columns(batch)) return run_lanes(Pass(batch, backward, false, bytes), threads);
    if (batch.inner == 1 || batch.channels * batch.inner < MANY_COLUMNS)
        return run_columns(Pass(batch, backward, true, bytes), threads);
    // Short runs of many channels: a block of channels at a time, each member of the team its own.
    const size_t block = std::max<size_t>(1, MANY_COLUMNS / 2 / batch.inner);
    const size_t blocks = (batch.channels + block - 1) / block;
    parallel(threads, [&](Team team) {  // whose members ask for memory, and never meet
        for (size_t k = team.first(blocks); k < team.last(blocks); k++) {
            const Batch part = channels_of(batch, k * block, std::min(block, batch.channels - k * block));
            run_columns(Pass(part, backward, true, bytes), 1);
        }
    });
}

}  // namespace

void forward(const Batch& batch, int threads) { run(batch, false, threads); }
void backward(const Batch& batch, int threads) { run(batch, true, threads); }

}  // namespace xhat
