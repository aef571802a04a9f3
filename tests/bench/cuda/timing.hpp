#pragma once
#include <chrono>
#include <vector>

#include "tests/bench/cuda/figures.hpp"
#include "tests/cuda/gpu.hpp"

namespace bench_cuda {

/// Measures the work that calls give to a stream, from its first beginning to its last end.
class StreamClock {
 public:
  explicit StreamClock(gpu::Stream stream) : stream_(stream) {}
  ~StreamClock() {
    gpu::destroy_mark(from_);
    gpu::destroy_mark(to_);
  }
  StreamClock(const StreamClock&) = delete;
  StreamClock& operator=(const StreamClock&) = delete;

  template <class Call>
  double microseconds(Call call) {
    gpu::record(from_, stream_);
    call();
    gpu::record(to_, stream_);
    return gpu::microseconds(from_, to_);
  }

 private:
  gpu::Stream stream_;
  gpu::Mark* from_ = gpu::create_mark();
  gpu::Mark* to_ = gpu::create_mark();
};

/// One value of `measured()` per repeat, after a few that do not count.
template <class Measured>
std::vector<double> repeated(Measured measured) {
  const int uncounted = (repeats() + 3) / 4;
  for (int i = 0; i < uncounted; ++i) measured();
  std::vector<double> values;
  for (int i = 0; i < repeats(); ++i) values.push_back(measured());
  return values;
}

/// What a call takes on the host.
template <class Call>
double host_microseconds(Call call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  const auto took = std::chrono::steady_clock::now() - start;
  return std::chrono::duration<double, std::micro>(took).count();
}

/// Each value of `from` as `to_value` makes it.
template <class ToValue>
std::vector<double> each(const std::vector<double>& from, ToValue to_value) {
  std::vector<double> made;
  for (const double x : from) made.push_back(to_value(x));
  return made;
}

}  // namespace bench_cuda
