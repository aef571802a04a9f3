#include "tests/bench/cuda/roofs.hpp"

#include <algorithm>
#include <vector>

#include "tests/bench/cuda/roof_kernels.hpp"
#include "tests/bench/cuda/timing.hpp"

namespace bench_cuda {

namespace runtime = kvc::cuda::runtime;
using kvc::cuda::Grid;
using kvc::cuda::Kernel;

struct Roofs::State {
  gpu::Stream stream = gpu::create_stream();
  ~State() { gpu::destroy_stream(stream); }
};

namespace {

/// Launches, in a stream, that have been prepared.
void launch(const Kernel& kernel, uint32_t blocks, const void* params, gpu::Stream stream) {
  const Grid grid = {blocks, 256, 0};
  int32_t resident = 0;
  gpu::need(runtime::prepare(kernel, grid, &resident), "prepare");
  gpu::need(runtime::launch(kernel, grid, params, stream), "launch");
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Numbers of bf16 around 1: what zeros cost says nothing.
void fill(const gpu::Memory& memory) {
  std::vector<uint32_t> numbers(memory.bytes() / sizeof(uint32_t));
  uint32_t mixed = 1;
  for (uint32_t& pair : numbers) {
    mixed = mixed * 1664525u + 1013904223u;
    pair = (mixed & 0x807f807fu) | 0x3f803f80u;
  }
  memory.write(numbers.data(), memory.bytes());
}

}  // namespace

Roofs::Roofs() {
  gpu::need(runtime::properties_of(0, &device_), "cuda:0");
  gpu::need(runtime::use_device(0), "cuda:0");
  state_ = std::make_unique<State>();
  measure();
}
Roofs::~Roofs() = default;

/// Of several grids the best: how many blocks keep memory busy is the GPU's affair.
void Roofs::measure() {
  const size_t bytes = options.tiny ? size_t{1} << 16 : size_t{1} << 30;
  const gpu::Memory from(bytes), to(bytes), sink(sizeof(uint32_t));
  fill(from);
  StreamClock clock(state_->stream);
  auto* const sunk = reinterpret_cast<uint32_t*>(sink.data());
  const auto n = static_cast<uint32_t>(device_.n_multiprocessors);
  const auto rate = [&](double work, auto give) {
    return 1e6 * work / median(repeated([&] { return clock.microseconds(give); }));
  };
  for (const uint32_t blocks : {2 * n, 4 * n, 8 * n}) {
    const ReadParams read = {from.data(), bytes, sunk};
    const auto size = static_cast<double>(bytes);
    read_rate_ = std::max(
        read_rate_, rate(size, [&] { launch(read_kernel(), blocks, &read, state_->stream); }));
    const CopyParams copy = {from.data(), to.data(), bytes};
    copy_rate_ = std::max(
        copy_rate_, rate(2 * size, [&] { launch(copy_kernel(), blocks, &copy, state_->stream); }));
  }
  const MultiplyParams multiply = {sunk, options.tiny ? 2 : 20000};
  constexpr double product = 2.0 * 16 * 8 * 16;
  for (const uint32_t blocks : {n, 2 * n, 4 * n}) {
    const double work = product * multiply_chains * multiply.n_rounds * blocks * (256.0 / 32);
    multiply_rate_ = std::max(multiply_rate_, rate(work, [&] {
                                launch(multiply_kernel(), blocks, &multiply, state_->stream);
                              }));
  }
}

void Roofs::report() const {
  bench_cuda::report({"read alone", "TB/s"}, {1e-12 * read_rate_}, {}, {});
  bench_cuda::report({"copy, read and written", "TB/s"}, {1e-12 * copy_rate_}, {}, {});
  bench_cuda::report({"products of bf16 by mma.sync", "TFLOP/s"}, {1e-12 * multiply_rate_}, {}, {});
}

}  // namespace bench_cuda
