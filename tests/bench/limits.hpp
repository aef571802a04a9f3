#pragma once
#include <cstddef>
#include <cstdlib>
#include <vector>

/// What this machine can do, measured beside every kernel call: reading memory and multiplying floats, on as many threads
/// as the cache's device has.
namespace bench {

/// So many bytes no cache of this machine holds, not even a good part of them: four times its last level, 1 GiB at least.
size_t bytes_beyond_caches();

/// So many blocks of so many bytes, written once.
class Blocks {
 public:
  Blocks(size_t n, size_t bytes);
  ~Blocks() { std::free(memory_); }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;

  std::vector<std::byte*> at;

 private:
  std::byte* memory_;
};

class Limits {
 public:
  explicit Limits(int n_threads);
  ~Limits();
  Limits(const Limits&) = delete;
  Limits& operator=(const Limits&) = delete;

  /// Bytes per second over `bytes` that lie in no cache, by the best of several patterns (1, 2 and 4 streams per
  /// thread, with and without asking ahead), chosen when the process starts.
  double read_rate(size_t bytes);

  /// Reads until the caches hold nothing that was written: whoever reads next would wait for every line of it to go back
  /// to memory, which halves the rate until a whole last level has been read.
  void clean_caches();

  /// Seconds that it takes to copy `bytes` from from[i] to to[i], for every i, each copy shared by all threads.
  double copy_seconds(const std::vector<std::byte*>& to, const std::vector<std::byte*>& from,
                      size_t bytes);

  /// Seconds that it takes to write `bytes` at to[i], for every i, each shared by all threads.
  double write_seconds(const std::vector<std::byte*>& to, size_t bytes);

  /// Floating-point operations per second, by chains of fused multiply-adds on the widest vectors that kvc's kernels use here.
  double multiply_rate();

  /// Keeps every thread busy with products for about this long, as a runtime's own kernels would.
  void other_work(double seconds);

 private:
  void choose_pattern();
  struct State;
  State* state_;
};

}  // namespace bench
