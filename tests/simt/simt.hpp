#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

/// Runs the body of a CUDA kernel on the CPU: a fiber per thread, in an order that a seed decides.
///
/// What it finds, and a GPU often hides: barriers that not all threads reach; collectives that the lanes of a warp reach in
/// different places; shared memory that is read before it is written (it is filled with NaN); asynchronous copies that are used
/// before they are waited for (they land late); loads off their alignment; results that depend on the order of threads, warps
/// or blocks. What it cannot find: missing fences between blocks (an x86-64 orders memory more strictly), registers, speed.
///
/// What a kernel may call is in instructions.hpp.
namespace simt {

/// What went wrong in a kernel. The launch has been given up then, and what it has written stays.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  unsigned seed = 1;  // of the order. Odd: fair. Even: some threads, warps and blocks starve
  int resident = 2;   // blocks that run interleaved
  bool truncates = true;  // tensor cores cut sums off, as the worst that was published; else they add in f32, which is faster
  bool counts_loads = false;
};

/// What a launch did. Loads are those of 16 bytes that counts_loads asked for.
struct Statistics {
  uint64_t loaded_bytes = 0;
  uint64_t requests = 0;  // of a warp, whose lanes load at once
  uint64_t sectors = 0;   // of 32 bytes that the requests touch
  uint64_t products = 0;  // of matrices
  uint64_t boxes = 0;     // that were copied to shared memory
};

/// Runs `body` once for each of grid × threads threads, blocks of `threads` at a time. Throws Error.
Statistics launch(unsigned grid, unsigned threads, size_t shared_bytes,
                  const std::function<void()>& body, const Options& options = {});

// ---- Of the thread that runs -----------------------------------------------------------------------------------------------

unsigned thread_index();
unsigned block_index();
unsigned n_threads();  // of a block
unsigned n_blocks();
const Options& options();
char* shared_memory();  // of the block, aligned to 1024
size_t shared_bytes();

/// Ends the launch with an Error.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

/// Waits until all threads of the block are here.
void sync_block();

/// Something that other threads may see has happened: sometimes they go first.
void maybe_yield();

inline constexpr int warp_lanes = 32;
inline constexpr int words_in = 10;
inline constexpr int words_out = 4;
using Inputs = std::array<std::array<uint32_t, words_in>, warp_lanes>;
using Outputs = std::array<std::array<uint32_t, words_out>, warp_lanes>;
using Compute = void (*)(const Inputs& in, Outputs& out);

/// All lanes of a warp bring n_in words each, the last to come computes what all of them get, and each takes n_out. The lanes must
/// come with the same `name`.
void collective(const char* name, const uint32_t* in, int n_in, uint32_t* out, int n_out,
                Compute compute);

// Asynchronous copies of a thread to shared memory, in groups. One lands when the thread waits for its group, and no earlier;
// what was there is NaN from its begin on.
void begin_copy(size_t to, const void* from,
                size_t bytes);  // to an offset of shared memory; from null: zeros
void end_copy_group();
/// Waits for all groups but the last `n_left`.
void wait_for_copies(size_t n_left);
/// Takes over the copies that the thread has begun, which it does not wait for then: called, the result lands them.
std::function<void()> take_copies();

// ---- For instructions that are defined elsewhere (sm90.hpp) ----------------------------------------------------------------

/// What the threads of a block share beside its memory.
struct BlockState {
  virtual ~BlockState() = default;
  /// Bytes of shared memory are undefined from now on.
  virtual void forget(size_t at, size_t bytes) = 0;
  /// At the end of the block: what it has left undone; empty: nothing.
  virtual std::string unfinished() const = 0;
};
/// Of the block of the thread that runs; null at its start.
std::unique_ptr<BlockState>& block_state();

using Waiting = std::vector<int>;  // threads
/// The thread waits until somebody wakes it.
void wait_in(Waiting& waiting, const char* where);
void wake(Waiting& waiting);
/// By the hardware, in an order of its own; the block has to live that long.
void do_later(std::function<void()> act);
uint64_t draw();

/// A load of a thread, for the statistics.
void count_load(const void* address, size_t bytes);
void count_product();
void count_box();

}  // namespace simt
