// The two passes: which traversal walks the batch, and with how many threads.
#include "batch.h"
#include "pass.h"

#include <initializer_list>

namespace xhat {

namespace {

constexpr std::size_t WORTH_A_TEAM = 32768;  // numbers; below, waking threads costs more than they save

// Columns where neighbours belong to different channels, or to so few numbers of each that lanes stay empty.
bool by_columns(const Batch& b) {
    if (b.inner == 1) return true;
    bool dense = b.inner < LANES && !b.weights;
    for (const Array* a : {&b.x, &b.dy, &b.extra, &b.out, &b.dresidual})
        dense &= !a->at || (a->inner == 1 && a->channel == std::ptrdiff_t(b.inner));
    return dense;
}

void run(const Batch& batch, bool backward, int threads) {
    if (batch.size() == 0) return;
    if (batch.size() < WORTH_A_TEAM) threads = 1;
    const bool columns = by_columns(batch);
    const Pass pass(batch, backward, columns);
    if (columns) run_columns(pass, threads);
    else run_lanes(pass, threads);
}

}  // namespace

void forward(const Batch& batch, int threads) { run(batch, false, threads); }
void backward(const Batch& batch, int threads) { run(batch, true, threads); }

}  // namespace xhat
