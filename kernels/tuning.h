// Every tuning constant of the kernels and the engine, with the measurement that chose it.
//
// Timings are of float32 on an AVX-512 EPYC (Zen 4) with g++ 12.2 and one thread, unless a line names another machine:
// Zen 3 (AVX2) or Intel (a Xeon, model 207, AVX-512, 2 MB of L2 per core), both with two threads. Each is given as
// before -> after, per call (ms) or per element (ns), or as a multiple of a streaming copy or triad of the same bytes.
// docs/decisions/0005 and 0006 have the details, and the alternatives that did not help.
#pragma once
#include <cstddef>

namespace xhat {

// ---------------------------------------------------------------------- cut the work; change the bits of results
//
// These constants decide how a channel is cut into partial sums, so they are part of the order of additions. A new
// value changes results in the last bits; CHANGELOG.md then has to say so.

// Independent accumulators of a contiguous run: two AVX-512 registers of doubles, four of AVX2, eight of SSE2.
constexpr std::size_t LANES = 16;

// Elements. Shorter runs of one channel are treated as columns, since every run pays for reducing its lanes. By dtype
// (float64, float32, float16, bfloat16); uncentered sums of float32 have less to pay.
// NCHW (32, 512, 14, 14), runs of 196 in lanes: forward 3.4 -> 2.1 x copy, backward 2.3 -> 1.75 x triad. At 7 x 7
// columns are faster (4.3 against 5.3 x copy).
constexpr std::size_t SHORT_RUN[] = {256, 64, 256, 256};
// Below this many outer rows there is little to gain from columns: only runs shorter than LANES are columns then.
constexpr std::size_t FEW_ROWS = 8;

// Columns. With more of them, sums and coefficients would evict the elements from L1 and L2, so the channels are
// processed in blocks of half as many columns. Blocks of 256, 512 or 1024 columns are not faster at 7 x 7, and up to
// 1.7 times slower at 14 x 14.
constexpr std::size_t MANY_COLUMNS = 4096;

// Columns. Narrower rows are joined until they are this wide, so that C = 3 fills a register too. 128, 256 and 512 are
// slower to reduce and equal to map.
constexpr std::size_t ROW_COLUMNS = 64;

// Elements. Smaller arrays run on one thread: waking the others costs more than they save. Columns are cut into 4
// pieces or more from here on; (64, 4, 4, 64), two threads: forward 7.0 -> 4.3 x copy, backward 7.7 -> 4.7 x triad.
constexpr std::size_t PARALLEL_THRESHOLD = 32768;

// Lanes: at most so many pieces over all channels, each of at least so many elements.
constexpr std::size_t LANES_PIECES = 256, LANES_PIECE_ELEMENTS = 8192;
// Columns: at most so many pieces, at least so many wide rows each, and about so many elements each.
constexpr std::size_t COLUMNS_PIECES = 64, COLUMNS_PIECE_ROWS = 4, COLUMNS_PIECE_ELEMENTS = std::size_t(1) << 17;

// ------------------------------------------------------------------------------------ change nothing but the time

// Elements that pass through a buffer at a time; the buffers stay in L1. 128, 256 and 1024 are not faster. A multiple
// of 8 * LANES: then cutting a run into chunks keeps the order of its sums.
constexpr std::size_t CHUNK = 512;
static_assert(CHUNK % (8 * LANES) == 0, "a chunk holds whole groups of unrolled lanes");

// Bytes of all arrays of a pass. Up to the first limit they fit in the last-level cache, and prefetching is off:
// (4096, 256), (1024, 256) forward, Zen 3: 0.32 -> 0.25, 0.092 -> 0.075 ms. From the second on results are
// written by streaming stores: NCHW (32, 512, 14, 14) backward, two threads: 2.9 -> 2.35 x triad, with a residual and
// relu 6.8 -> 4.5.
constexpr std::size_t CACHE_BYTES = std::size_t(16) << 20, STREAM_BYTES = std::size_t(32) << 20;

// Bytes. How far ahead rows of columns are prefetched, to hide the latency of memory. 64 columns, 103 MB: forward
// 0.63 -> 0.42, backward 0.92 -> 0.63 ns. 16 kB is the same; 2 and 4 kB are slower.
constexpr std::size_t PREFETCH_DISTANCE = 8192;
// Columns that are processed, and prefetched, at a time. Four rows that are read side by side are not a stream that the
// hardware prefetcher recognizes. 256 columns: 0.50 -> 0.18 ns.
constexpr std::size_t PREFETCH_BLOCK = 128;
// The same in the map of the backward pass, which reads two arrays: more lines in flight than there are line-fill
// buffers stall. NHWC (32, 56, 56, 256) backward, Zen 3: 29.3 -> 20.3 ms.
constexpr std::size_t PREFETCH_BLOCK_OF_TWO = PREFETCH_BLOCK / 2;

// Lanes. A block of channels is reduced, then mapped while it is in L2. It holds at most so many channels and bytes,
// and joins channels only while their runs are shorter than BLOCK_RUN_BYTES. Blocks of 512 kB, two threads:
// (128, 16, 32, 32) forward 3.4 -> 2.9 x copy, (64, 128, 1000) forward 1.73 -> 1.30.
constexpr std::size_t BLOCK_CHANNELS = 64, BLOCK_RUN_BYTES = 16384, BLOCK_BYTES = std::size_t(1) << 19;
// Bytes. A larger block exceeds one core's L2, so all threads share it: their L2 caches hold it together.
// (32, 64, 112, 112) forward, backward, Intel: 7.1 -> 6.1, 18.3 -> 13.5 ms.
constexpr std::size_t L2_BYTES = std::size_t(1) << 20;
// Bytes. Shorter rows of a block are written through the cache even if the result is large.
constexpr std::size_t STREAM_RUN_BYTES = 1024;

}  // namespace xhat
